"""Figures of the capacity predictor against the top-K of training pools."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from diffmoe.analysis.figures.canvas import (
    BLUE,
    CAPACITY_LABEL,
    COLOURS,
    GREY,
    LEVEL_LABEL,
    ORANGE,
    Axes,
    centred,
    colour_bar,
    heat_map,
    layers_named,
    legend_below,
    publish,
    series,
    sheet,
    spread_evenly,
    varies,
)
from diffmoe.analysis.figures.ticks import (
    number_ticks,
)
from diffmoe.analysis.findings import PredictorCheck

__all__ = [
    "calibration_figure",
    "predictor_quality_figure",
    "realised_capacity_figure",
    "reliability_figure",
    "thresholds_figure",
]


def predictor_quality_figure(found: PredictorCheck, path: Path, *, command: str = "") -> list[Path]:
    """Precision and recall of the tracked thresholds by noise level, for each layer."""
    parts = {
        "precision\nof rows above the threshold, those in the top-K": found.precision,
        "recall\nof rows in the top-K, those above the threshold": found.recall,
    }
    if not any(np.isfinite(values).any() for values in parts.values()):
        return []
    title = "How well the predictor finds the top-K of a training pool"
    subtitle = f"{found.images:,} images noised again, thresholds as tracked in training"
    high = _height(found.precision) + 0.2
    low = _lower_end(parts.values())
    panels = sheet(title, subtitle, columns=2, sharey=True, width=8.6, height=high)[0]
    for axes, (name, values) in zip(panels, parts.items(), strict=True):
        axes.set_title(name, loc="left", fontsize="medium")
        picture = _draw_levels(axes, values, found.level, cmap="cividis", vmin=low, vmax=1)
    panels[1].set_ylabel("")
    label = f"share of rows, from {low:.2f}" if low else "share of rows"
    if picture is None:
        margin = 0.04 * (1 - low)
        panels[0].set(ylabel=label, ylim=(low - margin, 1 + margin))
    _finish(panels, picture, label)
    return publish(panels[0].figure, path, command)


def realised_capacity_figure(found: PredictorCheck, path: Path, *, command: str = "") -> list[Path]:
    """Capacity by the tracked thresholds at each noise level against the capacity trained at."""
    if not np.isfinite(found.realised).any():
        return []
    axes = sheet(
        "Capacity that the tracked thresholds give",
        f"trained at {found.nominal:g}; {found.images:,} images noised again",
        width=6.8,
        height=_height(found.realised) - 0.2,
    )[0, 0]
    scale = centred(found.nominal, found.realised)
    picture = _draw_levels(axes, found.realised, found.level, cmap="PuOr", norm=scale)
    if picture is None:
        axes.axhline(found.nominal, color=GREY, linewidth=1, linestyle="--", label="trained at")
        axes.set_ylabel(CAPACITY_LABEL)
        axes.margins(y=0.15)
    _finish([axes], picture, f"capacity; white = {found.nominal:g}, trained at")
    return publish(axes.figure, path, command)


def calibration_figure(found: PredictorCheck, path: Path, *, command: str = "") -> list[Path]:
    """Distance of predictions from what happened, by layer and noise level."""
    error = found.calibration_error
    if not np.isfinite(error).any():
        return []
    layers, levels = error.shape
    axes = sheet(
        "Calibration error of the predictor",
        f"mean |predicted - observed share in the top-K|; {found.images:,} images noised again",
        width=max(6.0, 0.55 * levels + 1.8),
        height=0.32 * layers + 2.0,
    )[0, 0]
    scale = {"vmin": 0.0, "vmax": max(0.01, float(np.nanmax(error)))}
    text = "{:.3f}" if levels <= 16 else ""
    picture = heat_map(axes, error, text=text, cmap="cividis", **scale)
    _label_edges(axes, found.level, layers)
    colour_bar(axes.figure, picture, "calibration error")
    return publish(axes.figure, path, command)


def _lower_end(values: Iterable[Float[np.ndarray, "L Q"]]) -> float:
    """A twentieth below all shares: from 0 on, shares near 1 would be one flat line."""
    least = min(float(np.nanmin(part, initial=1.0)) for part in values)
    return max(0.0, math.floor(20 * (least - 0.01)) / 20)


def _height(values: Float[np.ndarray, "L Q"]) -> float:
    return max(4.2, 0.22 * len(values) + 2.2)


def _draw_levels(
    axes: Axes, values: Float[np.ndarray, "L Q"], edges: Float[np.ndarray, "Q+1"], **look: Any
) -> Any:
    """A line for each layer by noise level; the picture of a heat map where layers are many."""
    if len(values) > len(COLOURS):
        picture = heat_map(axes, values, **look)
        _label_edges(axes, edges, len(values))
        return picture
    middle = (edges[:-1] + edges[1:]) / 2
    for layer, line in enumerate(values):
        axes.plot(middle, line, label=f"MoE layer {layer}", markersize=5, **series(layer))
    axes.set(xlabel=LEVEL_LABEL, xlim=(edges[-1], edges[0]))  # as sampling goes
    return None


def _label_edges(axes: Axes, edges: Float[np.ndarray, "Q+1"], layers: int) -> None:
    """Layers down, and noise levels at the borders of the cells."""
    shown = spread_evenly(len(edges), 6)
    axes.set_xticks([place - 0.5 for place in shown], [f"{edges[place]:.2g}" for place in shown])
    number_ticks(axes.yaxis, layers)
    axes.invert_xaxis()  # as sampling goes
    axes.set(xlabel=LEVEL_LABEL, ylabel="MoE layer")


def _finish(panels: Any, picture: Any, label: str) -> None:
    """What tells layers apart: a legend beside lines, a scale beside heat maps."""
    figure = panels[0].figure
    if picture is not None:
        colour_bar(figure, picture, label, ax=list(panels))
        return
    handles, names = panels[0].get_legend_handles_labels()
    legend_below(figure, handles, names, 4)


def reliability_figure(found: PredictorCheck, path: Path, *, command: str = "") -> list[Path]:
    """Predicted against observed shares in the top-K, a panel for each of a few layers."""
    layers = len(found.predicted)
    chosen = spread_evenly(layers, 6)
    if not np.isfinite(found.predicted[chosen] + found.observed[chosen]).any():
        return []
    columns = min(3, len(chosen))
    rows = -(-len(chosen) // columns)
    panels = sheet(
        "Reliability of the predictor",
        f"{layers_named(chosen, layers)}; area of a point: share of rows; dashed: as predicted",
        rows=rows,
        columns=columns,
        width=max(4.6, 2.7 * columns),
        height=2.7 * rows + 1.3,
        sharex=True,
        sharey=True,
    )
    for axes in panels.flat[len(chosen) :]:
        axes.set_visible(False)
    for axes, layer in zip(panels.flat, chosen, strict=False):
        _draw_reliability(axes, found, layer)
    panels[0, 0].figure.supylabel("observed share in the top-K", fontsize="medium")
    for column in range(columns):
        last = (len(chosen) - 1 - column) // columns
        panels[last, column].set_xlabel("prediction")
        panels[last, column].tick_params(labelbottom=True)
    return publish(panels[0, 0].figure, path, command)


def _draw_reliability(axes: Axes, found: PredictorCheck, layer: int) -> None:
    predicted, observed = found.predicted[layer], found.observed[layer]
    known = np.isfinite(predicted) & np.isfinite(observed)
    area = 12 + 280 * np.nan_to_num(found.weight[layer][known])
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    axes.plot(predicted[known], observed[known], color=BLUE, linewidth=0.8)
    axes.scatter(predicted[known], observed[known], s=area, color=BLUE, alpha=0.8, linewidth=0)
    axes.set_title(f"MoE layer {layer}", loc="left", fontsize="medium")
    axes.set(xlim=(-0.06, 1.06), ylim=(-0.06, 1.06), aspect="equal")


def thresholds_figure(found: PredictorCheck, path: Path, *, command: str = "") -> list[Path]:
    """Tracked thresholds against thresholds measured anew, a point for each expert."""
    parts = [
        ("over training pools", found.training, BLUE, "o", "none"),
        ("over the sampling run", found.sampling, ORANGE, "^", ORANGE),
    ]
    known = [part for part in parts if np.isfinite(part[1] + found.tracked).any()]
    if not known:
        return []
    every = np.concatenate([found.tracked, *(part[1] for part in known)])
    low, high = float(np.nanmin(every)), float(np.nanmax(every))
    margin = 0.06 * (high - low) if varies(every) else 0.05
    ends = (low - margin, high + margin)
    axes = sheet("Thresholds tracked in training and measured anew", width=5.4, height=5.6)[0, 0]
    axes.plot(ends, ends, color=GREY, linewidth=1, linestyle="--", label="no difference")
    for name, values, colour, shape, face in known:
        look = {"marker": shape, "facecolors": face, "edgecolors": colour, "alpha": 0.8, "s": 34}
        axes.scatter(found.tracked, values, label=name, **look)
    axes.set(xlabel="tracked threshold", ylabel="threshold measured anew")
    axes.set(xlim=ends, ylim=ends, aspect="equal")
    handles, names = axes.get_legend_handles_labels()
    legend_below(axes.figure, handles, names, 3)
    return publish(axes.figure, path, command)
