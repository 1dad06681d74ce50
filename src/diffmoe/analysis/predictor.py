"""What the capacity predictor is worth: its predictions against the top-K of training pools."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from diffmoe.analysis.findings import PredictorCheck
from diffmoe.captions import Captions
from diffmoe.config import RunConfig
from diffmoe.errors import ConfigError
from diffmoe.model import Condition, DiT, Router, Routing, RoutingPlan
from diffmoe.objective import Draws, Objective, build_objective
from diffmoe.randomness import normals, permutation, uniforms
from diffmoe.sampling import ClassConditions, Conditions

__all__ = ["check_predictor"]

_LEVELS, _BINS = 5, 20  # of the noise, of the predicted probability
_STREAM = "predictor check"


@dataclass(frozen=True)
class _Noised:
    """A few whole pools of images, with all that a training loss needs."""

    x: Tensor
    condition: Condition
    draws: Draws
    plan: RoutingPlan
    level: Int[Tensor, "B"]  # which noise level each image belongs to


@dataclass
class _Layer:
    """Sums over everything seen of one MoE layer; they do not grow with the number of images."""

    threshold: Float[Tensor, "E"] | None  # None = never measured
    rows: Tensor = field(default_factory=lambda: _zeros(_LEVELS))
    above: Tensor = field(default_factory=lambda: _zeros(_LEVELS))  # pairs above the threshold
    chosen: Tensor = field(default_factory=lambda: _zeros(_LEVELS))  # pairs in the top-K
    right: Tensor = field(default_factory=lambda: _zeros(_LEVELS))  # pairs in both
    pairs: Tensor = field(default_factory=lambda: _zeros(_LEVELS, _BINS))
    predicted: Tensor = field(default_factory=lambda: _zeros(_LEVELS, _BINS))
    observed: Tensor = field(default_factory=lambda: _zeros(_LEVELS, _BINS))
    quantile: Tensor | float = 0.0
    pools: int = 0

    def add(self, record: Routing, level: Int[Tensor, "B"]) -> None:
        """Take in one forward pass."""
        assert record.demand is not None and record.quantile is not None
        level = level.to(record.demand.device).repeat_interleave(record.rows // len(level))
        likely, chosen = record.demand.sigmoid(), record.chosen
        self._judge(likely, chosen, level)
        place = level[:, None] * _BINS + (likely * _BINS).long().clamp_max(_BINS - 1)
        self.pairs += _grouped(torch.ones_like(likely), place)
        self.predicted += _grouped(likely, place)
        self.observed += _grouped(chosen, place)
        self.quantile += record.quantile.double().sum(dim=0).cpu()
        self.pools += len(record.quantile)

    def _judge(
        self, likely: Float[Tensor, "S E"], chosen: Bool[Tensor, "S E"], level: Int[Tensor, "S"]
    ) -> None:
        self.rows += torch.bincount(level, minlength=_LEVELS).cpu()
        self.chosen += _by_level(chosen, level)
        if self.threshold is not None:
            above = likely > self.threshold
            self.above += _by_level(above, level)
            self.right += _by_level(above & chosen, level)

    @property
    def judged(self) -> tuple[Tensor, Tensor, Tensor]:
        """Precision, recall and capacity of each noise level at the tracked thresholds."""
        found = self.right / self.above, self.right / self.chosen, self.above / self.rows
        if self.threshold is not None:
            return found
        precision, recall, realised = (torch.full_like(values, torch.nan) for values in found)
        return precision, recall, realised


def check_predictor(
    model: DiT,
    config: RunConfig,
    images: Float[Tensor, "N C H W"],
    labels: Int[Tensor, "N"],
    *,
    conditions: Conditions | None = None,
    sampling_thresholds: Float[Tensor, "L E"] | None = None,
    progress: bool = False,
) -> PredictorCheck | None:
    """How well the predictor knows the top-K of training pools, None for a router without one.

    Clean images in the model's own space are noised again and pooled as in training: whole pools,
    as many as there are images for, but at least one, if need be of repeated images. What the
    tracked thresholds decide is NaN where they were never measured. `conditions` are what labels
    stand for where they are numbers of prompts; `sampling_thresholds` are passed on for comparison.
    """
    routers = [layer.router for layer in model.moe_layers]
    if not routers or any(router.tracked("token") is None for router in routers):
        return None
    layers = [_Layer(_threshold(router)) for router in routers]
    objective, pools = build_objective(config.objective), max(1, len(images) // _size(config))
    told = conditions or ClassConditions(config.model.num_classes)
    with tqdm(total=pools, desc="noise again", unit="pool", disable=not progress) as bar:
        for some in _pools_at_a_time(config, pools):
            noised = _noised(config, objective, images, (told, labels), some)
            records = _routing(model, config, objective, noised)
            if any(record.demand is None or record.quantile is None for record in records):
                return None
            for sums, record in zip(layers, records, strict=True):
                sums.add(record, noised.level)
            bar.update(len(some))
    return _found(layers, sampling_thresholds, pools * _size(config))


def _size(config: RunConfig) -> int:
    return config.model.pool_images


def _pools_at_a_time(config: RunConfig, pools: int) -> Iterator[range]:
    """As many as fit a batch of sampling, at least one."""
    each = max(1, config.sampling.batch // _size(config))
    for first in range(0, pools, each):
        yield range(first, min(first + each, pools))


def _noised(
    config: RunConfig,
    objective: Objective,
    images: Tensor,
    told: tuple[Conditions, Tensor],
    pools: range,
) -> _Noised:
    """Images of whole pools, with one time in each of as many equal parts as a pool has images.

    So each pool holds all noise levels. Everything else is as in training, the labels that are
    dropped included.
    """
    size, seed = _size(config), config.training.seed
    first, count = pools.start * size, len(pools) * size
    place = (torch.arange(first, first + count) % len(images)).to(images.device)
    parts = [permutation(seed, f"{_STREAM}/parts/{pool}", size) for pool in pools]
    jitter = uniforms(seed, f"{_STREAM}/time", first, count)[:, 0]
    u = (torch.from_numpy(np.concatenate(parts)) + jitter) / size
    t = objective.times(u.clamp_max(1 - 2**-24))  # rounding may reach 1
    level = [int(objective.noise_level(float(time)) * _LEVELS) for time in t]
    dropped = uniforms(seed, f"{_STREAM}/label dropout", first, count)[:, 0]
    conditions, labels = told
    own = conditions.of(labels[place.to(labels.device)].tolist(), images.device)
    hidden = (dropped < config.training.label_dropout).to(images.device)
    noise = normals(seed, f"{_STREAM}/noise", first, count, tuple(images.shape[1:]))
    return _Noised(
        x=images[place],
        condition=_without(own, hidden, config),
        draws=Draws(t, noise),
        plan=RoutingPlan(
            selection="train", pool_of_image=tuple(image // size for image in range(count))
        ),
        level=torch.tensor(level).clamp_max(_LEVELS - 1),
    )


def _without(condition: Condition, hidden: Bool[Tensor, "B"], config: RunConfig) -> Condition:
    """Conditions of which the hidden ones say nothing, as training drops them."""
    if isinstance(condition, Captions):
        return condition.without(hidden)
    return condition.masked_fill(hidden, config.model.null_class)


@torch.no_grad()
def _routing(
    model: DiT, config: RunConfig, objective: Objective, noised: _Noised
) -> tuple[Routing, ...]:
    """What the routers do in a training loss."""
    device, low = model.positions.device, config.training.precision == "bfloat16"
    draws = Draws(noised.draws.t.to(device), noised.draws.noise.to(device))
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=low):
        x, told = noised.x.to(device), noised.condition.to(device)
        return objective.loss(model, x, told, draws, noised.plan).routing


def _threshold(router: Router) -> Float[Tensor, "E"] | None:
    """The tracked thresholds, None where they were never measured."""
    try:
        router.check(RoutingPlan(selection="token", policy="ema"))
    except ConfigError:
        return None
    return router.tracked("token")


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)


def _by_level(pairs: Bool[Tensor, "S E"], level: Int[Tensor, "S"]) -> Float[Tensor, "Q"]:
    """Pairs of each noise level."""
    return torch.bincount(level, pairs.sum(dim=1).double(), minlength=_LEVELS).cpu()


def _grouped(values: Tensor, place: Int[Tensor, "S E"]) -> Float[Tensor, "Q bins"]:
    """Sums of the values at each place."""
    weights = values.flatten().double()
    total = torch.bincount(place.flatten(), weights, minlength=_LEVELS * _BINS)
    return total.view(_LEVELS, _BINS).cpu()


def _found(layers: list[_Layer], sampling: Tensor | None, images: int) -> PredictorCheck:
    precision, recall, realised = zip(*(layer.judged for layer in layers), strict=True)
    pairs, predicted, observed = (
        torch.stack([getattr(layer, name) for layer in layers])  # L Q bins
        for name in ("pairs", "predicted", "observed")
    )
    training = torch.stack([torch.as_tensor(layer.quantile) / layer.pools for layer in layers])
    unknown = torch.full_like(training[0], torch.nan)
    tracked = [unknown if layer.threshold is None else layer.threshold for layer in layers]
    error = (predicted - observed).abs().sum(dim=2) / pairs.sum(dim=2)
    in_bin, rows = pairs.sum(dim=1), torch.stack([layer.rows for layer in layers])
    chosen = torch.stack([layer.chosen for layer in layers])
    return PredictorCheck(
        level=np.linspace(0, 1, _LEVELS + 1),
        precision=_array(precision),
        recall=_array(recall),
        calibration_error=error.numpy(),
        predicted=(predicted.sum(dim=1) / in_bin).numpy(),
        observed=(observed.sum(dim=1) / in_bin).numpy(),
        weight=(in_bin / in_bin.sum(dim=1, keepdim=True)).numpy(),
        nominal=float(chosen.sum() / rows.sum()),
        realised=_array(realised),
        tracked=_array(tracked),
        training=training.numpy(),
        sampling=_array([unknown] * len(layers) if sampling is None else list(sampling)),
        images=images,
    )


def _array(values: list[Tensor] | tuple[Tensor, ...]) -> np.ndarray:
    return torch.stack([value.double().cpu() for value in values]).numpy()
