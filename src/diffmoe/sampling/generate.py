"""Seeds to images: each image depends on its seed, its condition and the settings alone."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from diffmoe.codec import Codec, to_uint8
from diffmoe.config import RunConfig, SamplingConfig
from diffmoe.errors import ConfigError, NonFiniteError
from diffmoe.model import Condition, DiT, RoutingPlan, cast_for_products
from diffmoe.objective import Field, Network, Objective, build_objective
from diffmoe.randomness import normals
from diffmoe.sampling.capture import Captured
from diffmoe.sampling.conditions import Conditions, conditions_of, join
from diffmoe.sampling.guidance import guided
from diffmoe.sampling.policy import sampling_plan
from diffmoe.sampling.requests import check_request
from diffmoe.sampling.solvers import Evaluation, build_solver
from diffmoe.sampling.strict import is_strict, refuse_unsteady, under_strict

__all__ = ["Moment", "Prepared", "decode", "generate", "refuse_capture"]


@dataclass(frozen=True)
class Moment:
    """One evaluation for some of the images asked for, as a callback of `generate` sees it."""

    images: range  # which of the images asked for
    labels: Tensor  # (B,) the numbers of their classes, or of their prompts
    evaluation: Evaluation


@dataclass(frozen=True)
class Prepared:
    """A model made ready to draw: weights cast and network recorded once for all batches."""

    model: DiT
    network: DiT | Captured
    config: RunConfig  # its sampling settings are those to draw with
    conditions: Conditions  # what labels stand for
    thresholds: Tensor | None  # (L, E) of policy `target`

    @classmethod
    def of(
        cls,
        model: DiT,
        config: RunConfig,
        settings: SamplingConfig | None = None,
        *,
        conditions: Conditions | None = None,
        thresholds: Tensor | None = None,
        capture: bool = False,
        keep_records: bool = False,
    ) -> "Prepared":
        """A model with all that does not depend on labels and seeds, see `generate`.

        `keep_records` is for a captured network that a callback looks at.
        """
        settings = settings or config.sampling
        config = replace(config, sampling=settings)  # its checks refuse another objective's sampler
        low = settings.precision == "bfloat16"
        given, model = model, cast_for_products(model, torch.bfloat16) if low else model
        refuse_unsteady(given, model, settings, thresholds)
        network = _recorded(model, keep_records) if capture else model
        return cls(model, network, config, conditions_of(config, conditions), thresholds)

    def batches(
        self,
        labels: Sequence[int],
        seeds: Sequence[int],
        images: range,
        callback: Callable[[Moment], None] | None = None,
    ) -> Iterator[Float[Tensor, "b C H W"]]:
        """Samples of some of the images asked for, a batch at a time.

        Batches are those of all images if `images` begins with a batch: then nothing depends on
        which of them are drawn here.
        """
        settings = self.config.sampling
        alone = settings.sampler == "dopri5" and not settings.shared_step
        size = 1 if alone else settings.batch
        for start in range(images.start, images.stop, size):
            batch = range(start, min(start + size, images.stop))
            try:
                with under_strict():
                    drawn = _batch(self, labels, seeds, batch, callback)
            except torch.OutOfMemoryError as error:
                raise ConfigError(
                    f"sampling.batch {size} is too large for the memory of this device",
                    remedy="use a smaller one, or sampling.precision bfloat16",
                ) from error
            yield drawn


def generate(
    model: DiT,
    config: RunConfig,
    labels: Sequence[int],
    seeds: Sequence[int],
    *,
    settings: SamplingConfig | None = None,
    conditions: Conditions | None = None,
    thresholds: Tensor | None = None,
    callback: Callable[[Moment], None] | None = None,
    capture: bool = False,
    progress: bool = False,
) -> Tensor:
    """Samples (N, C, H, W) in the model's own space, float32 on the CPU, in the order asked for.

    In `token`, `gate` and `image` selection the batch size changes nothing but rounding; in
    `pool` selection images of one batch compete. With DIFFMOE_STRICT=1 in the environment it
    changes not even that, see `strict`. `conditions` are what labels stand for where they are
    numbers of prompts, see `encode_prompts`. `thresholds` (L, E) are those of policy `target`,
    see `calibrate`. `capture` records the network as a graph and
    replays it, for small batches on CUDA. Raises ConfigError for a bad label or seed, or settings
    that do not go with the objective, NonFiniteError for an image that is no number.
    """
    told = conditions_of(config, conditions)
    check_request(config, labels, seeds, told.count if config.model.reads_text else None)
    watched = callback is not None
    prepared = Prepared.of(
        model,
        config,
        settings,
        conditions=told,
        thresholds=thresholds,
        capture=capture,
        keep_records=watched,
    )
    found = []
    with tqdm(total=len(labels), desc="sample", unit="image", disable=not progress) as bar:
        for batch in prepared.batches(labels, seeds, range(len(labels)), callback):
            found.append(batch)
            bar.update(len(batch))
    return torch.cat(found)


def _recorded(model: DiT, keep_records: bool) -> Captured:
    refuse_capture(model.positions.device)
    return Captured(model, keep_records=keep_records)


def refuse_capture(device: torch.device) -> None:
    """Raise ConfigError unless networks can be recorded on `device`."""
    if device.type != "cuda":
        raise ConfigError("graphs are recorded on CUDA devices only", remedy="leave out capture")


@torch.inference_mode()
def _batch(
    ready: Prepared,
    labels: Sequence[int],
    seeds: Sequence[int],
    images: range,
    callback: Callable[[Moment], None] | None,
) -> Tensor:
    model, config = ready.model, ready.config
    settings, objective = config.sampling, build_objective(config.objective)
    device = model.positions.device
    own = [int(labels[i]) for i in images]
    numbers = torch.tensor(own, device=device)
    noise = _noise_of([seeds[i] for i in images], config, device)
    plan = functools.partial(
        sampling_plan, model, settings, len(images), thresholds=ready.thresholds
    )
    told, nothing = ready.conditions.of(own, device), ready.conditions.nothing(len(own), device)
    field = _field(ready.network, objective, settings, told, nothing, plan)

    def watch(evaluation: Evaluation) -> None:
        if callback is not None:
            callback(Moment(images, numbers, evaluation))

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
    told: Condition,
    nothing: Condition,
    plan: Callable[..., RoutingPlan],
) -> Field:
    conditional = objective.field(network, told, plan())
    both = objective.field(network, join(told, nothing), plan(branches=2))
    return guided(conditional, both, settings, objective.noise_level)


def decode(
    codec: Codec, latents: Tensor, device: torch.device, batch: int = 32
) -> Iterator[Tensor]:
    """uint8 images (b, C, H, W) of samples, a few at a time."""
    for part in latents.split(1 if is_strict() else batch):
        with under_strict():
            images = to_uint8(codec.decode(part.to(device))).cpu()
        yield images
