"""Figures of a run; colours of Okabe and Ito, readable without colour vision."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffmoe.analysis.trace import CapacityTrace
from diffmoe.checkpoint import read_metrics, write_file
from diffmoe.errors import ConfigError
from diffmoe.sampling import contact_sheet

__all__ = ["capacity_figures", "loss_figure", "samples_figure"]

_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#666666"
_MOST_ROWS = 20  # classes with a row of samples
_MOST_CLASSES = 40  # classes with a point of capacity
_MOST_CELLS = 480  # experts with their share in figures
_MOST_LETTERS = 32  # of a class's name beside its samples
_MARKED = 60  # points of a line that are marked one by one
_LETTER = 0.095  # inches that a letter of a name or a title takes

# Steps of a logarithmic axis within a decade, by how many decades it spans at most.
_LOG_STEPS = {1.0: (1, 1.5, 2, 3, 4, 5, 6, 8), 2.5: (1, 2, 5), math.inf: (1,)}

Axes = Any  # matplotlib is an extra: imported when a figure is made


def _axes(title: str, x: str, y: str, width: float = 6.4, height: float = 3.6) -> Axes:
    """Axes of a new figure, apart from pyplot: no window system, no global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "figures need the package matplotlib", remedy='pip install "diffmoe[plots]"'
        ) from error
    axes = Figure(figsize=(width, height), layout="constrained").add_subplot()
    axes.set(xlabel=x, ylabel=y)
    axes.set_title(title, loc="left", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def _save(axes: Axes, path: Path) -> Path:
    write_file(path, lambda aside: axes.figure.savefig(aside, dpi=150))
    return path


def _count_steps(axes: Axes) -> None:
    """Ticks of the x axis at whole numbers."""
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.xaxis.set_major_formatter("{x:,.0f}")


def _marker(points: int) -> dict[str, Any]:
    return {"marker": "o", "markersize": 3.5} if points <= _MARKED else {}


def _names(axis: Axes, places: Any, names: list[str]) -> None:
    axis.set_ticks(places, names, parse_math=False)  # a $ in a name is a $


def loss_figure(metrics: Path, path: Path) -> Path:
    """Training loss by step, from a run's `metrics.jsonl`."""
    lines = read_metrics(metrics)
    axes = _axes("Training loss", "optimizer step", "loss (logarithmic)", height=4)
    terms = {"loss": ("total", _BLUE, "-"), "mse": ("mse, the denoising part", _ORANGE, "--")}
    found = {
        name: {line["step"]: line[name] for line in lines if _is_drawable(line.get(name))}
        for name in terms
    }
    if found["loss"] == found["mse"]:  # one curve would hide the other
        terms, found["mse"] = {"loss": ("total, all of it mse", _BLUE, "-")}, {}
    for name, (label, colour, style) in terms.items():
        known = found[name]
        if known:
            style = style if len(known) > 1 else "o"
            axes.plot(known.keys(), known.values(), style, color=colour, label=label)
    if axes.lines:
        axes.legend(frameon=False)
        _logarithmic(axes, [float(v) for line in axes.lines for v in line.get_ydata()])
    _count_steps(axes)
    return _save(axes, path)


def _is_drawable(value: float | None) -> bool:
    """Whether a value can stand on an axis; a loss beyond these bounds has left every scale."""
    return value is not None and (value == 0 or 1e-30 < abs(value) < 1e30)


def _logarithmic(axes: Axes, values: list[float]) -> None:
    """A logarithmic y axis with a few plain numbers on it; linear if a value is not positive."""
    low, high = min(values), max(values)
    if low <= 0:
        axes.set_ylabel("loss")
        return
    low, high = low / 1.1, high * 1.1
    decades = math.log10(high / low)
    steps = next(steps for most, steps in _LOG_STEPS.items() if decades <= most)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps]
    ticks = [tick for tick in ticks if low <= tick <= high]
    axes.set_yscale("log")
    axes.minorticks_off()
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_ylim(low, high)


