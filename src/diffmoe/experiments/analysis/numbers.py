"""The numbers at the head of an analysis: name, value and what it means."""

import math
from collections.abc import Iterator

import numpy as np

from diffmoe.analysis import (
    BatchOfOne,
    CapacityTrace,
    ClassCapacity,
    ExpertUse,
    PredictorCheck,
    RegionCapacity,
    WordCapacity,
)
from diffmoe.experiments.analysis.draw import Drawn
from diffmoe.experiments.analysis.findings import Findings
from diffmoe.experiments.draw import Drawing

__all__ = ["numbers_of"]

Number = tuple[str, str, str]

_RELIABLE = 0.95  # rank correlation of two samplings that counts as the same order


def numbers_of(drawing: Drawing, drawn: Drawn, found: Findings) -> list[Number]:
    """What the figures say, in short; what does not apply is left out."""
    numbers: list[Number] = []
    if found.steps is not None:
        numbers += _capacity(drawing, drawn.trace.capacity)
    if found.classes is not None:
        numbers += _classes(found.classes)
    if found.words is not None:
        numbers += _words(found.words)
    if found.regions is not None:
        numbers += _regions(found.regions)
    if found.experts is not None:
        numbers += _experts(found.experts, found.classes)
    if found.predictor is not None:
        numbers += _predictor(found.predictor)
    if found.batch is not None:
        numbers += _batch(found.batch)
    numbers += [row for row in found.cost.rows if row[0] in ("activated parameters", "evaluation")]
    return numbers + [row for row in found.cost.rows if row[0].startswith("seconds")]


def _capacity(drawing: Drawing, trace: CapacityTrace) -> Iterator[Number]:
    meaning = "average over steps, layers and all branches evaluated; 1 = dense"
    if drawing.settings.capacity is not None:
        meaning += f"; {drawing.settings.capacity:g} was asked for"
    yield "capacity", f"{trace.average:.3f}", meaning
    yield (
        "capacity, conditional branch",
        f"{trace.conditional:.3f}",
        "the average of the figures, without the unconditional branch that guidance adds",
    )
    if trace.dropped:
        meaning = "of what experts asked for, above max_capacity, lowest demand first"
        yield "dropped", f"{trace.dropped_share:.2%}", meaning


def _classes(found: ClassCapacity) -> Iterator[Number]:
    seen = np.flatnonzero(found.images)
    capacity = found.leading[seen]
    if capacity.max() - capacity.min() < 1e-6:
        return
    noun = found.noun
    most, least = seen[capacity.argmax()], seen[capacity.argmin()]
    meaning = f"lowest {noun} {found.names[least]}, highest {noun} {found.names[most]}"
    if found.leading is not found.selected:
        meaning += "; of rows above the threshold, as max_capacity levels what experts take"
    if np.isfinite(found.error[seen]).any():
        meaning += f", standard error {np.nanmedian(found.error[seen]):.3f}"
    yield f"capacity by {noun}", f"{capacity.min():.3f} to {capacity.max():.3f}", meaning
    if math.isfinite(found.stability):
        yield f"order of {found.nouns}", f"{found.stability:.2f}", _trust(found, seen)
    elif np.median(found.images[seen]) < 2:
        yield (
            f"order of {found.nouns}",
            "unknown",
            f"one draw a {noun} tells no {noun} from another; draw more",
        )


def _trust(found: ClassCapacity, seen: np.ndarray) -> str:
    """What the correlation of halves says of the whole, by Spearman and Brown's formula."""
    draws, half = float(np.median(found.images[seen])), found.stability
    said = "rank correlation between two halves of the draws"
    if not 0 < half < 1:
        return said
    whole = 2 * half / (1 + half)
    said += (
        f"; another run of {draws:g} draws a {found.noun} would agree with this one by {whole:.2f}"
    )
    if whole >= _RELIABLE:
        return said
    factor = _RELIABLE * (1 - whole) / (whole * (1 - _RELIABLE))
    return f"{said}, one of {math.ceil(factor * draws)} by {_RELIABLE}"


def _words(found: WordCapacity) -> Iterator[Number]:
    known = np.flatnonzero(np.isfinite(found.words.error))
    if len(known) < 2:
        return
    capacity, error = found.words.capacity, found.words.error
    most, least = known[capacity[known].argmax()], known[capacity[known].argmin()]
    low, high = (f"{found.words.names[i]} (± {error[i]:.3f})" for i in (least, most))
    meaning = f"lowest {low}, highest {high}; images whose prompt has the word"
    yield "capacity by word", f"{capacity[least]:.3f} to {capacity[most]:.3f}", meaning


def _regions(found: RegionCapacity) -> Iterator[Number]:
    known = [i for i in range(len(found.names)) if found.images[i]]
    value = " / ".join(f"{found.capacity[i]:.3f}" for i in known)
    errors = " / ".join(f"{found.error[i]:.3f}" for i in known)
    names = " / ".join(found.names[i] for i in known)
    yield "capacity by region", value, f"{names}; standard errors over images {errors}"


def _experts(found: ExpertUse, classes: ClassCapacity | None) -> Iterator[Number]:
    dead = int(found.dead.sum())
    yield "dead experts", f"{dead} of {found.dead.size}", "take at most 1 % of an even share"
    if np.isfinite(found.class_information).any():
        yield (
            f"expert and {found.noun}",
            f"{np.nanmean(found.class_information):.4f} bits",
            f"mutual information, mean over layers; by chance {np.nanmean(found.class_chance):.4f}",
        )
        yield (
            "expert and noise level",
            f"{np.nanmean(found.level_information):.4f} bits",
            "mutual information, mean over layers",
        )


def _predictor(found: PredictorCheck) -> Iterator[Number]:
    if not np.isfinite(found.precision).any():
        return
    yield (
        "predictor",
        f"{np.nanmean(found.precision):.1%} / {np.nanmean(found.recall):.1%}",
        "precision and recall of the top-K of training pools, mean over layers and noise levels, on"
        f" {found.images} samples noised again; calibration error"
        f" {np.nanmean(found.calibration_error):.3f}",
    )


def _batch(found: BatchOfOne) -> Iterator[Number]:
    for name in dict.fromkeys(variant.name for variant in found.variants):
        own = sorted((v for v in found.variants if v.name == name), key=lambda v: v.batch)
        if math.isfinite(own[0].change):
            what = "pool" if len(own) > 1 else "batch"
            how = "top-K of the pool" if name == "static" else "tracked thresholds"
            meaning = f"rms change of an image from a {what} of {own[-1].batch} to one of 1; {how}"
            yield f"batch of one, {name}", f"{own[0].change:.3f}", meaning
