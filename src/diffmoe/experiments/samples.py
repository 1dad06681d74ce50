"""Draw images from a run, in parts that any number of processes share, and write them."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from diffmoe.analysis import CapacityTrace
from diffmoe.checkpoint import Parts
from diffmoe.config import SamplingConfig
from diffmoe.device import is_first_process
from diffmoe.errors import StoppedError
from diffmoe.experiments.draw import Drawing, Wanted
from diffmoe.experiments.order import Order
from diffmoe.sampling import MACHINE, DrawnPart, ImageRequest, Output, Prepared, output_of

__all__ = ["Sampled", "draw_samples", "sample"]

_LOG = logging.getLogger(__name__)
_PART = 128  # images of a part, about
_LAYOUT = 2  # of what lies in a part: those of another are not gone on with
_TRACE, _DRAWN_BY = "trace.safetensors", "machine.json"


@dataclass(frozen=True)
class Sampled:
    """Where the images are."""

    path: Path
    sheet: Path
    count: int

    @property
    def lines(self) -> list[str]:
        """The same in words."""
        return [f"{self.count} images: {self.path}", f"all at a glance: {self.sheet}"]


def sample(path: Path | str, labels: Sequence[int], seeds: Sequence[int], **options: Any) -> Path:
    """Draw images as `draw_samples` does; returns where they are."""
    return draw_samples(path, labels, seeds, **options).path


def draw_samples(
    path: Path | str,
    labels: Sequence[int],
    seeds: Sequence[int],
    *,
    settings: SamplingConfig,
    prompts: Sequence[str] = (),
    law: str = "given",
    out: Path | None = None,
    format: str | Output | None = None,
    device: str = "auto",
    capture: bool = False,
    progress: bool = True,
) -> Sampled:
    """Write an image for each (label, seed), a sheet of the first and how they were made.

    Labels are classes, or numbers of `prompts` for a run that reads captions.

    Without `out` they lie in the run, named after what was asked for, so that the same command
    writes the same place; where they lie already, nothing is done. Parts that a stopped job has
    drawn are not drawn again. `law` says where the labels are from, for the record. Raises
    StorageError, before anything is drawn, if `out` holds anything but samples, ConfigError if
    another request is half done there, StoppedError if it is interrupted.
    """
    output, shown = output_of(format, out), progress and is_first_process()
    wanted = Wanted.checked(path, labels, seeds, settings, device, capture, prompts)
    stamp = wanted.claimed_stamp
    if stamp is not None:
        order = Order(output, wanted, stamp, out)
        if order.is_over:
            _LOG.info("nothing left to do: %s", order.target)
            return _sampled(order)
        order.refuse()
    elif out is not None:
        output.refuse(out)
    drawing = wanted.ready(shown)
    order = Order(output, wanted, drawing.stamp, out)  # of the weights that were read
    order.refuse()
    return _Work(order, drawing, law).done(shown)


def _sampled(order: Order) -> Sampled:
    target = order.target
    return Sampled(target, order.output.sheet(target), len(order.wanted.labels))


@dataclass(frozen=True)
class _Work:
    """An order that this process and any others do together."""

    order: Order
    drawing: Drawing
    law: str

    @cached_property
    def asked(self) -> ImageRequest:
        """The images, with their prompts or the names of all classes: numbers for want of names."""
        prompts = self.drawing.wanted.prompts
        if prompts:
            return ImageRequest(self.drawing.labels, self.drawing.seeds, prompts, captioned=True)
        known = self.drawing.run.folder.class_names
        classes = self.drawing.run.config.model.num_classes
        names = [*known, *map(str, range(len(known), classes))]
        return ImageRequest(self.drawing.labels, self.drawing.seeds, names)

    @property
    def size(self) -> int:
        """Images of a part, whole batches: so its images do not depend on who draws them."""
        batch = self.drawing.settings.batch
        return min(batch * max(1, round(_PART / batch)), len(self.asked))

    @property
    def key(self) -> dict[str, Any]:
        """All that the parts depend on."""
        found = {"calibration": self.drawing.stamp.get("calibration")}
        return self.order.key | found | {"part_images": self.size, "part_layout": _LAYOUT}

    def images_of(self, part: int) -> range:
        """The numbers of the images of a part."""
        return range(part * self.size, min((part + 1) * self.size, len(self.asked)))

    def count(self, parts: Iterable[int]) -> int:
        """The number of images of some parts."""
        return sum(len(self.images_of(part)) for part in parts)

    def done(self, progress: bool) -> Sampled:
        """Draw what nobody else draws, until all is there and put together."""
        folder, number = self.order.parts, -(-len(self.asked) // self.size)
        written = self.order.output.is_written
        with Parts.opened(
            folder, number, self.key, lambda: written(self.order.target, self.order.name)
        ) as parts:
            if parts is None:
                return _sampled(self.order)
            try:
                self._draw(parts, progress)
                parts.end(lambda: self._assemble(parts), lambda: self.order.is_written)
                return _sampled(self.order)
            except KeyboardInterrupt as stop:
                raise StoppedError(
                    f"interrupted: {self.count(parts.done)} of {len(self.asked)} images are there",
                    where=str(folder),
                    remedy="the same command goes on from there",
                ) from stop

    def _draw(self, parts: Parts, progress: bool) -> None:
        """Draw part after part, together with other processes, until all are there."""
        ready, total = self.drawing.prepared(), len(self.asked)
        done = self.count(parts.done)
        with tqdm(
            total=total, initial=done, desc="sample", unit="image", disable=not progress
        ) as bar:

            def tell(_: int) -> None:
                bar.n = self.count(parts.done)  # others draw too
                bar.refresh()

            parts.fill(lambda part, aside: self._draw_part(part, aside, ready, bar), tell)

    def _draw_part(self, part: int, aside: Path, ready: Prepared, bar: Any) -> None:
        trace, images, found = self._trace(), self.images_of(part), []
        for latents in ready.batches(self.asked.labels, self.asked.seeds, images, trace):
            found.append(self.drawing.decoded(latents))
            bar.update(len(latents))
        self.order.output.write_part(aside, torch.cat(found), images, self.asked)
        (aside / _DRAWN_BY).write_text(json.dumps(_machine(self.drawing.stamp)))
        if trace is not None:
            save_file(trace.tensors, aside / _TRACE)

    def _trace(self) -> CapacityTrace | None:
        """What counts the cost of a part; to look on would keep every record of a captured one."""
        run = self.drawing.run
        if not run.model.moe_layers or self.drawing.wanted.capture:
            return None
        classes = len(self.drawing.wanted.prompts) or None
        return CapacityTrace.empty(run.config, self.drawing.settings.steps, classes=classes)

    def _assemble(self, parts: Parts) -> None:
        drawn = [DrawnPart(parts.path(part), self.images_of(part)) for part in range(parts.count)]
        facts = self._capacity(drawn)
        made = _drawn_by(self.drawing.stamp, drawn)
        said = made | facts | {"labels": self.law, "request": self.order.name}
        self.order.output.assemble(self.order.target, drawn, self.asked, said)

    def _capacity(self, parts: Sequence[DrawnPart]) -> dict[str, float]:
        """What the images cost: their capacity, and what a cap left out; nothing if not known."""
        files, trace = [part.folder / _TRACE for part in parts], self._trace()
        if trace is None or not all(file.exists() for file in files):
            return {}
        for file in files:
            trace.add(CapacityTrace.of_tensors(load_file(file)))
        return _told(trace, self.drawing.settings, bool(self.drawing.wanted.prompts))


def _machine(stamp: Mapping[str, Any]) -> dict[str, Any]:
    """What a stamp says of the machine."""
    return {name: stamp[name] for name in MACHINE if name in stamp}


def _drawn_by(stamp: dict[str, Any], parts: Sequence[DrawnPart]) -> dict[str, Any]:
    """A stamp with the machine that drew the parts, which need not be the one that ends the work.

    Where several did they are listed as `machines`.
    """
    found: list[dict[str, Any]] = []
    for part in parts:
        machine = json.loads((part.folder / _DRAWN_BY).read_text())
        if machine not in found:
            found.append(machine)
    rest = {name: value for name, value in stamp.items() if name not in MACHINE}
    return rest | (found[0] if len(found) == 1 else {"machines": found})


def _told(trace: CapacityTrace, settings: SamplingConfig, prompted: bool) -> dict[str, float]:
    """The facts of a trace, which are also logged."""
    over = "captions of the training" if prompted else "all classes"
    asked = "" if settings.capacity is None else f", {settings.capacity:g} asked for over {over}"
    _LOG.info("capacity %.3f in these images%s", trace.average, asked)
    facts = {"capacity": trace.average}
    if settings.max_capacity is not None:
        facts["dropped"] = trace.dropped_share
        share = 100 * trace.dropped_share
        _LOG.info("max_capacity left out %.2f %% of what experts asked for", share)
    return facts
