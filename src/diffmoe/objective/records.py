"""What an objective takes and returns. Axes: B images of shape C, H, W."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffmoe.model import Condition, Prediction, Routing, RoutingPlan

__all__ = ["Draws", "Field", "FieldOutput", "Loss", "Network", "Objective"]


class Network(Protocol):
    """A model as objectives see it: a DiT, or any callable of the same shape in a test."""

    @property
    def moe_layers(self) -> Any: ...

    def __call__(
        self, x_t: Tensor, t: Tensor, condition: Condition, plan: RoutingPlan
    ) -> Prediction: ...


@dataclass(frozen=True)
class Draws:
    """The random part of a loss, made outside of it: a time and a noise for each image."""

    t: Float[Tensor, "B"] | Int[Tensor, "B"]  # in the objective's own time
    noise: Float[Tensor, "B C H W"]


@dataclass(frozen=True)
class Loss:
    """A training loss: `total` is what to differentiate, `terms` what to report, unweighted."""

    total: Tensor
    terms: dict[str, Tensor]
    per_image: Float[Tensor, "B"]  # the objective's own loss, without router terms
    routing: tuple[Routing, ...]


@dataclass(frozen=True)
class FieldOutput:
    """What a solver asks for at (x, t).

    `value` is the velocity eps - x_0 (flow) or the predicted noise (DDPM). `variance` places the
    learned variance between the posterior's (-1) and beta (1). `routing` belongs to one forward
    pass over `branches` times B images, the conditional branch first.
    """

    value: Float[Tensor, "B C H W"]
    variance: Float[Tensor, "B C H W"] | None
    routing: tuple[Routing, ...]
    branches: int = 1


class Field(Protocol):
    """A function of the noisy images and one time for all of them, or one for each."""

    def __call__(self, x: Tensor, t: float | Tensor) -> FieldOutput: ...


class Objective(Protocol):
    """A loss to train with and a field to sample with."""

    def times(self, u: Float[Tensor, "B"]) -> Tensor:
        """Training times from uniform numbers in [0, 1)."""
        ...

    def loss(
        self, model: Network, x: Tensor, condition: Condition, draws: Draws, plan: RoutingPlan
    ) -> Loss:
        """The loss of clean images `x` at `draws`."""
        ...

    def field(self, model: Network, condition: Condition, plan: RoutingPlan) -> Field:
        """The field a solver integrates."""
        ...

    def grid(self, steps: int) -> Tensor:
        """Times a solver visits, from noise to data."""
        ...

    def noise_level(self, t: float) -> float:
        """A time as a fraction: 1 is noise, 0 is data."""
        ...


def spread(t: float | Tensor, x: Tensor) -> Tensor:
    """One time for each image of `x`, in at least float32: bfloat16 would merge neighbours."""
    if isinstance(t, Tensor):
        return t.to(x.device).expand(x.shape[0])
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.full((x.shape[0],), t, dtype=dtype, device=x.device)  # no copy from the host


def like_images(values: Tensor, x: Tensor) -> Tensor:
    """Per-image values shaped to multiply images."""
    return values.view(-1, *[1] * (x.dim() - 1)).to(x.dtype)


def mean_per_image(values: Tensor) -> Float[Tensor, "B"]:
    """The mean over everything but the batch."""
    return values.flatten(1).mean(dim=1)
