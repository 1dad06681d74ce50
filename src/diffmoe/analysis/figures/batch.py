"""The figure of static and dynamic selection in pools of one image and of many (Fig. 6)."""

from pathlib import Path

import numpy as np
import torch

from diffmoe.analysis.figures.canvas import name_ticks, publish, sheet, show_tiles
from diffmoe.analysis.findings import BatchOfOne, Variant

__all__ = ["batch_figure"]

_MOST_COLUMNS = 10  # images of each variant


def batch_figure(found: BatchOfOne, path: Path, *, command: str = "") -> list[Path]:
    """The same images in columns, a row for each variant with its numbers beside it."""
    columns = min((len(variant.images) for variant in found.variants), default=0)
    columns = min(columns, _MOST_COLUMNS)
    if not columns:
        return []
    each = 0.95 if found.variants[0].images.shape[-1] <= 64 else 1.3  # inches
    axes = sheet(
        "The same images in a pool of one and of many",
        f"numbers over {found.drawn:,} images; change: rms from the other pool, images in [-1, 1]",
        width=max(6.4, each * columns + 3.6),
        height=each * len(found.variants) + 1.1,
    )[0, 0]
    tiles = np.concatenate([variant.images[:columns] for variant in found.variants])
    gap = max(1, tiles.shape[-1] // 8)
    places, _ = show_tiles(axes, torch.from_numpy(tiles), columns, gap)
    axes.set(xticks=[])
    name_ticks(axes.yaxis, places, [_name(variant) for variant in found.variants])
    beside = axes.secondary_yaxis("right")
    name_ticks(beside.yaxis, places, [_numbers(variant) for variant in found.variants])
    beside.tick_params(length=0, labelsize="small")
    beside.spines[:].set_visible(False)
    return publish(axes.figure, path, command)


def _name(variant: Variant) -> str:
    images = "1 image" if variant.batch == 1 else f"{variant.batch:,} images"
    return f"{variant.name}\npool of {images}"


def _numbers(variant: Variant) -> str:
    """Capacity and change, and the scores that are known."""
    lines = [f"capacity {variant.capacity:.3f}", f"change {variant.change:.3f}"]
    if variant.agreement is not None:
        lines.append(f"agreement {variant.agreement:.1%}")
    if variant.frechet is not None:
        lines.append(f"Frechet distance {variant.frechet:.3f}")
    return "\n".join(lines)
