"""The figure of a sweep: what settings of the dial cost and what they give (Table 10, Fig. 7)."""

import math
import statistics
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from diffmoe.analysis.figures.boxes import box, outside, segments, shared
from diffmoe.analysis.figures.canvas import (
    BLUE,
    CAPACITY_LABEL,
    GREY,
    ORANGE,
    Axes,
    add_foot,
    legend_below,
    save_both,
    sheet,
)
from diffmoe.analysis.figures.ticks import (
    logarithmic,
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
_AREAS = {"*": 90, "^": 230}
_SIZES = {"ema": 11, "search": 18}  # points that a mark takes
_ORDER = {"*": 5, "^": 6}  # what marks one place of the crowd is on top
_FENCE = 8  # quartile distances above the upper quartile that a point may lie and set the scale
Quality = Callable[[SweepPoint], float | None]
_QUALITIES: dict[str, Quality] = {
    "Frechet distance to training images": lambda point: point.frechet,
    "denoising loss": lambda point: point.loss,
}
_COSTS: dict[str, Callable[[SweepPoint], float]] = {
    f"realised {CAPACITY_LABEL}": lambda point: point.capacity,
    "time per image, ms": lambda point: 1000 * point.seconds,
}
_DIRECTIONS = ((0, 1), (1, 0.6), (1, -0.6), (0, -1), (-1, 0.6), (-1, -0.6), (1, 0), (-1, 0))
_REACH = {"constant": (1, None), "ema": (0, 3), "search": (0, 3)}  # which of the distances
_DISTANCES = (9, 13, 18, 26, 34, 44, 56)  # points between a mark and its name


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
        f"stepped line: the best at that cost or less{_beyond(points, rows)}; {_spread(points)}",
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


def _beyond(points: list[SweepPoint], rows: dict[str, Quality]) -> str:
    """What open marks are, if there are any."""
    places = [place for of in rows.values() for place in _places(points, lambda _: 0.0, of)]
    return "; open: beyond the scale" * any(place.beyond is not None for place in places)


def _spread(points: list[SweepPoint]) -> str:
    """What bars there are on the times."""
    known = [_is_known(point.spread) for point in points]
    if not any(known):
        return "times of one batch each"
    return "bars: half the quartile distance of the time" + ", if known" * (not all(known))


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
    if timed and _is_known(point.spread):
        spread = 1000 * point.spread
        axes.errorbar(place.x, place.y, xerr=spread, ecolor=colour, elinewidth=1, capsize=2)
    inside, around, wide = (colour, "white", 0.6)
    if place.beyond is not None:
        inside, around, wide = ("white", colour, 1.2)
    elif point.kind == "search":  # around the star, with which it often shares its place
        inside, around, wide = ("none", colour, 1.4)
    axes.scatter(
        place.x,
        place.y,
        s=_AREAS.get(shape, 46),
        facecolor=inside,
        marker=shape,
        label=label if place.beyond is None else None,
        edgecolor=around,
        linewidth=wide,
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
    """Capacities asked for, thresholds with a line to each, and what else finds room.

    Names cover neither marks nor the stepped line nor another name where there is a place for them.
    """
    marks = {id(place): axes.transData.transform((place.x, place.y)) for place in places}
    sizes = [_SIZES.get(place.point.kind, 8) for place in places]
    taken = [box(axes, *one) for one in zip(marks.values(), sizes, sizes, strict=True)]
    taken += [part for line in axes.get_lines()[:1] for part in segments(axes, line)]
    for kind in ("target", "constant", "ema", "search"):
        for place in (place for place in places if place.point.kind == kind):
            _note(axes, place, marks[id(place)], taken)


def _note(axes: Axes, place: Place, mark: Any, taken: list[Any]) -> None:
    """The name of one point."""
    text, kind = _short(place.point), place.point.kind
    if place.beyond is not None:
        text += f" \u2191 {place.beyond:.3g}"
    offset = _free_offset(axes, mark, 4.7 * len(text), taken, kind)
    if offset is None:
        return
    look: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8, "parse_math": False}
    look |= {"bbox": {"color": "white", "pad": 0.4, "linewidth": 0}, "zorder": 7}
    colour = ORANGE if kind == "constant" else "black"
    if kind == "constant" or abs(offset[1]) > 18 or abs(offset[0]) > 18 + 2.4 * len(text):
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2}
        look |= {"arrowprops": line}
    look["color"] = colour
    note = axes.annotate(text, (place.x, place.y), offset, textcoords="offset points", **look)
    note.set_in_layout(False)


def _short(point: SweepPoint) -> str:
    """What was asked for: a capacity, a threshold, or the thresholds as tracked."""
    if point.setting is None:
        return "tracked" if point.kind == "ema" else point.kind
    return f"{point.setting:g}" if point.kind == "target" else f"γ {point.setting:.3g}"


def _free_offset(
    axes: Axes, mark: Any, width: float, taken: list[Any], kind: str
) -> tuple[float, float] | None:
    """The nearest offset in points at which a name is free, which is taken from then on.

    Settings asked for get the least covered one where none is free; others get none.
    """
    scale, frame = axes.figure.dpi / 72, axes.get_window_extent()
    best: tuple[float, tuple[float, float], Any] | None = None
    near, far = _REACH.get(kind, (0, None))
    for distance, (right, up) in product(_DISTANCES[near:far], _DIRECTIONS):
        offset = (right * (distance + width / 2), up * distance)
        centre = (mark[0] + scale * offset[0], mark[1] + scale * offset[1])
        here = box(axes, centre, width, 10)
        covered = sum(shared(here, other) for other in taken) + outside(here, frame)
        if best is None or covered < best[0]:
            best = (covered, offset, here)
    if best is None or (best[0] > 0 and kind in ("ema", "search")):
        return None
    taken.append(best[2])
    return best[1]
