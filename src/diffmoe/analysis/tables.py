"""Findings as tables in long form, one fact a line, and tables as files."""

import csv
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffmoe.analysis.findings import (
    BatchOfOne,
    ClassCapacity,
    Cost,
    ExpertUse,
    Groups,
    PredictorCheck,
    RegionCapacity,
    Rows,
    StepCapacity,
    SweepPoint,
    TokenMaps,
    WordCapacity,
)
from diffmoe.checkpoint import write_file, write_text

__all__ = ["rows_of", "sweep_rows", "write_json", "write_table"]

_NAN = float("nan")
_DIGITS = 9  # of numbers in a table


def rows_of(finding: object) -> dict[str, Rows]:
    """The tables of a finding by name; what has no value is NaN. Of a sweep see `sweep_rows`."""
    return _TABLES[type(finding)](finding)


def _cells(axes: Sequence[str], **columns: np.ndarray) -> Rows:
    """A line for each cell of arrays of one shape: its place, then its values."""
    shape = next(iter(columns.values())).shape
    values = {name: np.asarray(column).tolist() for name, column in columns.items()}
    lines = []
    for place in np.ndindex(shape):
        line = dict(zip(axes, place, strict=True))
        lines.append(line | {name: _at(column, place) for name, column in values.items()})
    return lines


def _lines(**columns: Any) -> Rows:
    """A line for each place of columns of one length."""
    values = (np.asarray(column).tolist() for column in columns.values())
    return [dict(zip(columns, line, strict=True)) for line in zip(*values, strict=True)]


def _at(values: Any, place: tuple[int, ...]) -> float | int:
    for index in place:
        values = values[index]
    return values


def _known(value: float | None) -> float:
    return _NAN if value is None else value


def _named(**values: float | None) -> Rows:
    """A line for each number that stands alone."""
    return [{"name": name, "value": _known(value)} for name, value in values.items()]


def _steps(found: StepCapacity) -> dict[str, Rows]:
    columns = {"level": found.level, "mean": found.mean, "deviation": found.deviation}
    curve = _cells(["step"], **columns, images=found.images)
    experts = _cells(["step", "layer", "expert"], capacity_of_expert=found.experts)
    return {
        "capacity_by_step": curve,
        "capacity_by_expert_and_step": [
            {"level": float(found.level[line["step"]]), **line} for line in experts
        ],
    }


def _classes(found: ClassCapacity) -> dict[str, Rows]:
    """What each class took; how far to trust it only where some number tells."""
    above = np.full(len(found.images), _NAN) if found.above is None else found.above
    columns = {"images": found.images, "selected": found.selected, "error": found.error}
    lines = _cells([found.noun], **columns, above=above)
    alone = _named(
        stability=found.stability,
        stability_above=found.stability_above,
        agreement=found.agreement,
    )
    classes: Rows = [{"name": name, **line} for name, line in zip(found.names, lines, strict=True)]
    name = f"capacity_by_{found.noun}"
    tables = {name: classes, f"{found.noun}_stability": alone}
    unknown = all(_is_nan(line["value"]) for line in alone)
    return {name: classes} if unknown else tables


def _words(found: WordCapacity) -> dict[str, Rows]:
    words = _grouped("word", found.words)
    if not found.kinds:
        return {"capacity_by_word": words}
    lines: Rows = [{"kind": kind, **line} for kind, line in zip(found.kinds, words, strict=True)]
    return {"capacity_by_word": lines, "capacity_by_word_kind": _grouped("kind", found.by_kind)}


def _grouped(what: str, found: Groups) -> Rows:
    """A line for each group, by its name."""
    columns = {name: value for name, value in vars(found).items() if name != "names"}
    return _lines(**{what: found.names}, **columns)


def _regions(found: RegionCapacity) -> dict[str, Rows]:
    level = np.broadcast_to(found.level, found.by_level.shape)
    levels = {"capacity": found.by_level, "error": found.by_level_error}
    objects = np.broadcast_to(found.objects[:, None], found.region_by_objects.shape)
    parts = {"objects": objects.T, "capacity": found.region_by_objects.T}

    def named(rows: Rows) -> Rows:
        return [line | {"region": found.names[int(line["region"])]} for line in rows]

    return {
        "capacity_by_region": _lines(
            region=found.names,
            patches=found.patches,
            images=found.images,
            capacity=found.capacity,
            error=found.error,
        ),
        "capacity_by_region_and_level": named(_cells(["region", "bin"], level=level, **levels)),
        "capacity_by_objects": _lines(
            objects=found.objects,
            images=found.objects_images,
            capacity=found.by_objects,
            error=found.by_objects_error,
        ),
        "capacity_by_objects_and_region": named(_cells(["region", "place"], **parts)),
    }


