"""Seeds to images: each image depends on its seed, its label and the settings alone."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import index
from typing import SupportsIndex

import torch
from torch import Tensor
from tqdm import tqdm

from diffmoe.codec import Codec, to_uint8
from diffmoe.config import RunConfig, SamplingConfig
from diffmoe.errors import ConfigError, NonFiniteError
from diffmoe.model import DiT, RoutingPlan, cast_for_products
from diffmoe.objective import Field, Network, Objective, build_objective
from diffmoe.randomness import normals
from diffmoe.sampling.capture import Captured
from diffmoe.sampling.guidance import guided
from diffmoe.sampling.policy import sampling_plan
from diffmoe.sampling.solvers import Evaluation, build_solver

__all__ = ["Moment", "balanced_labels", "check_request", "decode", "generate", "refuse_capture"]

_MOST_IMAGES = 10**6  # of one call, which holds them all in memory


@dataclass(frozen=True)
class Moment:
    """One evaluation for some of the images asked for, as a callback of `generate` sees it."""

    images: range  # which of the images asked for
    labels: Tensor  # (B,) their classes
    evaluation: Evaluation


def generate(
    model: DiT,
    config: RunConfig,
    labels: Sequence[int],
    seeds: Sequence[int],
    *,
    settings: SamplingConfig | None = None,
    thresholds: Tensor | None = None,
    callback: Callable[[Moment], None] | None = None,
    capture: bool = False,
    progress: bool = False,
) -> Tensor:
    """Samples (N, C, H, W) in the model's own space, float32 on the CPU, in the order asked for.

    In `token`, `gate` and `image` selection the batch size changes nothing but rounding; in
    `pool` selection images of one batch compete. `thresholds` (L, E) are those of policy `target`,
    see `calibrate`. `capture` records the network as a graph and
    replays it, for small batches on CUDA. Raises ConfigError for a bad label or seed, or settings
    that do not go with the objective, NonFiniteError for an image that is no number.
    """
    settings = settings or config.sampling
    config = replace(config, sampling=settings)  # its checks refuse another objective's sampler
    check_request(config, labels, seeds)
    model = _prepared(model, settings)
    network = _recorded(model, callback is not None) if capture else model
    batch = functools.partial(_batch, model, network, config, thresholds)
    alone = settings.sampler == "dopri5" and not settings.shared_step
    size = 1 if alone else settings.batch
    found = []
    with tqdm(total=len(labels), desc="sample", unit="image", disable=not progress) as bar:
        for start in range(0, len(labels), size):
            images = range(start, min(start + size, len(labels)))
            try:
                found.append(batch(labels, seeds, images, callback))
            except torch.OutOfMemoryError as error:
                raise ConfigError(
                    f"sampling.batch {size} is too large for the memory of this device",
                    remedy="use a smaller one, or sampling.precision bfloat16",
                ) from error
            bar.update(len(images))
    return torch.cat(found)


def _prepared(model: DiT, settings: SamplingConfig) -> DiT:
    """The model with weights in the dtype of its products, cast once for all evaluations."""
    low = settings.precision == "bfloat16"
    return cast_for_products(model, torch.bfloat16) if low else model


def _recorded(model: DiT, keep_records: bool) -> Captured:
    refuse_capture(model.positions.device)
    return Captured(model, keep_records=keep_records)


def refuse_capture(device: torch.device) -> None:
    """Raise ConfigError unless networks can be recorded on `device`."""
    if device.type != "cuda":
        raise ConfigError("graphs are recorded on CUDA devices only", remedy="leave out capture")


@torch.inference_mode()
def _batch(
    model: DiT,
    network: Network,
    config: RunConfig,
    thresholds: Tensor | None,
    labels: Sequence[int],
    seeds: Sequence[int],
    images: range,
    callback: Callable[[Moment], None] | None,
) -> Tensor:
    settings, objective = config.sampling, build_objective(config.objective)
    device = model.positions.device
    classes = torch.tensor([labels[i] for i in images], device=device)
    noise = _noise_of([seeds[i] for i in images], config, device)
    plan = functools.partial(sampling_plan, model, settings, len(images), thresholds=thresholds)
    field = _field(network, objective, settings, classes, model.config.null_class, plan)

    def watch(evaluation: Evaluation) -> None:
        if callback is not None:
            callback(Moment(images, classes, evaluation))

    low = settings.precision == "bfloat16"
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=low):
        x = build_solver(settings, objective)(
            field,
            noise(-1),
            objective.grid(settings.steps),
            noise=noise,
            callback=watch,
        )
    _refuse_non_finite(x, images, labels, seeds)
    return x.float().cpu()


def _refuse_non_finite(
    x: Tensor, images: range, labels: Sequence[int], seeds: Sequence[int]
) -> None:
    """A pixel that is no number would become a black one."""
    bad = (~x.isfinite().flatten(1).all(dim=1)).nonzero().flatten().tolist()
    if bad:
        first = images[bad[0]]
        raise NonFiniteError(
            f"image {first} (label {labels[first]}, seed {seeds[first]}) is not finite",
            remedy="lower sampling.guidance, or use other weights",
        )


def _noise_of(seeds: list[int], config: RunConfig, device: torch.device) -> Callable[[int], Tensor]:
    """Row `step + 1` of each image's own stream; row 0 is where it starts."""
    size = config.model.input_size
    shape = (config.model.channels, size, size)

    def noise(step: int) -> Tensor:
        rows = [normals(seed, "sampling", step + 1, 1, shape) for seed in seeds]
        return torch.cat(rows).to(device)

    return noise


