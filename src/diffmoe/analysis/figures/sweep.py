"""The figure of a sweep: what settings of the dial cost and what they give (Table 10, Fig. 7)."""

import math
import statistics
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from diffmoe.analysis.figures.canvas import (
    BLUE,
    CAPACITY_LABEL,
    GREY,
    ORANGE,
    Axes,
    add_foot,
    legend_below,
    logarithmic,
    save_both,
    sheet,
)
from diffmoe.analysis.findings import SweepPoint

__all__ = ["pareto_front", "sweep_figure"]

# What a kind of setting is called, its colour and its shape.
_KINDS = {
    "target": ("capacity asked for", BLUE, "o"),
    "constant": ("one threshold for all", ORANGE, "s"),
    "ema": ("tracked thresholds", "black", "*"),
    "search": ("threshold of the interval search", "#009E73", "^"),
}
_AREAS, _ORDER = (
    {"*": 130, "^": 60},
    {"*": 5, "^": 4},
)  # what marks one place of the crowd is on top
_FENCE = 8  # quartile distances above the upper quartile that a point may lie and set the scale
_QUALITIES: dict[str, Callable[[SweepPoint], float | None]] = {
    "Frechet distance to training images": lambda point: point.frechet,
    "denoising loss": lambda point: point.loss,
}
_COSTS: dict[str, Callable[[SweepPoint], float]] = {
    f"realised {CAPACITY_LABEL}": lambda point: point.capacity,
    "time per image, ms": lambda point: 1000 * point.seconds,
}
_DIRECTIONS = ((0, 1), (1, 0.6), (1, -0.6), (0, -1), (-1, 0.6), (-1, -0.6), (1, 0), (-1, 0))
_DISTANCES = (9, 18, 30, 44)  # points between a mark and its name


class Place(NamedTuple):
    """Where a point stands: at the upper edge if its quality is beyond the scale."""

    x: float
    y: float
    point: SweepPoint
    beyond: float | None = None  # its quality, if it is beyond


def sweep_figure(points: list[SweepPoint], path: Path, *, command: str = "") -> list[Path]:
    """Quality against realised capacity and against time per image; empty without a quality."""
    rows = {name: of for name, of in _QUALITIES.items() if any(map(_is_known, map(of, points)))}
    if not rows:
        return []
    heights = [4.0, 2.8][: len(rows)]
    panels = sheet(
        "What compute buys",
        "stepped line: the best at that cost or less; open mark: beyond the scale;"
        " bars: half the quartile distance of the time",
        rows=len(rows),
        columns=2,
        width=9.6,
        height=sum(heights) + 1.3,
        height_ratios=heights,
        sharex="col",
        sharey="row",
    )
    for (row, quality), (column, cost) in product(enumerate(rows), enumerate(_COSTS)):
        axes = panels[row, column]
        _draw(axes, _places(points, _COSTS[cost], rows[quality]), timed=column == 1)
        _limit(axes, points, rows[quality])
        axes.set(xlabel=cost * (row == len(rows) - 1), ylabel=quality * (column == 0))
    for column, of in enumerate(_COSTS.values()):
        _scale(panels[0, column], [place.x for place in _places(points, of, of)])
    _name_kinds(panels[:, 0])
    figure = panels[0, 0].figure
    add_foot(figure, command)
    figure.draw_without_rendering()  # names find their places once the layout is known
    _name_points(panels, points, list(rows.values()))
    return save_both(figure, path)


def _is_known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _places(
    points: list[SweepPoint],
    cost: Callable[[SweepPoint], float],
    quality: Callable[[SweepPoint], float | None],
) -> list[Place]:
    """Where the points stand that can stand somewhere."""
    found = [(cost(point), quality(point), point) for point in points]
    known = [(x, y, p) for x, y, p in found if _is_known(x) and y is not None and _is_known(y)]
    highest, edge = _scale_of([y for _, y, _ in known])
    return [Place(x, y, p) if y <= highest else Place(x, edge, p, y) for x, y, p in known]


def _scale_of(values: list[float]) -> tuple[float, float]:
    """The highest value that sets the scale, and where those beyond it are drawn.

    One setting that is far worse than the others would press these into a line.
    """
    if len(values) < 4:
        return math.inf, math.inf
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    highest = max(value for value in values if value <= upper + _FENCE * (upper - lower))
    return highest, highest + 0.15 * (highest - min(values))


def _limit(
    axes: Axes, points: list[SweepPoint], quality: Callable[[SweepPoint], float | None]
) -> None:
    """End the axis above the edge where something is beyond the scale."""
    places = _places(points, lambda _: 0.0, quality)
    if any(place.beyond is not None for place in places):
        low, edge = min(place.y for place in places), max(place.y for place in places)
        axes.set_ylim(low - 0.12 * (edge - low), edge + 0.12 * (edge - low))


