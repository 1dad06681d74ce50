"""Pictures, maps of their patches and both over each other, as tiles of one size."""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from diffmoe.analysis.findings import TokenMaps

__all__ = ["TokenColours", "joined", "mixed", "most_experts", "per_patch", "stacked"]

_MAP = "viridis"  # even steps of brightness, whatever the colour vision
_OVER = 0.7  # how much of a picture the map on it covers
_LEAST, _MOST = 64, 256  # pixels of a tile's longer side
_NUMBERED = 64  # patches of a map that has their numbers in its cells

Pixels = UInt8[np.ndarray, "H W 3"]


class TokenColours:
    """Tiles on one scale, which begins at 0."""

    def __init__(
        self, found: TokenMaps, high: float, *, least: int = _LEAST, most: int = _MOST
    ) -> None:
        from matplotlib import colormaps
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        height, width = found.images.shape[-2:]
        tokens = found.number.shape[-1]
        rows = max(1, round(math.sqrt(tokens * height / width)))
        self.grid = (rows, tokens // rows)
        self.numbered = tokens <= _NUMBERED
        factor = -(-least // max(height, width))
        if factor == 1:
            factor = min(1.0, most / max(height, width))
        self.size = (round(factor * width), round(factor * height))
        colours = colormaps[_MAP].with_extremes(bad="#dddddd")
        self.scale = ScalarMappable(Normalize(0.0, high if high > 0 else 1.0), colours)

    def picture(self, image: UInt8[np.ndarray, "C H W"]) -> Pixels:
        """An image in colour or grey, each pixel a square."""
        pixels = image.transpose(1, 2, 0)
        if pixels.shape[2] != 3:
            pixels = pixels.mean(axis=2, keepdims=True).repeat(3, axis=2)
        return self._sized(pixels.astype(np.uint8))

    def map(self, values: Float[np.ndarray, "T"]) -> Pixels:
        """A map of patches in its colours, as they are on the scale."""
        masked = np.ma.masked_invalid(values.reshape(self.grid))
        colours = self.scale.to_rgba(masked, bytes=True)
        return self._sized(np.ascontiguousarray(colours[..., :3]))

    def over(self, image: UInt8[np.ndarray, "C H W"], values: Float[np.ndarray, "T"]) -> Pixels:
        """A map over its image, which keeps its brightness alone: colours off the scale."""
        grey = self.picture(image).astype(float) @ (0.299, 0.587, 0.114)
        return mixed(grey[..., None], self.map(values))

    def triple(
        self,
        state: UInt8[np.ndarray, "C H W"],
        image: UInt8[np.ndarray, "C H W"],
        values: Float[np.ndarray, "T"],
        gap: int,
    ) -> Pixels:
        """A state, the map over an image, and the map alone."""
        return joined([self.picture(state), self.over(image, values), self.map(values)], 1, gap)

    def cells(self, values: Float[np.ndarray, "T"]) -> list[tuple[float, float, float]]:
        """Centre of each known patch in pixels of its tile and its number; none of many patches."""
        if not self.numbered:
            return []
        (rows, columns), (width, height) = self.grid, self.size
        every: Any = np.ndenumerate(values.reshape(self.grid))
        return [
            (
                (column + 0.5) * width / columns - 0.5,
                (row + 0.5) * height / rows - 0.5,
                float(value),
            )
            for (row, column), value in every
            if np.isfinite(value)
        ]

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


def most_experts(found: TokenMaps) -> float:
    """The largest number of experts of a patch, in a step or on average: the end of all scales."""
    every = np.concatenate([found.number.ravel(), per_patch(found).ravel()])
    return float(every[np.isfinite(every)].max(initial=0.0))


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
