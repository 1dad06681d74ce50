"""Figures of a run: its loss, its samples."""

from pathlib import Path

import torch
from torch import Tensor

from diffmoe.analysis.figures.canvas import (
    BLUE,
    LETTER,
    ORANGE,
    Axes,
    plain_axes,
    save,
    shortened,
    show_tiles,
)
from diffmoe.analysis.figures.ticks import (
    count_steps,
    logarithmic,
    name_ticks,
)
from diffmoe.checkpoint import read_metrics

__all__ = ["loss_figure", "samples_figure"]

_MOST_ROWS = 20  # classes with a row of samples


def loss_figure(metrics: Path, path: Path) -> Path:
    """Training loss by step, from a run's `metrics.jsonl`."""
    lines = read_metrics(metrics)
    axes = plain_axes("Training loss", "optimizer step", "loss (logarithmic)", height=4)
    terms = {"loss": ("total", BLUE, "-"), "mse": ("mse, the denoising part", ORANGE, "--")}
    found = {
        name: {line["step"]: line[name] for line in lines if _is_drawable(line.get(name))}
        for name in terms
    }
    if found["loss"] == found["mse"]:  # one curve would hide the other
        terms, found["mse"] = {"loss": ("total, all of it mse", BLUE, "-")}, {}
    for name, (label, colour, style) in terms.items():
        known = found[name]
        if known:
            style = style if len(known) > 1 else "o"
            axes.plot(known.keys(), known.values(), style, color=colour, label=label)
    if axes.lines:
        axes.legend(frameon=False)
        _scale(axes, [float(v) for line in axes.lines for v in line.get_ydata()])
    count_steps(axes)
    return save(axes.figure, path)


def _is_drawable(value: float | None) -> bool:
    """Whether a value can stand on an axis; a loss beyond these bounds has left every scale."""
    return value is not None and (value == 0 or 1e-30 < abs(value) < 1e30)


def _scale(axes: Axes, values: list[float]) -> None:
    """A logarithmic y axis; linear if a value is not positive."""
    if min(values) <= 0:
        axes.set_ylabel("loss")
    else:
        logarithmic(axes, "y", values)


def samples_figure(images: Tensor, labels: Tensor, names: list[str], path: Path) -> Path:
    """A row of uint8 samples (N, C, H, W) for each class; of many classes a few, evenly spread.

    The figure is as wide as its title, however few the columns are.
    """
    classes = labels.unique()
    if len(classes) > _MOST_ROWS:
        classes = classes[torch.linspace(0, len(classes) - 1, _MOST_ROWS).round().long()]
    rows = [images[labels == label][:10] for label in classes.tolist()]
    columns, width = max(map(len, rows)), images.shape[-1]
    white = torch.full((1, *images.shape[1:]), 255, dtype=torch.uint8)
    cells = [torch.cat([row, white.expand(columns - len(row), -1, -1, -1)]) for row in rows]
    shown = [shortened(names[label]) for label in classes.tolist()]
    each = 0.75 if width <= 64 else 1.2  # inches
    beside = 0.4 + LETTER * max(map(len, shown))
    title = "Samples of each class, not chosen"
    across = beside + max(each * columns, LETTER * len(title))
    axes = plain_axes(title, "", "", across, each * len(rows) + 0.4)
    axes.set_anchor("NW")  # under the beginning of the title
    places, _ = show_tiles(axes, torch.cat(cells), columns, gap=max(1, width // 6))
    name_ticks(axes.yaxis, places, shown)
    axes.set(xticks=[])
    return save(axes.figure, path)
