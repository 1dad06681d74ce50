"""Figures of capacity by class (Fig. 1d, 13, 14)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from diffmoe.analysis.figures.canvas import (
    BLUE,
    CAPACITY_LABEL,
    GREY,
    LETTER,
    ORANGE,
    Axes,
    legend_below,
    publish,
    sheet,
    shortened,
    show_tiles,
    varies,
)
from diffmoe.analysis.figures.ticks import name_ticks, top_ticks
from diffmoe.analysis.findings import ClassCapacity

__all__ = [
    "ClassOrder",
    "class_capacity_figure",
    "class_curve_figure",
    "class_samples_figure",
    "draw_classes",
]

MOST_CLASSES = 40  # classes with a point of capacity

ClassSamples = tuple[str, float, UInt8[np.ndarray, "n C H W"]]  # name, capacity, images


@dataclass(frozen=True)
class ClassOrder:
    """The classes a figure shows, the costliest first, and where on its axis they stand."""

    classes: list[int]
    places: list[int]
    seen: int
    nouns: str = "classes"  # or prompts

    @classmethod
    def of(cls, capacity: Float[np.ndarray, "classes"], nouns: str = "classes") -> "ClassOrder":
        """All classes with a capacity; of many the costliest and the cheapest, apart by a gap."""
        seen = np.flatnonzero(np.isfinite(capacity))
        order = seen[np.argsort(-capacity[seen], kind="stable")].tolist()
        half = MOST_CLASSES // 2
        if len(order) <= MOST_CLASSES:
            return cls(order, list(range(len(order))), len(order), nouns)
        places = [*range(half), *range(half + 1, 2 * half + 1)]
        return cls(order[:half] + order[-half:], places, len(order), nouns)

    @property
    def title(self) -> str:
        """What the figure shows."""
        if len(self.classes) == self.seen:
            return f"Compute by {self.noun}, the costliest on top"
        half = MOST_CLASSES // 2
        return f"Compute by {self.noun}: the {half} costliest and {half} cheapest of {self.seen}"

    @property
    def noun(self) -> str:
        """What one of them is called."""
        return "class" if self.nouns == "classes" else self.nouns.removesuffix("s")

    @property
    def letters(self) -> int:
        """Of a name, at most."""
        return 32 if self.noun == "class" else 48

    @property
    def width(self) -> float:
        """Inches of the figure more than it has for names of classes."""
        return 0.0 if self.noun == "class" else 1.5

    @property
    def height(self) -> float:
        """Inches that the rows of the figure take."""
        return max(2.4, 0.24 * len(self.classes) + 1.0)


def draw_classes(axes: Axes, order: ClassOrder, capacity: list[float], names: list[str]) -> None:
    """Points hung on a dense model, or on their mean if that is far; blue costs more than it."""
    base = _base(capacity)
    axes.axvline(base, color=GREY, linewidth=1, linestyle="--")
    if base != 1:
        top_ticks(axes, [base], [f"mean {base:.2f}"])
    colours = [BLUE if value >= base else ORANGE for value in capacity]
    axes.hlines(order.places, base, capacity, colors=colours, linewidth=1.5)
    axes.scatter(capacity, order.places, c=colours, s=40, zorder=3)
    shown = [shortened(names[label], order.letters) for label in order.classes]
    name_ticks(axes.yaxis, order.places, shown)
    if order.seen > len(order.classes):
        between = f"{order.seen - len(order.classes)} {order.nouns} between"
        place = (0.5, MOST_CLASSES // 2)
        look: dict[str, Any] = {"ha": "center", "va": "center", "color": GREY, "fontsize": "small"}
        look["bbox"] = {"color": "white", "pad": 2}
        axes.text(*place, between, transform=axes.get_yaxis_transform(), **look)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.1, y=1 / (1 + len(order.classes)))
    axes.invert_yaxis()


def _base(capacity: list[float]) -> float:
    """1, a dense model, or the mean where 1 is further from the classes than they are wide."""
    low, high = min(capacity, default=1.0), max(capacity, default=1.0)
    reach = high - low
    return 1.0 if low - reach <= 1 <= high + reach else float(np.mean(capacity))


def class_capacity_figure(found: ClassCapacity, path: Path, *, command: str = "") -> list[Path]:
    """Capacity of each class with its standard error; empty where classes do not differ."""
    if not varies(found.leading):
        return []
    order = ClassOrder.of(found.leading, found.nouns)
    capacity = found.leading[order.classes]
    high = order.height + 0.9
    axes = sheet(order.title, _subtitle(found), width=7.0 + order.width, height=high)[0, 0]
    axes.set(xlabel=_label(found), ylabel=found.noun)
    error = _error(found)[order.classes]
    if np.isfinite(error).any():
        bars = {"fmt": "none", "ecolor": "black", "elinewidth": 0.9, "capsize": 2.5}
        axes.errorbar(capacity, order.places, xerr=np.nan_to_num(error), **bars)
    draw_classes(axes, order, capacity.tolist(), found.names)
    if _differs(found):
        _draw_above(axes, found, order)
    return publish(axes.figure, path, command)


def _is_levelled(found: ClassCapacity) -> bool:
    """Whether a cap levels what experts took, so that rows above the threshold lead."""
    return found.leading is not found.selected


def _label(found: ClassCapacity) -> str:
    return "rows above the threshold, 1 = dense" if _is_levelled(found) else CAPACITY_LABEL


def _error(found: ClassCapacity) -> Float[np.ndarray, "classes"]:
    """Standard errors of what is drawn; they are known of what experts took alone."""
    return np.full_like(found.error, np.nan) if _is_levelled(found) else found.error


def _draw_above(axes: Axes, found: ClassCapacity, order: ClassOrder) -> None:
    """The second definition as hollow diamonds, with a legend that tells the two apart."""
    assert found.above is not None
    look: dict[str, Any] = {"marker": "D", "s": 26, "facecolors": "white", "edgecolors": "black"}
    hollow = axes.scatter(found.above[order.classes], order.places, zorder=4, **look)
    filled = axes.scatter([], [], c=BLUE, s=40)
    names = ["rows that experts took", "rows above the threshold"]
    handles = [filled, hollow]
    legend_below(axes.figure, handles, names, 2)


def _differs(found: ClassCapacity) -> bool:
    """Whether there is a second definition of the capacity to show, with other numbers."""
    if found.above is None or _is_levelled(found):
        return False
    return varies([0.0, *(found.above - found.selected)])


def _subtitle(found: ClassCapacity) -> str:
    """What the marks are, and the rank correlations that are known."""
    levelled = _is_levelled(found)
    parts = ["a cap levels what experts took; order by rows above the threshold\n"] * levelled
    parts += ["bars: standard error"] * bool(np.isfinite(_error(found)).any())
    halves = [_rank("", found.stability_above if levelled else found.stability)]
    if _differs(found):
        halves.append(_rank("(above the threshold ", found.stability_above, ")"))
    known = [half for half in halves if half]
    if known:
        parts.append("rank correlation of halves of the draws " + " ".join(known))
    if _differs(found) and _rank("", found.agreement):
        parts.append(_rank("of the definitions ", found.agreement))
    return "; ".join(parts).replace("\n; ", "\n")


def _rank(what: str, value: float | None, after: str = "") -> str:
    return f"{what}{value:.2f}{after}" if value is not None and np.isfinite(value) else ""


def class_curve_figure(found: ClassCapacity, path: Path, *, command: str = "") -> list[Path]:
    """Capacities of all classes, sorted (Fig. 1d); empty unless they are too many for points."""
    leading = found.leading
    seen = np.flatnonzero(np.isfinite(leading))
    if len(seen) <= MOST_CLASSES or not varies(leading):
        return []
    order = seen[np.argsort(-leading[seen], kind="stable")]
    rank, capacity = np.arange(1, len(order) + 1), leading[order]
    error = np.nan_to_num(_error(found)[order])
    axes = sheet(f"Compute of {len(order):,} {found.nouns}, sorted", _subtitle(found))[0, 0]
    axes.set(xlabel=f"{found.noun}, the costliest first", ylabel=_label(found))
    if _base(capacity.tolist()) == 1:
        axes.axhline(1.0, color=GREY, linewidth=1, linestyle="--")
    if _differs(found) and found.above is not None:
        label = "rows above the threshold, in the same order"
        axes.plot(rank, found.above[order], ".", color=ORANGE, markersize=3, label=label)
    band = {"color": BLUE, "alpha": 0.25, "linewidth": 0}
    axes.fill_between(rank, capacity - error, capacity + error, **band)
    axes.plot(rank, capacity, color=BLUE, linewidth=2, label="rows that experts took")
    if _differs(found):
        axes.legend(frameon=False)
    axes.margins(x=0.02)
    return publish(axes.figure, path, command)


def class_samples_figure(
    hardest: list[ClassSamples],
    easiest: list[ClassSamples],
    path: Path,
    *,
    nouns: str = "classes",
    command: str = "",
) -> list[Path]:
    """Samples of the costliest classes over those of the cheapest (Fig. 13, 14)."""
    blocks = {"most compute": hardest, "least compute": easiest}
    blocks = {title: block for title, block in blocks.items() if block}
    if not blocks:
        return []
    columns = max(len(images) for block in blocks.values() for _, _, images in block)
    shape = next(iter(blocks.values()))[0][2].shape
    each = 0.75 if shape[-1] <= 64 else 1.2  # inches
    letters = max(len(shortened(name)) for block in blocks.values() for name, _, _ in block)
    rows = [len(block) for block in blocks.values()]
    panels = sheet(
        f"Samples of the {nouns} that cost most and least",
        "beside each name its average capacity; samples not chosen",
        rows=len(blocks),
        width=max(5.0, 0.6 + LETTER * max(letters, 8) + each * columns),
        height=each * sum(rows) + 0.4 * len(rows) + 0.9,
        height_ratios=rows,
    )[:, 0]
    for axes, (title, block) in zip(panels, blocks.items(), strict=True):
        axes.set_title(title, loc="left", fontsize="medium", color=GREY)
        _draw_samples(axes, block, columns)
    return publish(panels[0].figure, path, command)


def _draw_samples(axes: Axes, block: list[ClassSamples], columns: int) -> None:
    """Rows of samples beside name and capacity, rows with fewer filled up with white."""
    tiles = []
    for _, _, images in block:
        white = np.full((columns - len(images), *images.shape[1:]), 255, dtype=np.uint8)
        tiles += [images, white]
    gap = max(1, tiles[0].shape[-1] // 6)
    places, _ = show_tiles(axes, torch.from_numpy(np.concatenate(tiles)), columns, gap)
    axes.set_anchor("NW")
    axes.set(xticks=[])
    names = [f"{shortened(name)}\n{capacity:.3f}" for name, capacity, _ in block]
    name_ticks(axes.yaxis, places, names)
