"""Rectified flow: a straight line from data to noise, and its velocity (Sec. 4.1, as SiT)."""

import torch
from jaxtyping import Float
from torch import Tensor

from diffmoe.config import FlowConfig
from diffmoe.model import Condition, RoutingPlan
from diffmoe.objective.auxiliary import weigh
from diffmoe.objective.records import (
    Draws,
    Field,
    FieldOutput,
    Loss,
    Network,
    like_images,
    mean_per_image,
    spread,
)

__all__ = ["Flow"]


class Flow:
    """x_t = (1 - t) x_0 + t eps with velocity eps - x_0; t = 1 is noise, t = 0 data.

    In the `released` convention the network sees 1 - t and answers x_0 - eps; everything outside
    of `_velocity` stays in the paper's.
    """

    def __init__(self, config: FlowConfig) -> None:
        self.config = config

    def times(self, u: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
        """Uniform times, or logit-normal ones: sigmoid of a normal quantile."""
        if self.config.time_sampling == "uniform":
            return u
        safe = u.double().clamp(1e-7, 1 - 1e-7)
        logits = self.config.logit_mean + self.config.logit_std * torch.special.ndtri(safe)
        return logits.sigmoid().to(u.dtype)

    def loss(
        self,
        model: Network,
        x: Float[Tensor, "B C H W"],
        condition: Condition,
        draws: Draws,
        plan: RoutingPlan,
    ) -> Loss:
        """Mean squared error of the velocity."""
        t = like_images(draws.t, x)
        x_t = (1 - t) * x + t * draws.noise
        output = self._velocity(model, x_t, draws.t, condition, plan)
        per_image = mean_per_image((output.value - (draws.noise - x)).square())
        return weigh(model, {"mse": per_image.mean()}, per_image, output.routing)

    def field(self, model: Network, condition: Condition, plan: RoutingPlan) -> Field:
        """The velocity of the sampling ODE."""

        def velocity(x: Tensor, t: float | Tensor) -> FieldOutput:
            return self._velocity(model, x, spread(t, x), condition, plan)

        return velocity

    def grid(self, steps: int) -> Float[Tensor, "steps+1"]:
        """Equal steps from t = 1 to t = 0."""
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)

    def noise_level(self, t: float) -> float:
        """Flow's time is its noise level."""
        return t

    def _velocity(
        self, model: Network, x_t: Tensor, t: Tensor, condition: Condition, plan: RoutingPlan
    ) -> FieldOutput:
        released = self.config.convention == "released"
        seen = (1 - t if released else t) * self.config.time_scale
        prediction = model(x_t, seen, condition, plan)
        answer = prediction.sample[:, : x_t.shape[1]].to(x_t.dtype)
        return FieldOutput(-answer if released else answer, None, prediction.routing)
