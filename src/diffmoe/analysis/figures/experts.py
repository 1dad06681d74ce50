"""Figures of what experts do: their share, their overlap, what they specialise in."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from diffmoe.analysis.figures.canvas import (
    BLUE,
    ORANGE,
    Axes,
    colour_bar,
    heat_map,
    layers_named,
    publish,
    sheet,
    spread_evenly,
    varies,
    write_in_cell,
)
from diffmoe.analysis.figures.ticks import (
    number_ticks,
)
from diffmoe.analysis.findings import ExpertUse

__all__ = [
    "draw_shares",
    "expert_information_figure",
    "expert_overlap_figure",
    "expert_share_figure",
    "shares_size",
]

_MOST_CELLS = 480  # experts with their share in figures
_NONE = 1e-6  # overlaps and bits below are zero but for rounding


def shares_size(share: Float[np.ndarray, "L E"]) -> tuple[float, float]:
    """Width and height in inches of a figure of shares."""
    layers, experts = share.shape
    return max(5.0, 0.5 * experts + 1.6), 0.45 * layers + 1.4


def draw_shares(axes: Axes, share: Float[np.ndarray, "L E"], dead: Bool[np.ndarray, "L E"]) -> None:
    """Shares on a scale from none over an even share (white) to the largest, or twice even."""
    from matplotlib.colors import TwoSlopeNorm

    percent: Any = 100 * share
    layers, experts = share.shape
    even = 100 / experts
    largest = max(2 * even, float(np.nanmax(percent, initial=0)))
    picture = heat_map(axes, percent, cmap="PuOr", norm=TwoSlopeNorm(even, 0, largest))
    number_ticks(axes.xaxis, experts, 64)
    number_ticks(axes.yaxis, layers, 64)
    for (layer, expert), value in np.ndenumerate(percent):
        text = "×" if dead[layer, expert] else f"{value:.1f}" if value < 99.95 else "100"
        if (dead[layer, expert] or share.size <= _MOST_CELLS) and np.isfinite(value):
            write_in_cell(axes, picture, (expert, layer), text, value)
    bar = colour_bar(axes.figure, picture)
    bar.set_ticks([0, even, largest], labels=["none", f"even, {even:.3g}", f"{largest:.3g}"])


def expert_share_figure(found: ExpertUse, path: Path, *, command: str = "") -> list[Path]:
    """Share of the rows that each expert took, dead experts crossed out."""
    if not varies(found.share):
        return []
    dead = int(found.dead.sum())
    cross = f"; × = dead, at most 1 % of an even share ({dead} of {dead + (~found.dead).sum()})"
    width, height = shares_size(found.share)
    title = "Tokens each expert takes, % of all"
    subtitle = "all steps, conditional branch" + cross * bool(dead)
    axes = sheet(title, subtitle, width=width, height=height + 0.7)[0, 0]
    axes.set(xlabel="expert", ylabel="MoE layer")
    draw_shares(axes, found.share, found.dead)
    return publish(axes.figure, path, command)


def expert_overlap_figure(found: ExpertUse, path: Path, *, command: str = "") -> list[Path]:
    """How far pairs of experts take the same rows, in the first, middle and last layer."""
    layers, experts = found.share.shape
    chosen = spread_evenly(layers, 3)
    overlap = found.overlap[chosen].copy()
    overlap[:, range(experts), range(experts)] = np.nan  # with itself it is 1
    if np.nan_to_num(overlap).max(initial=0) < _NONE:
        return []
    each = max(2.3, 0.19 * experts + 0.7)
    panels = sheet(
        "How far two experts take the same rows",
        f"rows taken by both / rows taken by either; {layers_named(chosen, layers)}",
        columns=len(chosen),
        width=max(4.6, each * len(chosen) + 1.3),
        height=each + 1.4,
    )[0]
    scale = {"vmin": 0.0, "vmax": max(0.01, float(np.nanmax(overlap)))}
    for axes, layer, values in zip(panels, chosen, overlap, strict=True):
        text = "{:.2f}" if experts <= 5 else ""
        picture = heat_map(axes, values, text=text, cmap="cividis", **scale)
        axes.set_aspect("equal")
        axes.set(xlabel="expert", ylabel="expert")
        axes.set_title(f"MoE layer {layer}", fontsize="medium")
        number_ticks(axes.xaxis, experts, 8)
        number_ticks(axes.yaxis, experts, 8)
    figure = panels[0].figure
    colour_bar(figure, picture, "overlap (Jaccard)", ax=list(panels), shrink=0.8)
    return publish(figure, path, command)


def expert_information_figure(found: ExpertUse, path: Path, *, command: str = "") -> list[Path]:
    """What the choice of an expert says about class and noise level, by layer, in bits."""
    parts: list[tuple[str, Any, str, Any]] = [
        (f"of expert and {found.noun}", found.class_information, BLUE, found.class_chance),
        ("of expert and noise level", found.level_information, ORANGE, None),
    ]
    parts = [part for part in parts if np.nan_to_num(part[1]).max(initial=0) >= _NONE]
    if not parts:
        return []
    layers = len(found.share)
    panels = sheet(
        "What experts specialise in",
        "mutual information by MoE layer",
        columns=len(parts),
        width=max(3.4, 0.3 * layers + 1.6) * len(parts),
        height=3.8,
        sharey=True,
    )[0]
    panels[0].set_ylabel("bits")
    for axes, (title, bits, colour, chance) in zip(panels, parts, strict=True):
        axes.bar(range(layers), np.nan_to_num(bits), width=0.6, color=colour)
        if chance is not None:
            axes.hlines(chance, np.arange(layers) - 0.4, np.arange(layers) + 0.4, colors="black")
            title += "\nblack: by chance, labels exchanged"
        axes.set(xlabel="MoE layer")
        axes.tick_params(labelleft=True)
        axes.set_title(title, loc="left", fontsize="medium")
        axes.grid(visible=False, axis="x")
        number_ticks(axes.xaxis, layers)
        room = max(0.8, 1.5 - layers / 2)
        axes.set_xlim(-room, layers - 1 + room)
    return publish(panels[0].figure, path, command)
