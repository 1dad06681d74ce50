"""The compute dial: thresholds under which a sampling run has the average capacity asked for.

They are the tracked thresholds moved by some logits: one number for the model, for each layer or
for each expert. To move them changes the path of an image, and so what later layers and steps see:
the number is found by sampling, counting, and sampling again.
"""

import logging
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from diffmoe.config import Level, RunConfig, SamplingConfig
from diffmoe.errors import ConfigError
from diffmoe.model import DiT, RoutingPlan, capacity_of_images
from diffmoe.randomness import permutation
from diffmoe.sampling.conditions import Conditions, conditions_of
from diffmoe.sampling.demand import Demand
from diffmoe.sampling.generate import Moment, generate
from diffmoe.sampling.solvers import evaluations

__all__ = ["Calibration", "asked_capacity", "find_thresholds"]

_LOG = logging.getLogger(__name__)

_IMAGES, _MOST_IMAGES = 128, 8192  # of a pass: at first, and after doublings
_MOST_PASSES, _WHOLE = 12, 5  # passes of so many images; the first of them take whole steps
_SETTLED: dict[Level, float] = {"global": 0.0025, "layer": 0.005, "expert": 0.02}
_HELD: dict[Level, float] = {"global": 0.006, "layer": 0.012, "expert": 0.04}  # by fresh images
_SURE = 0.0075  # relative standard error of the average that is small enough
_PROMISED = 0.02  # relative error of the average; a larger one is told
_FIRST_SEED = 1 << 62  # far from the seeds of pictures


@dataclass(frozen=True)
class Calibration:
    """Thresholds for policy `target`, and what they gave on images they were not made from."""

    thresholds: Float[Tensor, "L E"]
    asked: float  # average capacity
    realised: float  # of `images` fresh images, all branches evaluated
    error: float  # standard error of `realised`, from how much images differ
    layers: tuple[float, ...]  # the same of each MoE layer
    images: int
    passes: int  # times that images were sampled in all


def asked_capacity(settings: SamplingConfig) -> float:
    """The capacity that settings ask for; raises ConfigError if they ask for none."""
    if settings.capacity is None:
        raise ConfigError(
            "no capacity is asked for", remedy="say settings.at(capacity=0.7); 1 is a dense model's"
        )
    return settings.capacity


