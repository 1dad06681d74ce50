"""The one sampling run that an analysis looks at, drawn in parts and kept in part."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from diffmoe.analysis import RoutingTrace
from diffmoe.config import RunConfig, SamplingConfig
from diffmoe.errors import ConfigError
from diffmoe.experiments.draw import Drawing
from diffmoe.experiments.turns import Turns
from diffmoe.sampling import Demand, Moment, decode, generate

__all__ = ["Drawn", "classes_to_show", "draw_traced"]

_ROUNDS = 6  # draws of each class that may be shown
_LEAST_KEPT = 1024  # images the predictor is checked on
_MOST_BYTES = 2**28  # of latents kept, whatever the number of images


@dataclass(frozen=True)
class Drawn:
    """What is left of the images: their routing as sums, and the first of them."""

    trace: RoutingTrace
    demand: Demand | None  # None where no threshold plays a part
    latents: Float[Tensor, "kept C H W"]  # of the first images, in the space of the model
    evaluations: float  # of the network for an image, both branches where both are evaluated
    classes: int  # that have their turn, the first of the model's; or prompts

    @property
    def labels(self) -> list[int]:
        """Classes of the images kept."""
        return [image % self.classes for image in range(len(self.latents))]

    def pictures(self, drawing: Drawing, images: Sequence[int]) -> UInt8[np.ndarray, "n C H W"]:
        """Some of the images kept, decoded."""
        chosen = self.latents[torch.tensor(list(images), dtype=torch.int64)].float()
        return torch.cat(list(decode(drawing.codec, chosen, drawing.device))).numpy()

    def of_class(self, label: int) -> list[int]:
        """The images kept of a class, few of them."""
        if label >= self.classes:
            return []
        return list(range(label, len(self.latents), self.classes))[:_ROUNDS]


def draw_traced(
    drawing: Drawing,
    turns: Turns,
    shown: Sequence[int],
    frames: int,
    progress: bool,
) -> Drawn:
    """Draw the images asked for, of which no more is held than a bounded number."""
    config, count = replace(drawing.run.config, sampling=drawing.settings), len(drawing.labels)
    left, batch = _kept(config, count, turns.count), config.sampling.batch
    trace = RoutingTrace.empty(
        config,
        shown=shown,
        frames=frames,
        classes=len(turns.prompts) or None,
        counted=left if turns.scenes else 0,
    )
    watch = _Watch(trace, _demand(drawing))
    kept: list[Tensor] = []
    with tqdm(total=count, desc="sample", unit="image", disable=not progress) as bar:
        for first in range(0, count, batch):
            part = slice(first, min(first + batch, count))
            latents = generate(
                drawing.run.model,
                config,
                drawing.labels[part],
                drawing.seeds[part],
                conditions=drawing.conditions,
                thresholds=drawing.calibration and drawing.calibration.thresholds,
                callback=watch.from_image(first),
            )
            if left > 0:
                kept.append(latents[:left].half())
                left -= len(latents)
            bar.update(len(latents))
    evaluations = watch.evaluations / count
    return Drawn(watch.trace, watch.demand, torch.cat(kept), evaluations, turns.count)


@dataclass
class _Watch:
    """What looks on while images are drawn."""

    trace: RoutingTrace
    demand: Demand | None
    evaluations: int = 0  # of the network, for one image and one branch

    def from_image(self, first: int) -> Callable[[Moment], None]:
        """A callback for images that count from `first`."""
        tally = self.trace.from_image(first)

        def watch(moment: Moment) -> None:
            tally(moment)
            output = moment.evaluation.output
            self.evaluations += output.branches * len(moment.images)
            if self.demand is not None and not self.demand.knows(output.routing):
                self.demand = None
            if self.demand is not None:
                self.demand.add(output.routing)

        return watch


def _demand(drawing: Drawing) -> Demand | None:
    """A histogram of demands where the settings compare them with thresholds."""
    settings = drawing.settings
    routers = [layer.router for layer in drawing.run.model.moe_layers]
    known = routers and all(router.tracked(settings.selection) is not None for router in routers)
    if not known or settings.selection == "image" or settings.policy == "static":
        return None
    return Demand(drawing.run.model, settings.selection)


def _kept(config: RunConfig, count: int, classes: int) -> int:
    """How many images are kept, the first of them."""
    model = config.model
    wanted = max(_LEAST_KEPT, _ROUNDS * classes)
    room = _MOST_BYTES // (2 * model.channels * model.input_size**2)
    return max(1, min(count, wanted, room))


def classes_to_show(
    config: RunConfig,
    settings: SamplingConfig,
    asked: Sequence[int],
    number: int,
    count: int,
    turns: Turns,
) -> list[int]:
    """The classes whose first image is mapped: those asked for, else `number` evenly spread.

    The first image of class c is image c, as classes have their turn. Raises ConfigError for a
    class that is not drawn.
    """
    drawn = min(turns.count, _kept(replace(config, sampling=settings), count, turns.count))
    for label in asked:
        if not 0 <= label < drawn:
            raise ConfigError(
                f"{turns.noun} {label} has no map: {turns.nouns} 0..{drawn - 1} are drawn and kept",
                remedy="ask for one of these",
            )
    if asked:
        return list(dict.fromkeys(asked))
    return torch.linspace(0, drawn - 1, min(number, drawn)).round().long().tolist()
