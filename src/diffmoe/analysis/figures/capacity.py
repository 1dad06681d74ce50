"""Figures of a trace: where a sampling run spent its compute."""

from pathlib import Path

import numpy as np

from diffmoe.analysis.figures.canvas import CAPACITY_LABEL, STEP_LABEL, plain_axes, save
from diffmoe.analysis.figures.classes import ClassOrder, draw_classes
from diffmoe.analysis.figures.experts import draw_shares, shares_size
from diffmoe.analysis.figures.steps import draw_steps
from diffmoe.analysis.trace import CapacityTrace

__all__ = ["capacity_figures"]


def capacity_figures(
    trace: CapacityTrace, names: list[str], folder: Path, nouns: str = "classes"
) -> dict[str, Path]:
    """Tokens per expert, and average capacity per step and per class where it varies at all.

    Classes are called `nouns` in the figure.
    """
    if trace.is_even:
        return {"tokens_per_expert": _per_expert(trace, folder / "tokens_per_expert.png")}
    return {
        "capacity_per_step": _per_step(trace, folder / "capacity_per_step.png"),
        "capacity_per_class": _per_class(trace, names, folder / "capacity_per_class.png", nouns),
        "tokens_per_expert": _per_expert(trace, folder / "tokens_per_expert.png"),
    }


def _per_step(trace: CapacityTrace, path: Path) -> Path:
    axes = plain_axes("Compute along sampling", STEP_LABEL, CAPACITY_LABEL)
    draw_steps(axes, trace.per_step.tolist())
    return save(axes.figure, path)


def _per_class(trace: CapacityTrace, names: list[str], path: Path, nouns: str) -> Path:
    capacity = trace.per_class.numpy()  # NaN for a class without samples
    order = ClassOrder.of(capacity, nouns)
    size = {"width": 6.4 + order.width, "height": order.height}
    axes = plain_axes(order.title, CAPACITY_LABEL, order.noun, **size)
    draw_classes(axes, order, capacity[order.classes].tolist(), names)
    return save(axes.figure, path)


def _per_expert(trace: CapacityTrace, path: Path) -> Path:
    share = trace.per_expert.numpy()
    title = "Tokens each expert takes, % of all"
    axes = plain_axes(title, "expert", "MoE layer", *shares_size(share))
    draw_shares(axes, share, np.zeros(share.shape, dtype=bool))
    return save(axes.figure, path)