def find_thresholds(
    model: DiT,
    config: RunConfig,
    settings: SamplingConfig,
    *,
    classes: int | None = None,
    conditions: Conditions | None = None,
    progress: bool = False,
) -> Calibration:
    """Thresholds that make `settings` realise the capacity they ask for, over all classes.

    Where only the first `classes` of the model were trained, they are all that is sampled;
    `conditions` are the prompts of a model that reads captions.
    Fresh images, twice as many each time, correct them until the average is known to 0.75 % and
    agrees as nearly as that lets one tell, or the next would be more than 8,192. Raises ConfigError
    where no capacity is asked for, or the model's tracked thresholds were never measured.
    """
    conditions = conditions_of(config, conditions)
    classes = conditions.count if classes is None else classes
    search = _Search(model, config, settings, conditions, classes, progress)
    count = _IMAGES if classes > _IMAGES else -(-_IMAGES // classes) * classes  # each as often
    offset, first = search.settled(range(count)), count
    while True:  # fresh images each time, so that their capacity is not what they were fitted to
        fresh = search.counted(offset, range(first, first + count))
        unsure = search.spread / count**0.5 / search.asked
        near = search.error(fresh) <= max(_HELD[search.level], 2 * unsure)
        if (near and unsure <= _SURE) or 2 * count > _MOST_IMAGES:
            break
        first += count  # images seen so far; the newest count by their number
        offset = _mean(offset, fresh.offset(search.level, search.asked), count / first)
        count *= 2
    realised = float(fresh.capacity("global"))
    error = search.spread / count**0.5
    if max(abs(realised - search.asked), 2 * error) > _PROMISED * search.asked:
        said = "capacity %g asked for, %d fresh images had %.4g ± %.2g: images differ too much"
        _LOG.warning(said, search.asked, count, realised, error)
    return Calibration(
        thresholds=fresh.thresholds(offset),
        asked=search.asked,
        realised=realised,
        error=error,
        layers=tuple(fresh.capacity("layer").tolist()),
        images=count,
        passes=search.passes,
    )


def _mean(old: Tensor, new: Tensor, weight: float) -> Tensor:
    """The weighted mean of two offsets; of infinity there is none."""
    mixed = torch.lerp(old, new, weight)
    return torch.where(old.isfinite() & new.isfinite(), mixed, new)


class _Search:
    """Samples of one model and settings, drawn again under other thresholds."""

    def __init__(
        self,
        model: DiT,
        config: RunConfig,
        settings: SamplingConfig,
        conditions: Conditions,
        classes: int,
        progress: bool,
    ) -> None:
        self.model, self.settings, self.progress = model, settings, progress
        self.config = replace(config, sampling=settings)
        self.asked, self.level = asked_capacity(settings), settings.capacity_level
        self.passes, self._conditions = 0, conditions
        self.spread = 0.0  # standard deviation of capacity between the images of the last pass
        self._order = permutation(0, "calibration", classes).tolist()
        tracked = RoutingPlan(selection=settings.selection, policy="ema")
        for layer in model.moe_layers:
            layer.router.check(tracked)

    def settled(self, images: range) -> Float[Tensor, "L E"]:
        """The offset under which `images` have what is asked for, or the nearest to it found."""
        offset = torch.zeros_like(Demand(self.model, self.settings.selection).tracked)
        best = float("inf"), offset
        for number in range(_MOST_PASSES):
            seen = self.counted(offset, images)
            error = self.error(seen)
            best = min(best, (error, offset), key=lambda found: found[0])
            if error <= _SETTLED[self.level]:
                break
            wanted = seen.offset(self.level, self.asked)
            if torch.equal(wanted, offset):
                break
            offset = wanted if number < _WHOLE else torch.lerp(offset, wanted, 0.5)
        return best[1]

    def error(self, seen: Demand) -> float:
        """The largest relative error of the model, a layer or an expert, and of their average."""
        found = (seen.capacity(self.level) / self.asked - 1).abs()
        whole = (seen.capacity("global") / self.asked - 1).abs()
        scale = _HELD[self.level] / _HELD["global"]
        return max(float(found.max()), float(whole) * scale)

    def counted(self, offset: Float[Tensor, "L E"], images: range) -> Demand:
        """What rows demand when `images` are drawn under thresholds moved by `offset`."""
        demand = Demand(self.model, self.settings.selection)
        self.passes += 1
        labels = [self._order[image % len(self._order)] for image in images]
        total = torch.zeros(2, len(images), dtype=torch.float64)
        rounds = evaluations(self.settings)
        with tqdm(
            total=rounds and rounds * len(images),
            desc=f"calibrate, pass {self.passes}",
            unit="evaluation",
            disable=not self.progress,
            leave=False,
        ) as bar:

            def watch(moment: Moment) -> None:
                routing = moment.evaluation.output.routing
                demand.add(routing)
                total.add_(self._of_images(moment, len(images)))
                bar.update(len(moment.images))

            generate(
                self.model,
                self.config,
                labels,
                [_FIRST_SEED + image for image in images],
                conditions=self._conditions,
                thresholds=demand.thresholds(offset),
                callback=watch,
            )
        rows, taken = total
        self.spread = float((taken / rows).std())
        return demand

    def _of_images(self, moment: Moment, images: int) -> Float[Tensor, "2 images"]:
        """Rows and pairs of each image in one evaluation, its branches and layers together."""
        routing = moment.evaluation.output.routing
        tokens = self.config.model.tokens
        found = torch.zeros(2, images, dtype=torch.float64)
        for record in routing:
            own = capacity_of_images(record, tokens).view(-1, len(moment.images))
            here = slice(moment.images.start, moment.images.stop)
            found[0, here] += own.shape[0]
            found[1, here] += own.sum(dim=0).cpu()
        return found
