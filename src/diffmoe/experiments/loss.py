"""The objective's own loss on training images, at the same draws whatever is asked."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffmoe.checkpoint import LoadedRun
from diffmoe.config import SamplingConfig
from diffmoe.data import Source, captions_of, source_codec, source_texts
from diffmoe.errors import DiffMoEError
from diffmoe.experiments.scoring import Reference
from diffmoe.model import Condition, DiT, Prediction, RoutingPlan, cast_for_products
from diffmoe.objective import Draws, build_objective
from diffmoe.randomness import normals, permutation, uniforms
from diffmoe.sampling import sampling_plan, some_of

__all__ = ["DenoisingLoss", "denoising_loss"]

_MOST_IMAGES = 512
_ENCODED = 32  # images that are read and encoded at a time
_SEED, _STREAM = 0, "denoising loss"


@dataclass(frozen=True)
class DenoisingLoss:
    """Images, times and noise that are the same for every setting: differences are paired."""

    run: LoadedRun
    x: Float[Tensor, "N C H W"]
    condition: Condition
    draws: Draws

    @classmethod
    def of(cls, run: LoadedRun, source: Source, most: int | None = None) -> "DenoisingLoss":
        """Up to `most` images, or 512, evenly spread over the source, each at its own noise level.

        The levels divide the training times into as many equal parts as there are images, in
        mixed order: every batch has all levels.
        """
        count = min(most or _MOST_IMAGES, len(source))
        chosen = [image * len(source) // count for image in range(count)]
        x = torch.cat(list(_seen(run, source, chosen)))
        parts = torch.from_numpy(permutation(_SEED, f"{_STREAM}/parts", count))
        u = (parts + uniforms(_SEED, f"{_STREAM}/time", 0, count)[:, 0]) / count
        t = build_objective(run.config.objective).times(u.float().clamp_max(1 - 2**-24))
        noise = normals(_SEED, f"{_STREAM}/noise", 0, count, tuple(x.shape[1:]))
        return cls(run, x, _conditions(run, source, chosen), Draws(t, noise))

    def under(
        self, settings: SamplingConfig, thresholds: Float[Tensor, "L E"] | None = None
    ) -> float:
        """The mean loss with experts taking rows as they would while sampling, conditions kept.

        `thresholds` are those of policy `target`.
        """

        def plan(images: int) -> RoutingPlan:
            return sampling_plan(self.run.model, settings, images, thresholds=thresholds)

        parts = torch.arange(len(self.x)).split(settings.batch)
        return float(self.per_image(plan, parts, settings.precision == "bfloat16").mean())

    @torch.inference_mode()
    def per_image(
        self,
        plan: Callable[[int], RoutingPlan],
        parts: Sequence[Int[Tensor, " B"]],
        low: bool = False,
    ) -> Float[Tensor, " N"]:
        """The loss of each image, float64, without what routers add.

        `parts` are the images of each batch, and `plan` makes the plan of so many; `low` counts in
        bfloat16.
        """
        model = self.run.model
        network = _Unrouted(cast_for_products(model, torch.bfloat16) if low else model)
        objective = build_objective(self.run.config.objective)
        found = torch.zeros(len(self.x), dtype=torch.float64)
        for part in parts:
            x, condition, draws = self._some(part)
            with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=low):
                loss = objective.loss(network, x, condition, draws, plan(len(x)))
            found[part] = loss.per_image.double().cpu()
        return found

    def _some(self, part: Int[Tensor, " B"]) -> tuple[Tensor, Condition, Draws]:
        device = self.run.model.positions.device
        x, t, noise = (
            values[part].to(device) for values in (self.x, self.draws.t, self.draws.noise)
        )
        return x, some_of(self.condition, part).to(device), Draws(t, noise)

    def describe(self, settings: SamplingConfig) -> str:
        """What the number means, for readers."""
        return (
            f"the objective's loss, mean over {len(self.x)} training images at noise levels spread"
            f" evenly over the training times, conditions kept, in batches of"
            f" {min(settings.batch, len(self.x))}; the same images, levels and noise for every"
            " setting"
        )


class _Unrouted:
    """A network that hands on no routing, so that routers add no losses of their own."""

    moe_layers: tuple[Any, ...] = ()

    def __init__(self, model: DiT) -> None:
        self._model = model

    def __call__(
        self, x_t: Tensor, t: Tensor, condition: Condition, plan: RoutingPlan
    ) -> Prediction:
        return replace(self._model(x_t, t, condition, plan), routing=())


def _seen(run: LoadedRun, source: Source, images: list[int]) -> Iterator[Tensor]:
    """What the model sees of images, some at a time; a posterior is drawn from, as in training."""
    model, device = run.config.model, run.model.positions.device
    shape = (model.channels, model.input_size, model.input_size)
    codec = source_codec(run.config, source, device)
    for first in range(0, len(images), _ENCODED):
        some = images[first : first + _ENCODED]
        x = torch.stack([source.load(image, flip=False) for image in some])
        if codec is not None:
            noise = normals(_SEED, f"{_STREAM}/encode", first, len(x), shape)
            x = codec.encode(x.to(device), noise.to(device)).cpu()
        yield x


def _conditions(run: LoadedRun, source: Source, images: list[int]) -> Condition:
    """The labels of images, or what the model reads of their captions."""
    device = run.model.positions.device
    texts = source_texts(run.config, source, device, run.folder.words)
    if texts is None:
        return source.labels[images]
    captions = captions_of(source)
    return texts.encode([captions[image] for image in images]).to("cpu")


def denoising_loss(run: LoadedRun, reference: Reference) -> tuple[DenoisingLoss | None, str]:
    """The loss of a run, or None and the reason: its data are not at hand or cannot be read."""
    if reference.source is None:
        return None, reference.unscored
    try:
        return DenoisingLoss.of(run, reference.source), ""
    except DiffMoEError as error:
        return None, str(error)
