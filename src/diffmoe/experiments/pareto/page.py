"""A sweep as a folder: the page, the figure, and the same numbers for programs."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffmoe.analysis import (
    Panel,
    SweepPoint,
    Table,
    sweep_figure,
    sweep_rows,
    write_report,
    write_table,
)
from diffmoe.checkpoint import LoadedRun
from diffmoe.experiments.page import describe
from diffmoe.experiments.pareto.interval import Found
from diffmoe.experiments.place import results_folder

__all__ = ["RECORD", "Qualities", "point_lines", "write_sweep"]

RECORD = "sweep.json"  # lists the files beside it, so that a later sweep knows them for its own
_TABLE, _PAGE, _FIGURE = "sweep.csv", "report.html", "figures/sweep"
_ENOUGH = 1000  # images from which on the bias of a Frechet distance is small
_LEVELS = {
    "global": "of the model on average",
    "layer": "of each layer",
    "expert": "of each expert",
}
_HEADERS = ("setting", "C_avg", "ms/image", "spread", "loss", "Frechet", "agreement")


@dataclass(frozen=True)
class Qualities:
    """What the quality of a point is made of."""

    loss: str  # what the denoising loss is, or why there is none
    unscored: str  # why samples are not scored, empty where they are


def write_sweep(
    folder: Path,
    run: LoadedRun,
    points: Sequence[SweepPoint],
    found: Found | None,
    qualities: Qualities,
    facts: dict[str, Any],
) -> Path:
    """Write the folder of a sweep in one rename; returns its page."""
    record = {
        **facts,
        "points": [_plain(asdict(point)) for point in points],
        "search": None if found is None else asdict(found),
        "qualities": asdict(qualities),
    }
    with results_folder(folder, RECORD, record) as aside:
        write_table(aside / _TABLE, sweep_rows(points)["sweep"])
        figures = sweep_figure(list(points), aside / _FIGURE, command=facts["command"])
        write_report(
            aside / _PAGE,
            title=f"Sweep of {run.folder.path.resolve().name}",
            summary=_summary(run, facts["stamp"], len({point.name for point in points})),
            numbers=_numbers(points, qualities, found, facts),
            panels=_panels(figures, points, found, facts),
            stamp=facts["stamp"],
            command=facts["command"],
        )
    return folder / _PAGE


def _plain(point: dict[str, Any]) -> dict[str, Any]:
    """JSON has no word for what is no number."""
    bad = {name for name, v in point.items() if isinstance(v, float) and not math.isfinite(v)}
    return {name: None if name in bad else value for name, value in point.items()}


def _summary(run: LoadedRun, made: dict[str, Any], points: int) -> str:
    sampling = made["sampling"]
    steps = f"{sampling['steps']} steps" if made["evaluations"] else "steps of its own choice"
    shown = "captions of the training" if run.config.model.reads_text else "classes"
    return (
        f"{describe(run)}, {run.step} steps of training. {points} settings of the compute dial drew"
        f" the same {made['count']} images each ({shown} in turn, seeds {made['seeds'][0]} to"
        f" {made['seeds'][1]}): {steps} of {sampling['sampler']}, guidance"
        f" {sampling['guidance']:g}, selection {sampling['selection']}, batches of"
        f" {sampling['batch']}."
    )


def _numbers(
    points: Sequence[SweepPoint], qualities: Qualities, found: Found | None, facts: dict[str, Any]
) -> list[tuple[str, str, str]]:
    """What was measured and how, and the result of the search."""
    made = facts["stamp"]
    few = f"; biased: use {_ENOUGH:,} or more" if made["count"] < _ENOUGH else ""
    unscored = qualities.unscored and f"not scored: {qualities.unscored}"
    machine = f"{made['device_name']}, {made['threads']} thread{'s' * (made['threads'] != 1)}"
    alone = all(math.isnan(point.spread) for point in points)
    timed = "one batch each: times are not compared" if alone else "median over batches"
    distance = f"of {made['count']} samples to the training images{few}"
    share = "share of samples that a classifier of the training images reads as the class asked for"
    rows = [
        ("C_avg", "", "realised capacity, all branches evaluated; 1 = the work of a dense model"),
        ("time", machine, f"{timed}; decoding left out: {facts['timed']}"),
        ("denoising loss", "", qualities.loss),
        ("Frechet distance", "", unscored or distance),
        ("agreement", "", unscored or share),
    ]
    if found is not None:
        rows.append(("interval search", f"gamma {found.gamma:g}", found.reason))
    return rows


def _panels(
    figures: Sequence[Path],
    points: Sequence[SweepPoint],
    found: Found | None,
    facts: dict[str, Any],
) -> list[Panel]:
    panels = []
    if figures:
        panels.append(Panel("Quality against compute", figures[0], _caption(points, facts)))
    panels.append(
        Panel(
            "All settings",
            None,
            "In order of realised capacity; spread is half the distance between the quartiles of"
            " the time, which one batch does not tell.",
            Table(_HEADERS, [_cells(point) for point in _by_capacity(points)]),
            data=[_TABLE, RECORD],
        )
    )
    return panels if found is None else [*panels, _search_panel(found)]


def _caption(points: Sequence[SweepPoint], facts: dict[str, Any]) -> str:
    caption = (
        "Blue: capacities asked for, by thresholds that were calibrated for them"
        f" ({_LEVELS[facts['level']]}). Orange: one threshold for all experts and layers. The star:"
        " the thresholds tracked in training. Lower is better; every setting drew the same labels"
        " from the same noise."
    )
    if any(point.frechet is not None for point in points):
        caption += (
            " Differences of the Frechet distance below the noise of"
            f" {facts['stamp']['count']} samples mean little: the stepped line is not exact."
        )
    return caption


def _search_panel(found: Found) -> Panel:
    rows = [
        [f"{step['gamma']:g}", _number(step.get("capacity")), _number(step.get("loss"), 5)]
        for step in found.steps
    ]
    return Panel(
        "Interval search",
        None,
        "What was measured in turn: the capacity of thresholds by sampling a few images, until the"
        " smallest with C_avg <= 1 is known within 0.5 %; then the denoising loss of thresholds"
        f" above it. Chosen: {found.gamma:g} ({found.reason}).{_explained(found)}",
        Table(("gamma", "C_avg", "loss"), rows),
    )


def _explained(found: Found) -> str:
    """What the reason of a search that knew the loss means, in a sentence."""
    tried = sum("loss" in step for step in found.steps)
    if not tried:
        return ""
    edge = ' "at the budget" is the smallest of them, which spends the most.'
    return (
        f" The denoising loss was measured at {tried} threshold{'s' * (tried != 1)}, from the"
        " smallest within the budget (C_avg <= 1) up, and none of them that keeps it has a lower"
        " one" + (f";{edge}" if "at the budget" in found.reason else ".")
    )


def _by_capacity(points: Sequence[SweepPoint]) -> list[SweepPoint]:
    return sorted(points, key=lambda point: point.capacity)


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _cells(point: SweepPoint) -> list[str]:
    """A point as words, in the order of the headers."""
    return [
        f"{point.name} (search)" if point.kind == "search" else point.name,
        _number(point.capacity),
        f"{1000 * point.seconds:.3g}",
        "-" if math.isnan(point.spread) else f"{1000 * point.spread:.2g}",
        _number(point.loss, 5),
        _number(point.frechet, 4),
        "" if point.agreement is None else f"{point.agreement:.1%}",
    ]


def point_lines(points: Sequence[SweepPoint]) -> list[str]:
    """The points in columns, by realised capacity; what is not known is left out."""
    rows = [list(_HEADERS), *(_cells(point) for point in _by_capacity(points))]
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    wide = [max(map(len, column)) for column in columns]
    lines = zip(*columns, strict=True)
    return [
        "  ".join([line[0].ljust(wide[0]), *map(str.rjust, line[1:], wide[1:])]) for line in lines
    ]
