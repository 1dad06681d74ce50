"""Figures of capacity along sampling (Fig. 1c, Fig. 12)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffmoe.analysis.figures.canvas import (
    BLUE,
    CAPACITY_LABEL,
    GREY,
    STEP_LABEL,
    Axes,
    centred,
    colour_bar,
    heat_map,
    layers_named,
    marker,
    publish,
    sheet,
    spread_evenly,
    varies,
)
from diffmoe.analysis.figures.ticks import (
    count_steps,
    level_ticks,
    number_ticks,
)
from diffmoe.analysis.findings import StepCapacity

__all__ = ["draw_steps", "expert_steps_figure", "step_capacity_figure"]


def step_capacity_figure(found: StepCapacity, path: Path, *, command: str = "") -> list[Path]:
    """Capacity of each step with the spread between images; empty where it never varies."""
    if not varies(found.mean) and not varies([0.0, *found.deviation]):
        return []
    title = "Compute along sampling"
    subtitle = "mean ± one standard deviation of images, conditional branch"
    axes = sheet(title, subtitle)[0, 0]
    axes.set(xlabel=STEP_LABEL, ylabel=CAPACITY_LABEL)
    low, high = found.mean - found.deviation, found.mean + found.deviation
    steps = np.arange(len(found.mean))
    if len(steps) > 1:
        axes.fill_between(steps, low, high, color=BLUE, alpha=0.2, linewidth=0)
    else:  # a band of one step has no area
        axes.vlines(steps, low, high, colors=BLUE, alpha=0.4, linewidth=4)
        axes.set_xlim(-0.5, 0.5)
    draw_steps(axes, found.mean.tolist())
    level_ticks(axes, found.level)
    return publish(axes.figure, path, command)


def draw_steps(axes: Axes, capacity: list[float]) -> None:
    """The line of capacities by step over the dashed line of a dense model."""
    axes.axhline(1.0, color=GREY, linewidth=1, linestyle="--")
    axes.plot(capacity, color=BLUE, **marker(len(capacity)))
    axes.margins(y=0.15)
    count_steps(axes)
    if len(capacity) == 1:
        axes.set_xticks([0])


def expert_steps_figure(
    found: StepCapacity, path: Path, *, layers: Sequence[int] | None = None, command: str = ""
) -> list[Path]:
    """Capacity of each expert and step in the first, middle and last layer, or in `layers`.

    Empty where all experts take the same at every step.
    """
    count, experts = found.experts.shape[1:]
    chosen = list(layers) if layers is not None else spread_evenly(count, 3)
    shown = found.experts[:, chosen]
    if not varies(shown):
        return []
    each = max(1.3, 0.17 * experts + 0.5)
    title = "Capacity of each expert along sampling"
    panels = sheet(
        title,
        f"{layers_named(chosen, count)}; 1 = an expert's share of a dense model",
        rows=len(chosen),
        width=6.8,
        height=each * len(chosen) + 1.5,
        sharex=True,
    )[:, 0]
    scale = centred(1.0, shown)
    for axes, layer, values in zip(panels, chosen, shown.transpose(1, 2, 0), strict=True):
        picture = heat_map(axes, values, cmap="PuOr", norm=scale)
        axes.set_ylabel(f"expert, layer {layer}")
        number_ticks(axes.yaxis, experts, 8)
        axes.tick_params(length=2)
    count_steps(panels[-1])
    panels[-1].set_xlabel(STEP_LABEL)
    level_ticks(panels[0], found.level)
    figure = panels[0].figure
    colour_bar(figure, picture, "capacity of the expert, 1 = even", ax=list(panels))
    return publish(figure, path, command)