def _maps(found: TokenMaps) -> dict[str, Rows]:
    """Experts of each patch by frame, and the one that took it most; a trace holds all of them.

    No expert is named for a patch that none took. Images that an adaptive solver draws reach a
    frame at steps of their own: columns say whose step it is, and that the level is a mean.
    """
    number = _cells(["image", "frame", "token"], experts=found.number)
    most = _cells(
        ["image", "layer", "token"],
        expert=found.share.argmax(axis=2),
        share=found.share.max(axis=2),
        all_experts=found.share.sum(axis=2),
    )
    most = [line if line["share"] else line | {"expert": _NAN} for line in most]
    frames = _cells(["frame"], step_of_first_image=found.steps, mean_level=found.level)
    images: Rows = [
        {"image": image, "label": label, "name": name}
        for image, (label, name) in enumerate(zip(found.labels, found.names, strict=True))
    ]
    return {
        "map_images": images,
        "map_frames": frames,
        "experts_by_token": number,
        "most_frequent_expert_by_token": most,
    }


def _experts(found: ExpertUse) -> dict[str, Rows]:
    return {
        "experts": _cells(["layer", "expert"], share=found.share, dead=found.dead.astype(int)),
        "expert_overlap": _cells(["layer", "expert", "other"], overlap=found.overlap),
        "expert_information": _cells(
            ["layer"],
            **{
                f"{found.noun}_bits": found.class_information,
                f"{found.noun}_bits_by_chance": found.class_chance,
                "level_bits": found.level_information,
            },
        ),
    }


def _predictor(found: PredictorCheck) -> dict[str, Rows]:
    levels = _cells(
        ["layer", "interval"],
        level_from=np.broadcast_to(found.level[:-1], found.precision.shape),
        level_to=np.broadcast_to(found.level[1:], found.precision.shape),
        precision=found.precision,
        recall=found.recall,
        calibration_error=found.calibration_error,
        realised=found.realised,
    )
    bins = {"predicted": found.predicted, "observed": found.observed, "weight": found.weight}
    thresholds = {
        "tracked": found.tracked,
        "training": found.training,
        "sampling": found.sampling,
    }
    return {
        "predictor_by_level": levels,
        "predictor_calibration": _cells(["layer", "bin"], **bins),
        "predictor_thresholds": _cells(["layer", "expert"], **thresholds),
        "predictor": _named(nominal=found.nominal, images=found.images),
    }


def _cost(found: Cost) -> dict[str, Rows]:
    told: Rows = [
        {"name": name, "value": value, "meaning": text} for name, value, text in found.rows
    ]
    return {"cost": told, "cost_numbers": _named(**found.numbers)}


def _variants(found: BatchOfOne) -> dict[str, Rows]:
    return {
        "batch_of_one": [
            {
                "name": one.name,
                "batch": one.batch,
                "images": found.drawn,
                "capacity": one.capacity,
                "change": one.change,
                "agreement": _known(one.agreement),
                "frechet": _known(one.frechet),
            }
            for one in found.variants
        ]
    }


def sweep_rows(points: Sequence[SweepPoint]) -> dict[str, Rows]:
    """The table of a sweep, a line for each setting."""
    lines = [{n: _NAN if v is None else v for n, v in vars(point).items()} for point in points]
    return {"sweep": lines}


_TABLES: dict[type, Callable[[Any], dict[str, Rows]]] = {
    StepCapacity: _steps,
    ClassCapacity: _classes,
    WordCapacity: _words,
    RegionCapacity: _regions,
    TokenMaps: _maps,
    ExpertUse: _experts,
    PredictorCheck: _predictor,
    Cost: _cost,
    BatchOfOne: _variants,
}


def write_table(path: Path, rows: Rows) -> Path:
    """Write a table as CSV, its columns those of the first line; NaN is an empty cell.

    Numbers that are not whole have nine digits: more would tell of rounding. A table without lines
    is an empty file.
    """

    def write(aside: Path) -> None:
        with aside.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(rows[0]) if rows else [], lineterminator="\n")
            if rows:
                writer.writeheader()
            writer.writerows({name: _cell(v) for name, v in line.items()} for line in rows)

    write_file(path, write)
    return path


def _cell(value: str | int | float) -> str | int | float:
    if not isinstance(value, float) or value.is_integer():
        return value
    return "" if math.isnan(value) else float(f"{value:.{_DIGITS}g}")


def _is_nan(value: str | int | float) -> bool:
    return isinstance(value, float) and math.isnan(value)


def write_json(path: Path, content: Any) -> Path:
    """Write tables, or anything made of lists, dictionaries and numbers; NaN is null."""
    write_text(path, json.dumps(_plain(content), indent=2, allow_nan=False) + "\n")
    return path


def _plain(value: Any) -> Any:
    """The same without what JSON has no word for: NaN, infinity and numbers of numpy."""
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
