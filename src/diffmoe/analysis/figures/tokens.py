"""Figures of which patches of an image experts take."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from diffmoe.analysis.figures.canvas import (
    GREY,
    LETTER,
    colour_bar,
    name_ticks,
    publish,
    sheet,
    shortened,
    show_tiles,
    spread_evenly,
    varies,
)
from diffmoe.analysis.findings import TokenMaps

__all__ = ["TokenColours", "token_experts_figure", "token_overview_figure", "token_strip_figure"]

_MAP = "viridis"  # even steps of brightness, whatever the colour vision
_OVER = 0.7  # how much of a picture the map on it covers
_LEAST, _MOST = 64, 256  # pixels of a tile's longer side
_MOST_IMAGES, _MOST_FRAMES = 12, 10  # in a figure
_MOST_LAYERS, _MOST_EXPERTS = 6, 16

Pixels = UInt8[np.ndarray, "H W 3"]


class TokenColours:
    """Pictures, maps of patches and both over each other as tiles of one size, on one scale."""

    def __init__(
        self, found: TokenMaps, low: float, high: float, *, least: int = _LEAST, most: int = _MOST
    ) -> None:
        from matplotlib import colormaps
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        height, width = found.images.shape[-2:]
        rows = max(1, round(math.sqrt(found.number.shape[-1] * height / width)))
        self.grid = (rows, found.number.shape[-1] // rows)
        factor = -(-least // max(height, width))
        if factor == 1:
            factor = min(1.0, most / max(height, width))
        self.size = (round(factor * width), round(factor * height))
        scale = Normalize(low, high if high > low else low + 1)
        self.scale = ScalarMappable(scale, colormaps[_MAP])

    def picture(self, image: UInt8[np.ndarray, "C H W"]) -> Pixels:
        """An image in colour or grey, each pixel a square."""
        pixels = image.transpose(1, 2, 0)
        if pixels.shape[2] != 3:
            pixels = pixels.mean(axis=2, keepdims=True).repeat(3, axis=2)
        return self._sized(pixels.astype(np.uint8))

    def map(self, values: Float[np.ndarray, "T"]) -> Pixels:
        """A map of patches in its colours."""
        colours = self.scale.to_rgba(values.reshape(self.grid), bytes=True)
        return self._sized(np.ascontiguousarray(colours[..., :3]))

    def over(self, image: UInt8[np.ndarray, "C H W"], values: Float[np.ndarray, "T"]) -> Pixels:
        """A map over its image, which keeps its brightness alone."""
        grey = self.picture(image).astype(float) @ (0.299, 0.587, 0.114)
        return mixed(grey[..., None], self.map(values))

    def _sized(self, pixels: Pixels) -> Pixels:
        smaller = pixels.shape[1] > self.size[0]
        how = Image.Resampling.BOX if smaller else Image.Resampling.NEAREST
        return np.asarray(Image.fromarray(pixels).resize(self.size, how))


def mixed(grey: Float[np.ndarray, "*size"], colours: UInt8[np.ndarray, "*size"]) -> Pixels:
    """Colours over grey, which is lighter than it was: black would darken them off their scale."""
    return ((1 - _OVER) * (50 + 0.8 * grey) + _OVER * colours).round().astype(np.uint8)


def per_patch(found: TokenMaps) -> Float[np.ndarray, "I T"]:
    """Experts that took each patch, mean over all steps and MoE layers."""
    return found.share.sum(axis=2).mean(axis=1)


def joined(tiles: list[Pixels], axis: int, gap: int) -> Pixels:
    """Tiles in a row (axis 1) or a column (axis 0), white between them."""
    shape = list(tiles[0].shape)
    shape[axis] = gap
    white: Any = np.full(shape, 255, dtype=np.uint8)
    parts = [part for tile in tiles for part in (tile, white)]
    return np.concatenate(parts[:-1], axis=axis)


def stacked(tiles: list[Pixels]) -> UInt8[Tensor, "N 3 H W"]:
    """Tiles as a batch of images."""
    return torch.from_numpy(np.stack(tiles).transpose(0, 3, 1, 2).copy())


def token_overview_figure(found: TokenMaps, path: Path, *, command: str = "") -> list[Path]:
    """Each image and beside it how many experts its patches had; empty where all had as many."""
    number = per_patch(found)
    if not varies(number):
        return []
    chosen = spread_evenly(len(number), _MOST_IMAGES)
    colours = TokenColours(found, float(np.nanmin(number)), float(np.nanmax(number)))
    columns = min(len(chosen), 2 if len(chosen) <= 4 else 3)
    rows = -(-len(chosen) // columns)
    panels = sheet(
        "Where the compute goes in an image",
        f"experts of each patch, mean over steps and MoE layers{_left_out(chosen, number)}",
        rows=rows,
        columns=columns,
        width=max(4.6, 2.7 * columns + 1.0),
        height=1.55 * rows + 1.2,
    )
    for axes in panels.flat:
        axes.set_axis_off()
    for axes, index in zip(panels.flat, chosen, strict=False):
        image = found.images[index]
        pair = [colours.picture(image), colours.over(image, number[index])]
        axes.imshow(joined(pair, 1, colours.size[0] // 16))
        name = shortened(found.names[index], 26)
        axes.set_title(name, loc="left", fontsize="small", parse_math=False)
    figure = panels[0, 0].figure
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.06)
    label = "experts per patch"
    colour_bar(figure, colours.scale, label, ax=panels.ravel().tolist(), shrink=0.8)
    return publish(figure, path, command)


def _left_out(chosen: list[int], every: Any) -> str:
    return f"; {len(chosen)} of {len(every)} images" if len(chosen) < len(every) else ""


def token_strip_figure(found: TokenMaps, path: Path, *, command: str = "") -> list[Path]:
    """For each image the noisy states and below them the maps, along sampling."""
    if not varies(found.number):
        return []
    low, high = float(np.nanmin(found.number)), float(np.nanmax(found.number))
    colours = TokenColours(found, low, high, most=128)
    images = spread_evenly(len(found.images), 8)
    frames = spread_evenly(len(found.steps), _MOST_FRAMES)
    names = [shortened(found.names[index], 20) for index in images]
    beside = 0.9 + 0.8 * LETTER * max(map(len, names))
    each = 0.72  # inches
    axes = sheet(
        "Where the compute goes along sampling",
        "noisy state, below it experts of each patch; noise level 1 = pure noise"
        + _left_out(images, found.images),
        width=max(5.4, 1.125 * each * len(frames) + beside + 1.2),
        height=max(2.6, 2.16 * each * len(images) + 1.6),
    )[0, 0]
    gap = colours.size[1] // 8
    tiles = [
        joined([colours.picture(found.noisy[i, f]), colours.map(found.number[i, f])], 0, gap // 4)
        for i in images
        for f in frames
    ]
    rows, columns = show_tiles(axes, stacked(tiles), len(frames), gap)
    name_ticks(axes.yaxis, rows, names)
    steps = [f"{found.steps[frame]}\n{found.level[frame]:.2f}" for frame in frames]
    axes.set_xticks(columns, steps, fontsize="small")
    axes.tick_params(bottom=False, top=False, labelbottom=False, labeltop=True)
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("step / noise level", fontsize="small", color=GREY)
    colour_bar(axes.figure, colours.scale, "experts per patch", ax=axes, shrink=0.8)
    return publish(axes.figure, path, command)


def token_experts_figure(
    found: TokenMaps, image: int, path: Path, *, command: str = ""
) -> list[Path]:
    """Which expert took which patch of one image: layers down, experts across, grey the share."""
    share = found.share[image]
    if not varies(share):
        return []
    layers = spread_evenly(len(share), _MOST_LAYERS)
    experts = spread_evenly(share.shape[1], _MOST_EXPERTS)
    colours = TokenColours(found, 0.0, 100.0)
    colours.scale.set_cmap(_greys())
    each = 1.0 if len(experts) <= 6 else 0.6  # inches
    most = f"{len(layers)} of {len(share)} MoE layers" if len(layers) < len(share) else ""
    more = f"{len(experts)} of {share.shape[1]} experts" if len(experts) < share.shape[1] else ""
    shown = ", ".join(part for part in (most, more) if part)
    picture, axes = sheet(
        f"Which expert took which patch: {shortened(found.names[image])}",
        "share of steps in which it did" + f"; {shown}" * bool(shown),
        columns=2,
        width=each * len(experts) + 3.0,
        height=max(2.4, each * len(layers) + 1.6),
        width_ratios=[1.2, each * len(experts)],
    )[0]
    picture.imshow(colours.picture(found.images[image]))
    picture.set_axis_off()
    tiles = [colours.map(100 * share[layer, expert]) for layer in layers for expert in experts]
    rows, columns = show_tiles(axes, stacked(tiles), len(experts), colours.size[1] // 10)
    axes.set_yticks(rows, layers)
    axes.set_xticks(columns, experts)
    axes.set(xlabel="expert", ylabel="MoE layer")
    colour_bar(axes.figure, colours.scale, "% of steps", ax=axes, shrink=0.8)
    return publish(axes.figure, path, command)


def _greys() -> Any:
    """From a grey that stands out from white paper to black."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("share", ["0.93", "0"])