def pareto_front(places: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those of the places (cost, value) that nothing as cheap or cheaper is below, by cost."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(places):
        if not front or y < front[-1][1]:
            front.append((x, y))
    return front


def _draw(axes: Axes, places: list[Place], *, timed: bool) -> None:
    """Points by kind over the step line of the best of them."""
    pairs = [(place.x, place.y if place.beyond is None else place.beyond) for place in places]
    front = pareto_front(pairs)
    look = {"color": GREY, "linewidth": 1.2, "drawstyle": "steps-post", "zorder": 1}
    if front:
        far = max(place.x for place in places)
        axes.plot([*(x for x, _ in front), far], [*(y for _, y in front), front[-1][1]], **look)
    for place in places:
        _mark(axes, place, timed=timed)
    axes.margins(0.12)


def _mark(axes: Axes, place: Place, *, timed: bool) -> None:
    """One point, and how far its times spread."""
    point = place.point
    label, colour, shape = _KINDS.get(point.kind, (point.kind, GREY, "D"))
    if timed:
        spread = 1000 * point.spread
        axes.errorbar(place.x, place.y, xerr=spread, ecolor=colour, elinewidth=1, capsize=2)
    axes.scatter(
        place.x,
        place.y,
        s=_AREAS.get(shape, 46),
        facecolor=colour if place.beyond is None else "white",
        marker=shape,
        label=label if place.beyond is None else None,
        edgecolor="white" if place.beyond is None else colour,
        linewidth=0.6 if place.beyond is None else 1.2,
        zorder=_ORDER.get(shape, 3),
    )


def _scale(axes: Axes, costs: list[float]) -> None:
    """A logarithmic axis where costs span more than a decade."""
    if costs and min(costs) > 0 and max(costs) > 10 * min(costs):
        logarithmic(axes, "x", [0.9 * min(costs), 1.15 * max(costs)])


def _name_kinds(panels: Any) -> None:
    """A legend below with each kind once."""
    pairs = [axes.get_legend_handles_labels() for axes in panels]
    kinds = {name: mark for marks, names in pairs for mark, name in zip(marks, names, strict=True)}
    legend_below(panels[0].figure, list(kinds.values()), list(kinds), 4)


def _name_points(panels: Any, points: list[SweepPoint], rows: list[Any]) -> None:
    """A short name beside each point."""
    for (row, quality), (column, cost) in product(enumerate(rows), enumerate(_COSTS.values())):
        _label(panels[row, column], _places(points, cost, quality))


def _label(axes: Axes, places: list[Place]) -> None:
    """Names where they cover neither a point nor another name, a thin line to those further off."""
    marks = [axes.transData.transform((place.x, place.y)) for place in places]
    taken = [_box(axes, mark, 8, 8) for mark in marks]
    for mark, place in zip(marks, places, strict=True):
        text = _short(place.point)
        if place.beyond is not None:
            text += f" \u2191 {place.beyond:.3g}"
        offset = _free_offset(axes, mark, 5.2 * len(text), taken)
        look: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8, "parse_math": False}
        look["bbox"] = {"color": "white", "alpha": 0.7, "pad": 0.3, "linewidth": 0}
        if max(map(abs, offset)) > 18 + 2.6 * len(text):
            look["arrowprops"] = {"arrowstyle": "-", "color": GREY, "linewidth": 0.5}
        note = axes.annotate(text, (place.x, place.y), offset, textcoords="offset points", **look)
        note.set_in_layout(False)


def _short(point: SweepPoint) -> str:
    """What was asked for: a capacity, a threshold, or the thresholds as tracked."""
    if point.setting is None:
        return "tracked" if point.kind == "ema" else point.kind
    return f"{point.setting:g}" if point.kind == "target" else f"γ {point.setting:.3g}"


def _box(axes: Axes, centre: Any, width: float, height: float) -> tuple[float, float, float, float]:
    """Left, bottom, right and top, in pixels, of something that is so many points large."""
    scale = axes.figure.dpi / 72
    x, y = scale * width / 2, scale * height / 2
    return centre[0] - x, centre[1] - y, centre[0] + x, centre[1] + y


def _free_offset(axes: Axes, mark: Any, width: float, taken: list[Any]) -> tuple[float, float]:
    """The nearest offset in points at which a name is free, which is taken from then on."""
    scale, frame = axes.figure.dpi / 72, axes.get_window_extent()
    best: tuple[float, tuple[float, float], Any] | None = None
    for distance, (right, up) in product(_DISTANCES, _DIRECTIONS):
        offset = (right * (distance + width / 2), up * distance)
        centre = (mark[0] + scale * offset[0], mark[1] + scale * offset[1])
        box = _box(axes, centre, width, 10)
        covered = sum(_shared(box, other) for other in taken) + _outside(box, frame)
        if best is None or covered < best[0]:
            best = (covered, offset, box)
    assert best is not None
    taken.append(best[2])
    return best[1]


def _shared(one: Any, other: Any) -> float:
    """Area that two boxes share."""
    x = min(one[2], other[2]) - max(one[0], other[0])
    y = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, x) * max(0.0, y)


def _outside(box: Any, frame: Any) -> float:
    """How far a box stands out of the axes, weighed as if all of it were covered."""
    beyond = max(frame.x0 - box[0], box[2] - frame.x1, frame.y0 - box[1], box[3] - frame.y1)
    return 100.0 * max(0.0, beyond)
