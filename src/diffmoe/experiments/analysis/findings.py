"""All that one analysis found."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from diffmoe.analysis import (
    BatchOfOne,
    ClassCapacity,
    Cost,
    ExpertUse,
    PredictorCheck,
    RegionCapacity,
    RegionPictures,
    StepCapacity,
    TokenMaps,
    WordCapacity,
    check_predictor,
)
from diffmoe.data import word_class
from diffmoe.experiments.analysis.batch_of_one import batch_of_one
from diffmoe.experiments.analysis.cost import cost_of
from diffmoe.experiments.analysis.draw import Drawn
from diffmoe.experiments.analysis.regions import regions_of
from diffmoe.experiments.analysis.timing import seconds_per_image
from diffmoe.experiments.draw import Drawing
from diffmoe.experiments.scoring import Reference
from diffmoe.experiments.turns import Turns
from diffmoe.sampling import decode

__all__ = ["Findings", "find"]

_ALIKE = 1e-6  # capacities that differ by less differ by rounding
_EXTREMES = 4  # classes shown at either end
_CHECKED = 1024  # images noised again
_MANY = 64  # images of the larger pool, and of the larger batch that is timed
_COMPARED = 192  # images drawn by each way of the batch of one
_ROUNDS, _SECONDS = 5, 60.0  # of timing: rounds, and the time after which none begins

ClassSamples = tuple[str, float, UInt8[np.ndarray, "n C H W"]]


@dataclass(frozen=True)
class Findings:
    """What does not apply to a model is None."""

    steps: StepCapacity | None
    classes: ClassCapacity | None
    hardest: list[ClassSamples]
    easiest: list[ClassSamples]
    words: WordCapacity | None
    regions: RegionCapacity | None
    region_pictures: RegionPictures | None
    maps: TokenMaps | None
    experts: ExpertUse | None
    predictor: PredictorCheck | None
    batch: BatchOfOne | None
    cost: Cost


def find(
    drawing: Drawing, drawn: Drawn, turns: Turns, reference: Reference, progress: bool
) -> Findings:
    """The findings of a sampling run that was drawn, and what is measured beside it."""
    trace, config = drawn.trace, drawing.run.config
    names = [*turns.prompts] or reference.names(config.model.num_classes)
    classes = trace.class_capacity(names)
    shown = trace.maps.shown.tolist()
    hardest, easiest = _extremes(classes, drawn, drawing)
    regions, region_pictures = regions_of(drawing, drawn, turns)
    kind_of = word_class if turns.scenes else None
    return Findings(
        steps=trace.step_capacity(),
        classes=classes,
        hardest=hardest,
        easiest=easiest,
        words=trace.word_capacity(turns.prompts, kind_of) if turns.prompts else None,
        regions=regions,
        region_pictures=region_pictures,
        maps=trace.token_maps(
            names, drawn.pictures(drawing, shown), lambda latents: _decoded(drawing, latents)
        )
        if shown
        else None,
        experts=trace.expert_use(),
        predictor=_checked(drawing, drawn, progress),
        batch=batch_of_one(
            drawing.run,
            drawing.codec,
            reference,
            drawing.settings,
            conditions=drawing.conditions,
            count=_compared(drawing),
            many=_MANY,
            progress=progress,
        ),
        cost=_cost(drawing, drawn),
    )


def _compared(drawing: Drawing) -> int:
    """Images of each way of the batch of one: fewer of a small run, or where each takes long."""
    slow = drawing.settings.sampler == "dopri5"
    return _MANY if slow else min(_COMPARED, max(_MANY, len(drawing.labels)))


def _decoded(drawing: Drawing, latents: Tensor) -> Tensor:
    return torch.cat(list(decode(drawing.codec, latents, drawing.device)))


def _extremes(
    classes: ClassCapacity | None, drawn: Drawn, drawing: Drawing
) -> tuple[list[ClassSamples], list[ClassSamples]]:
    """The classes that got most, from the top, and least, from the bottom up, with samples.

    Empty where classes do not differ, or so few are known that both ends would overlap.
    """
    if classes is None or np.ptp(classes.leading[classes.images > 0]) < _ALIKE:
        return [], []
    known = [c for c in range(len(classes.names)) if drawn.of_class(c)]
    order = sorted(known, key=lambda label: (-classes.leading[label], label))
    each = min(_EXTREMES, len(order) // 2)

    def samples(label: int) -> ClassSamples:
        images = drawn.pictures(drawing, drawn.of_class(label))
        return classes.names[label], float(classes.leading[label]), images

    return [samples(c) for c in order[:each]], [samples(c) for c in order[len(order) - each :]]


def _checked(drawing: Drawing, drawn: Drawn, progress: bool) -> PredictorCheck | None:
    """The check on samples, with the thresholds that this run would need for the nominal work.

    Those are of the demand: a run by the router's affinity tells nothing of them.
    """
    images = drawn.latents[:_CHECKED].float()
    found = check_predictor(
        drawing.run.model,
        drawing.run.config,
        images,
        torch.tensor(drawn.labels[:_CHECKED]),
        conditions=drawing.conditions,
        progress=progress,
    )
    if found is None or drawn.demand is None or drawing.settings.selection == "gate":
        return found
    offset = drawn.demand.offset("expert", found.nominal)
    return replace(found, sampling=drawn.demand.thresholds(offset).numpy())


def _cost(drawing: Drawing, drawn: Drawn) -> Cost:
    trace, settings, run = drawn.trace.capacity, drawing.settings, drawing.run
    timings = seconds_per_image(
        run,
        settings,
        sorted({1, min(_MANY, settings.batch)}),
        _ROUNDS,
        budget=_SECONDS,
        conditions=drawing.conditions,
        thresholds=drawing.calibration and drawing.calibration.thresholds,
    )
    return cost_of(
        run,
        settings,
        trace.average,
        evaluations_per_image=drawn.evaluations,
        timings=timings,
    )
