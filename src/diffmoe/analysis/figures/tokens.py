"""Figures of which patches of an image experts take."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from diffmoe.analysis.figures.canvas import (
    GREY,
    LETTER,
    Axes,
    bare,
    colour_bar,
    headed,
    publish,
    sheet,
    shortened,
    show_tiles,
    spread_evenly,
    varies,
    write_in_cell,
)
from diffmoe.analysis.figures.patches import (
    TokenColours,
    joined,
    most_experts,
    per_patch,
    stacked,
)
from diffmoe.analysis.figures.ticks import name_ticks
from diffmoe.analysis.findings import TokenMaps

__all__ = ["token_experts_figure", "token_overview_figure", "token_strip_figure"]

_MOST_IMAGES, _MOST_FRAMES = 12, 10  # in a figure
_MOST_LAYERS, _MOST_EXPERTS = 6, 16
_TILES = ("picture", "overlay, colours\nmixed with the picture", "map, colours\nof the scale")


def token_overview_figure(found: TokenMaps, path: Path, *, command: str = "") -> list[Path]:
    """Each image, and beside it how many experts its patches had: over the image and alone.

    Empty where all patches had as many.
    """
    number = per_patch(found)
    if not varies(number):
        return []
    chosen = spread_evenly(len(number), _MOST_IMAGES)
    colours = TokenColours(found, most_experts(found))
    columns = 1 if len(chosen) < 3 else 2
    rows = -(-len(chosen) // columns)
    each = max(1.25, 0.2 * colours.grid[1] * colours.numbered)  # inches of a tile
    high = each * colours.size[1] / colours.size[0]
    panels = sheet(
        "Where the compute goes in an image",
        "experts of each patch, mean over steps and MoE layers" + _some(chosen, number, "images"),
        rows=rows,
        columns=columns,
        width=(3.12 * each + 0.2) * columns + 0.8,
        height=(high + 0.3) * rows + 1.15,
    )
    for place, axes in enumerate(panels.flat):
        if place >= len(chosen):
            axes.set_visible(False)
            continue
        _draw_triple(axes, found, chosen[place], number[chosen[place]], colours)
        if place + columns < len(chosen):
            axes.set_xticks([])
    label = "experts per patch"
    figure = panels[0, 0].figure
    colour_bar(figure, colours.scale, label, ax=panels.ravel().tolist(), shrink=0.8)
    return publish(figure, path, command)


def _draw_triple(
    axes: Axes,
    found: TokenMaps,
    index: int,
    values: Float[np.ndarray, "T"],
    colours: TokenColours,
) -> None:
    """Image, overlay and map, whose cells hold their numbers while they are few."""
    image, width = found.images[index], colours.size[0]
    gap = width // 16
    axes.imshow(colours.triple(image, image, values, gap))
    bare(axes)
    axes.set_yticks([])
    centres = [(width - 1) / 2 + tile * (width + gap) for tile in range(3)]
    axes.set_xticks(centres, _TILES, fontsize="x-small", color=GREY)
    digits = 2 if colours.grid[1] <= 5 else 1
    for x, y, value in colours.cells(values):
        place = (x + 2 * (width + gap), y)
        write_in_cell(axes, colours.scale, place, f"{value:.{digits}f}", value, points=6.5)
    name = shortened(headed(found.names[index]))
    axes.set_title(name, loc="left", fontsize="small", parse_math=False)


def _some(chosen: list[int], every: Any, things: str) -> str:
    if len(chosen) == len(every):
        return ""
    return f"; {len(chosen)} of {len(every)} {things}"


def token_strip_figure(found: TokenMaps, path: Path, *, command: str = "") -> list[Path]:
    """For each image the noisy states and below them the maps, along sampling."""
    if not varies(found.number):
        return []
    colours = TokenColours(found, most_experts(found), most=128)
    images = spread_evenly(len(found.images), 8)
    frames = spread_evenly(len(found.steps), _MOST_FRAMES)
    names = [shortened(headed(found.names[index]), 20) for index in images]
    beside = 0.3 + 0.8 * LETTER * max(map(len, names))
    each = 0.72 if len(frames) > 4 else 1.0  # inches
    high = each * colours.size[1] / colours.size[0]
    left_out = _some(images, found.images, "images") + _some(frames, found.steps, "frames")
    axes = sheet(
        "Where the compute goes along sampling",
        "noisy state, below it experts of each patch" + left_out,
        width=max(4.4, 1.125 * each * len(frames) + beside + 0.9),
        height=2.16 * high * len(images) + 1.4,
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
    axes.set_xlabel("step / noise level, 1 = pure noise", fontsize="small", color=GREY)
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
    colours = TokenColours(found, 100.0)
    colours.scale.set_cmap(_greys())
    each = 1.0 if len(experts) <= 6 else 0.6  # inches
    high = each * colours.size[1] / colours.size[0]
    left_out = _some(layers, share, "MoE layers") + _some(experts, share[0], "experts")
    picture, axes = sheet(
        f"Which expert took which patch: {shortened(headed(found.names[image]))}",
        "share of steps in which it did" + left_out,
        columns=2,
        width=max(4.6, 1.1 * each * len(experts) + 2.9),
        height=max(2.2, 1.1 * high * len(layers) + 1.25),
        width_ratios=[1.2, 1.1 * each * len(experts)],
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
