"""The figure of static and dynamic selection in pools of one image and of many (Fig. 6)."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8

from diffmoe.analysis.figures.canvas import publish, sheet, show_tiles
from diffmoe.analysis.figures.ticks import name_ticks
from diffmoe.analysis.findings import BatchOfOne, Variant

__all__ = ["batch_figure"]

_MOST_COLUMNS = 10  # images of each variant
_KINDS = {
    "static": "pool selection, fixed top-K",
    "dynamic": "pool selection, tracked thresholds",
    "dynamic, token": "token selection, tracked thresholds",
}


@dataclass(frozen=True)
class _Row:
    """A row of tiles between its name and its numbers."""

    name: str
    numbers: str
    tiles: UInt8[np.ndarray, "I C H W"]


def batch_figure(found: BatchOfOne, path: Path, *, command: str = "") -> list[Path]:
    """The same images in columns: a row for each pool, and one for what differs between them."""
    columns = min((len(variant.images) for variant in found.variants), default=0)
    columns = min(columns, _MOST_COLUMNS)
    if not columns:
        return []
    kinds = _kinds(found, columns)
    largest = max((float(_difference(kind).max()) for kind in kinds if len(kind) > 1), default=0.0)
    rows = [row for kind in kinds for row in _rows(kind, largest or 1.0)]
    each = 0.95 if found.variants[0].images.shape[-1] <= 64 else 1.3  # inches
    meanings = [f"{name} = {_KINDS[name]}" for name in dict.fromkeys(_names(found))]
    axes = sheet(
        "The same images in a pool of one and of many",
        "\n".join(["; ".join(meanings), _scale(found, largest)]),
        width=max(6.4, each * columns + 3.9),
        height=each * len(rows) + 1.3,
    )[0, 0]
    tiles = np.concatenate([row.tiles for row in rows])
    gap = max(1, tiles.shape[-1] // 8)
    places, _ = show_tiles(axes, torch.from_numpy(tiles), columns, gap)
    axes.set(xticks=[])
    name_ticks(axes.yaxis, places, [row.name for row in rows])
    beside = axes.secondary_yaxis("right")
    name_ticks(beside.yaxis, places, [row.numbers for row in rows])
    beside.tick_params(length=0, labelsize="small")
    beside.spines[:].set_visible(False)
    return publish(axes.figure, path, command)


def _names(found: BatchOfOne) -> list[str]:
    return [variant.name for variant in found.variants if variant.name in _KINDS]


def _scale(found: BatchOfOne, largest: float) -> str:
    """What the numbers are of, and what white is in a row of differences."""
    numbers = f"numbers over {found.drawn:,} images, values in [-1, 1]"
    white = f"white = {largest / 127.5:.2g}, the largest shown" if largest else "none shown"
    paired = len({variant.name for variant in found.variants}) < len(found.variants)
    return f"{numbers}; difference: black = none, {white}" if paired else numbers


def _kinds(found: BatchOfOne, columns: int) -> list[list[Variant]]:
    """Variants of one name together, with as many images as are shown."""
    kinds: dict[str, list[Variant]] = {}
    for variant in found.variants:
        shown = replace(variant, images=variant.images[:columns])
        kinds.setdefault(variant.name, []).append(shown)
    return list(kinds.values())


def _difference(kind: list[Variant]) -> Float[np.ndarray, "I C H W"]:
    """Absolute difference of the images of the first pool and the last."""
    return np.abs(kind[0].images.astype(float) - kind[-1].images)


def _rows(kind: list[Variant], white: float) -> list[_Row]:
    """A row for each pool and one of differences; of one pool alone, its row with the change."""
    name, change = kind[0].name, f"change {kind[0].change:.3f} (rms)"
    if len(kind) == 1:
        (only,) = kind
        return [_Row(f"{name}\nalone or in a batch", f"{_numbers(only)}\n{change}", only.images)]
    rows = [_Row(f"{name}\n{_pool(one)}", _numbers(one), one.images) for one in kind]
    tiles = (255 * _difference(kind) / white).round().astype(np.uint8)
    return [*rows, _Row(f"{name}\ndifference", change, tiles)]


def _pool(variant: Variant) -> str:
    return "pool of 1 image" if variant.batch == 1 else f"pool of {variant.batch:,} images"


def _numbers(variant: Variant) -> str:
    """Capacity, and the scores that are known."""
    lines = [f"capacity {variant.capacity:.3f}"]
    if variant.agreement is not None:
        lines.append(f"agreement {variant.agreement:.1%}")
    if variant.frechet is not None:
        lines.append(f"Frechet distance {variant.frechet:.3f}")
    return "\n".join(lines)