def samples_figure(images: Tensor, labels: Tensor, names: list[str], path: Path) -> Path:
    """A row of uint8 samples (N, C, H, W) for each class; of many classes a few, evenly spread.

    The figure is as wide as its title, however few the columns are.
    """
    classes = labels.unique()
    if len(classes) > _MOST_ROWS:
        classes = classes[torch.linspace(0, len(classes) - 1, _MOST_ROWS).round().long()]
    rows = [images[labels == label][:10] for label in classes.tolist()]
    columns, (height, width) = max(map(len, rows)), images.shape[-2:]
    gap = max(1, width // 6)
    white = torch.full((1, *images.shape[1:]), 255, dtype=torch.uint8)
    cells = [torch.cat([row, white.expand(columns - len(row), -1, -1, -1)]) for row in rows]
    sheet = np.asarray(contact_sheet(torch.cat(cells), columns, gap=gap))[gap:-gap, gap:-gap]
    shown = [_shortened(names[label]) for label in classes.tolist()]
    each = 0.75 if width <= 64 else 1.2  # inches
    beside = 0.4 + _LETTER * max(map(len, shown))
    title = "Samples of each class, not chosen"
    across = beside + max(each * columns, _LETTER * len(title))
    axes = _axes(title, "", "", across, each * len(rows) + 0.4)
    axes.set_anchor("NW")  # under the beginning of the title
    axes.imshow(sheet, cmap="gray", vmin=0, vmax=255)
    places = [(height - 1) / 2 + row * (height + gap) for row in range(len(rows))]
    _names(axes.yaxis, places, shown)
    axes.set(xticks=[])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return _save(axes, path)


def _shortened(name: str) -> str:
    return name if len(name) <= _MOST_LETTERS else name[: _MOST_LETTERS - 1] + "…"


def capacity_figures(trace: CapacityTrace, names: list[str], folder: Path) -> dict[str, Path]:
    """Tokens per expert, and average capacity per step and per class where it varies at all."""
    if trace.is_even:
        return {"tokens_per_expert": _per_expert(trace, folder / "tokens_per_expert.png")}
    return {
        "capacity_per_step": _per_step(trace, folder / "capacity_per_step.png"),
        "capacity_per_class": _per_class(trace, names, folder / "capacity_per_class.png"),
        "tokens_per_expert": _per_expert(trace, folder / "tokens_per_expert.png"),
    }


def _per_step(trace: CapacityTrace, path: Path) -> Path:
    capacity = trace.per_step.tolist()
    axes = _axes(
        "Compute along sampling", "sampling step, 0 = pure noise", "average capacity, 1 = dense"
    )
    axes.axhline(1.0, color=_GREY, linewidth=1, linestyle="--")
    axes.plot(capacity, color=_BLUE, **_marker(len(capacity)))
    axes.margins(y=0.15)
    _count_steps(axes)
    return _save(axes, path)


def _per_class(trace: CapacityTrace, names: list[str], path: Path) -> Path:
    """Points hung on the line of a dense model; blue costs more, orange less."""
    seen = (trace.class_images > 0).nonzero()[:, 0]
    order = seen[trace.per_class[seen].argsort(descending=True, stable=True)]
    half = _MOST_CLASSES // 2
    title = f"Compute by class: the {half} costliest and {half} cheapest of {len(order)}"
    if len(order) <= _MOST_CLASSES:
        title = "Compute by class, the costliest on top"
    else:
        order = torch.cat([order[:half], order[-half:]])
    capacity, places = trace.per_class[order].tolist(), range(len(order))
    axes = _axes(
        title, "average capacity, 1 = dense", "class", height=max(2.4, 0.24 * len(order) + 1.0)
    )
    axes.axvline(1.0, color=_GREY, linewidth=1, linestyle="--")
    colours = [_BLUE if value >= 1 else _ORANGE for value in capacity]
    axes.hlines(places, 1.0, capacity, colors=colours, linewidth=1.5)
    axes.scatter(capacity, places, c=colours, s=40)
    _names(axes.yaxis, places, [names[label] for label in order.tolist()])
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.1, y=1 / (1 + len(order)))
    axes.invert_yaxis()
    return _save(axes, path)


def _per_expert(trace: CapacityTrace, path: Path) -> Path:
    """Shares on a scale from none over an even share (white) to the largest, or twice even."""
    from matplotlib.colors import TwoSlopeNorm

    share = 100 * trace.per_expert.numpy()
    even = 100 / share.shape[1]
    layers, experts = share.shape
    largest = max(2 * even, float(share.max()))
    scale = TwoSlopeNorm(even, 0, largest)
    title = "Tokens each expert takes, % of all"
    width, height = max(5.0, 0.5 * experts + 1.6), 0.45 * layers + 1.4
    axes = _axes(title, "expert", "MoE layer", width, height)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    picture = axes.imshow(share, aspect="auto", cmap="PuOr", norm=scale)
    axes.set(xticks=range(experts), yticks=range(layers))
    if share.size <= _MOST_CELLS:
        for (layer, expert), value in np.ndenumerate(share):
            colour = "white" if abs(scale(value) - 0.5) > 0.3 else "black"
            text = f"{value:.1f}" if value < 99.95 else "100"
            axes.text(expert, layer, text, ha="center", va="center", color=colour, fontsize=9)
    bar = axes.figure.colorbar(picture)
    bar.set_ticks([0, even, largest], labels=["none", f"even, {even:.3g}", f"{largest:.3g}"])
    bar.outline.set_visible(False)
    return _save(axes, path)
