"""The same images drawn by static and dynamic selection, in pools of one image and of many."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import UInt8
from torch import Tensor
from tqdm import tqdm

from diffmoe.analysis import BatchOfOne, CapacityTrace, Variant
from diffmoe.checkpoint import LoadedRun
from diffmoe.codec import Codec
from diffmoe.config import SamplingConfig
from diffmoe.errors import ConfigError
from diffmoe.experiments.analysis.pools import has_room
from diffmoe.experiments.scoring import Reference, score_samples
from diffmoe.model import RoutingPlan
from diffmoe.sampling import Conditions, balanced_labels, decode, generate

__all__ = ["batch_of_one"]

_KINDS = {  # name -> selection and policy
    "static": ("pool", "static"),
    "dynamic": ("pool", "ema"),
    "dynamic, token": ("token", "ema"),
}
_ALONE = "dynamic, token"  # knows no pools
_FEW = 8  # images drawn each in a batch of its own


@dataclass(frozen=True)
class _Drawn:
    """Images of one setting and the capacity they took."""

    images: UInt8[Tensor, "N C H W"]
    capacity: float


def batch_of_one(
    run: LoadedRun,
    codec: Codec,
    reference: Reference,
    settings: SamplingConfig,
    *,
    conditions: Conditions | None = None,
    count: int = 200,
    many: int = 64,
    shown: int = 10,
    progress: bool = False,
) -> BatchOfOne | None:
    """How selection in a pool of one image compares with that in a pool of `many` (Fig. 6).

    Labels and seeds are the same everywhere, and `count` is rounded down to whole pools. Dynamic
    selection takes the tracked thresholds, whatever the settings say of the dial. `token` selection
    knows no pools: a few of its images are drawn again, each alone. `conditions` are the prompts
    of a model that reads captions. What the model cannot do is
    left out: a top-K of an image with fewer rows than experts, and thresholds that were never
    measured. None if nothing is left, or the router does not select from pools.
    """
    if "pool" not in run.config.model.router.selections:
        return None
    classes = run.trained_classes if conditions is None else conditions.count
    labels = balanced_labels(count, classes)
    many = min(many, count)
    labels = labels[: count // many * many]
    ways = [(name, way) for name, found in _ways(run, settings, many) for way in found.items()]
    with tqdm(total=len(ways), desc="batch of one", unit="way", disable=not progress) as bar:
        drawn: dict[str, dict[int, _Drawn]] = {}
        for name, (size, way) in ways:
            drawn.setdefault(name, {})[size] = _draw(run, codec, way, labels, conditions)
            bar.update()
    variants: list[Variant] = []
    for name, found in drawn.items():
        change = _change([one.images for one in found.values()])
        if name == _ALONE:
            way = replace(dict(ways)[name][1], batch=1)
            alone = _draw(run, codec, way, labels[:_FEW], conditions)
            change = _change([alone.images, found[many].images[: len(alone.images)]])
        variants += _variants(name, found, change, reference, labels, shown)
    return BatchOfOne(variants=variants, drawn=len(labels)) if variants else None


def _ways(
    run: LoadedRun, settings: SamplingConfig, many: int
) -> Iterator[tuple[str, dict[int, SamplingConfig]]]:
    """Each kind of selection that the model can do, with its settings for each size of a pool."""
    for name, (selection, policy) in _KINDS.items():
        if selection not in run.config.model.router.selections or not _knows(
            run, selection, policy
        ):
            continue
        sizes = (many,) if name == _ALONE else (1, many)
        ways = {size: _settings(settings, selection, policy, size, many) for size in sizes}
        able = {size: way for size, way in ways.items() if has_room(run.config, way)}
        if able:
            yield name, able


def _knows(run: LoadedRun, selection: str, policy: str) -> bool:
    """Whether the thresholds that a policy wants were measured."""
    plan = RoutingPlan(selection=selection, policy=policy)  # type: ignore[arg-type]
    try:
        for layer in run.model.moe_layers:
            layer.router.check(plan)
    except ConfigError:
        return False
    return True


def _settings(
    settings: SamplingConfig, selection: str, policy: str, size: int, many: int
) -> SamplingConfig:
    """The settings with pools of `size`, the batch being the same whatever it is.

    An image in a pool of its own is a batch of one to the experts. A dopri5 that chose its steps
    for each image by itself could not draw a pool.
    """
    return replace(
        settings,
        selection=selection,  # type: ignore[arg-type]
        policy=policy,  # type: ignore[arg-type]
        gamma=None,
        capacity=None,
        capacity_level="global",
        max_capacity=None,
        guidance_pool="separate",
        batch=many * max(1, settings.batch // many),
        pool_images=size if selection == "pool" else None,
        shared_step=settings.sampler == "dopri5",
    )


def _draw(
    run: LoadedRun,
    codec: Codec,
    settings: SamplingConfig,
    labels: list[int],
    conditions: Conditions | None,
) -> _Drawn:
    prompts = None if conditions is None else conditions.count
    trace = CapacityTrace.empty(run.config, settings.steps, classes=prompts)
    latents = generate(
        run.model,
        run.config,
        labels,
        range(len(labels)),
        settings=settings,
        conditions=conditions,
        callback=trace,
    )
    device = run.model.positions.device
    return _Drawn(torch.cat(list(decode(codec, latents, device))), trace.average)


def _variants(
    name: str,
    found: dict[int, _Drawn],
    change: float,
    reference: Reference,
    labels: list[int],
    shown: int,
) -> Iterator[Variant]:
    """One record for each size of a pool."""
    for batch, drawn in found.items():
        scores, _ = score_samples(reference, drawn.images, torch.tensor(labels))
        yield Variant(
            name=name,
            batch=batch,
            capacity=drawn.capacity,
            change=change,
            agreement=None if scores is None else scores.agreement,
            frechet=None if scores is None else scores.frechet_distance,
            images=drawn.images[:shown].numpy(),
        )


def _change(images: list[Tensor]) -> float:
    """Root mean square difference of two sets of images, as values in [-1, 1]; NaN without two."""
    if len(images) != 2:
        return float("nan")
    first, second = (values.double() / 127.5 for values in images)
    return float((first - second).square().mean().sqrt())