def _field(
    network: Network,
    objective: Objective,
    settings: SamplingConfig,
    labels: Tensor,
    null_class: int,
    plan: Callable[..., RoutingPlan],
) -> Field:
    conditional = objective.field(network, labels, plan())
    none = torch.full_like(labels, null_class)
    both = objective.field(network, torch.cat([labels, none]), plan(branches=2))
    return guided(conditional, both, settings, objective.noise_level)


def check_request(config: RunConfig, labels: Sequence[int], seeds: Sequence[int]) -> None:
    """Raise ConfigError for a label that is no class, or a seed that is no 63-bit number."""
    classes = config.model.num_classes
    if len(labels) == 0:
        raise ConfigError("no images are asked for", remedy="give at least one label and seed")
    if len(labels) != len(seeds):
        raise ConfigError(
            f"{len(labels)} labels and {len(seeds)} seeds do not pair up",
            remedy="give one seed for each label",
        )
    for label in (_whole("label", label) for label in labels):
        if label == classes:
            raise ConfigError(
                f"label {label} is the null class of guidance, not a class",
                remedy=f"use 0..{classes - 1}",
            )
        if not 0 <= label < classes:
            raise ConfigError(
                f"label {label} is out of range", remedy=f"the model has classes 0..{classes - 1}"
            )
    for seed in (_whole("seed", seed) for seed in seeds):
        if not 0 <= seed < 2**63:
            raise ConfigError(f"seed {seed} is out of range", remedy="use 0..2^63 - 1")


def _whole(what: str, value: SupportsIndex) -> int:
    try:
        return int(index(value))
    except TypeError:
        raise ConfigError(f"{what} {value!r} is no whole number", remedy="such as 3") from None


def balanced_labels(count: int, classes: int) -> list[int]:
    """`count` labels, every class as often as any other, in turn."""
    if not 1 <= count <= _MOST_IMAGES:
        raise ConfigError(
            f"count {count} is not in [1, {_MOST_IMAGES}]",
            remedy="draw more in several calls, each with seeds of its own",
        )
    return [image % classes for image in range(count)]


def decode(
    codec: Codec, latents: Tensor, device: torch.device, batch: int = 32
) -> Iterator[Tensor]:
    """uint8 images (b, C, H, W) of samples, a few at a time."""
    for part in latents.split(batch):
        yield to_uint8(codec.decode(part.to(device))).cpu()
