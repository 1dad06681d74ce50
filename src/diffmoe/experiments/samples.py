"""Draw images from a run and write them into its folder."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from diffmoe.analysis import CapacityTrace
from diffmoe.config import SamplingConfig
from diffmoe.errors import ConfigError
from diffmoe.experiments.draw import Drawing
from diffmoe.sampling import balanced_labels, refuse_place, write_samples

__all__ = ["request", "sample"]

_LOG = logging.getLogger(__name__)
_COUNT = 16  # images when nothing says how many


def sample(
    path: Path | str,
    labels: Sequence[int],
    seeds: Sequence[int],
    *,
    settings: SamplingConfig,
    out: Path | None = None,
    device: str = "auto",
    capture: bool = False,
    progress: bool = True,
) -> Path:
    """Write one PNG for each (label, seed), a contact sheet and a stamp; returns the folder.

    Without `out` the folder lies in the run and is named after what was asked for, so the same
    command writes the same folder. Raises StorageError, before anything is drawn, if `out` holds
    anything but samples, which writing would remove.
    """
    if out is not None:
        refuse_place(out)
    drawing = Drawing.prepare(path, labels, seeds, settings, device, progress, capture)
    target = out or drawing.run.folder.samples / _name(drawing)
    refuse_place(target)
    images, facts = _drawn(drawing, progress)
    write_samples(target, images, drawing.labels, drawing.seeds, {**drawing.stamp, **facts})
    return target


def _drawn(drawing: Drawing, progress: bool) -> tuple[Tensor, dict[str, float]]:
    """The images, and what they cost: their capacity, and what a cap left out."""
    settings = drawing.settings
    if not drawing.run.model.moe_layers or drawing.capture:
        return drawing.images(progress=progress), {}  # to look on would keep every record
    trace = CapacityTrace.empty(drawing.run.config, settings.steps)
    images = drawing.images(callback=trace, progress=progress)
    asked = (
        "" if settings.capacity is None else f", {settings.capacity:g} asked for over all classes"
    )
    _LOG.info("capacity %.3f in these images%s", trace.average, asked)
    facts = {"capacity": trace.average}
    if settings.max_capacity is not None:
        facts["dropped"] = trace.dropped_share
        share = 100 * trace.dropped_share
        _LOG.info("max_capacity left out %.2f %% of what experts asked for", share)
    return images, facts


def _name(drawing: Drawing) -> str:
    asked = json.dumps([drawing.stamp, drawing.labels, drawing.seeds], default=str).encode()
    return f"step-{drawing.run.step:08d}-{hashlib.sha256(asked).hexdigest()[:8]}"


def request(
    labels: Sequence[int], seeds: Sequence[int], count: int | None, classes: int
) -> tuple[Sequence[int], Sequence[int]]:
    """Labels and seeds to draw: without labels all classes in turn, without seeds 0, 1, 2, ...

    As many as there are labels, or else seeds, or else `count`; raises ConfigError if `count`
    says otherwise.
    """
    given = len(labels) or len(seeds)
    if given and count not in (None, given):
        raise ConfigError(
            f"count {count} does not go with {given} {'labels' if len(labels) else 'seeds'}",
            remedy="leave one of them out",
        )
    number = given or (_COUNT if count is None else count)
    return (
        labels if len(labels) else balanced_labels(number, classes),
        seeds if len(seeds) else range(number),
    )
