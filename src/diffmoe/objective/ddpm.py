"""DDPM: epsilon prediction and a learned-range variance, trained by the hybrid loss (as DiT)."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffmoe.config import DDPMConfig
from diffmoe.model import Condition, RoutingPlan
from diffmoe.objective.auxiliary import weigh
from diffmoe.objective.records import (
    Draws,
    Field,
    FieldOutput,
    Loss,
    Network,
    mean_per_image,
    spread,
)
from diffmoe.objective.schedule import Schedule

__all__ = ["DDPM"]

_HALF_BIN = 1.0 / 255.0  # half the width of an 8-bit grey level in [-1, 1]
_LEAST = 1e-12


class DDPM:
    """The discrete process of Ho et al. 2020; times are its integer steps."""

    def __init__(self, config: DDPMConfig) -> None:
        self.config = config
        self.schedule = Schedule.whole(config)

    def times(self, u: Float[Tensor, "B"]) -> Int[Tensor, "B"]:
        """Uniform steps."""
        return (u * self.config.timesteps).long().clamp_max(self.config.timesteps - 1)

    def loss(
        self,
        model: Network,
        x: Float[Tensor, "B C H W"],
        condition: Condition,
        draws: Draws,
        plan: RoutingPlan,
    ) -> Loss:
        """mse + vb: the squared error of epsilon, and the bound that trains the variance alone."""
        x_t = self.schedule.noisy(x, draws.noise, draws.t)
        output = self.field(model, condition, plan)(x_t, draws.t)
        squared = mean_per_image((output.value - draws.noise).square())
        bound = self._bound(x, x_t, output, draws.t)
        terms = {"mse": squared.mean(), "vb": bound.mean()}
        own = squared + self.config.variational_weight * bound
        return weigh(model, terms, own, output.routing)

    def field(self, model: Network, condition: Condition, plan: RoutingPlan) -> Field:
        """The predicted noise and the learned variance."""

        def epsilon(x: Tensor, t: float | Tensor) -> FieldOutput:
            prediction = model(x, spread(t, x).to(torch.float32), condition, plan)
            value, variance = prediction.sample.to(x.dtype).chunk(2, dim=1)
            return FieldOutput(value, variance, prediction.routing)

        return epsilon

    def grid(self, steps: int) -> Int[Tensor, "steps"]:
        """`steps` of the training steps, evenly spread, from the last (the only one of 1) down."""
        last = self.config.timesteps - 1
        first = 0 if steps > 1 else last
        spread_out = torch.linspace(first, last, steps, dtype=torch.float64)
        return spread_out.round().long().flip(0)

    def noise_level(self, t: float) -> float:
        """The step as a fraction of the last one."""
        return t / (self.config.timesteps - 1)

    def _bound(self, x: Tensor, x_t: Tensor, output: FieldOutput, step: Tensor) -> Tensor:
        """The term of the variational bound at each image's step, bits per dimension.

        The mean is detached: the bound trains the variance only (Nichol & Dhariwal, Sec. 3.1).
        """
        assert output.variance is not None
        guess = self.schedule.clean(x_t, output.value.detach(), step)
        mean = self.schedule.posterior_mean(guess, x_t, step)
        log_variance = self.schedule.log_variance(output.variance, step)
        truth = self.schedule.posterior_mean(x, x_t, step)
        truth_log = self.schedule.at(self.schedule.log_posterior_variance, step, x)
        divergence = mean_per_image(normal_divergence(truth, truth_log, mean, log_variance))
        likelihood = mean_per_image(grey_level_log_likelihood(x, mean, log_variance))
        return torch.where(step == 0, -likelihood, divergence) / math.log(2.0)


def normal_divergence(mean1: Tensor, log1: Tensor, mean2: Tensor, log2: Tensor) -> Tensor:
    """KL(N(mean1, e^log1) || N(mean2, e^log2)), elementwise, nats."""
    distance = (mean1 - mean2).square() * torch.exp(-log2)
    return 0.5 * (log2 - log1 - 1 + torch.exp(log1 - log2) + distance)


def grey_level_log_likelihood(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log of the probability a normal gives to the 8-bit grey level of `x`, elementwise, nats.

    The outermost levels take the tails.
    """
    scale = torch.exp(-0.5 * log_variance)
    upper = torch.special.ndtr((x - mean + _HALF_BIN) * scale)
    lower = torch.special.ndtr((x - mean - _HALF_BIN) * scale)
    upper = torch.where(x > 1 - _HALF_BIN, torch.ones_like(upper), upper)
    lower = torch.where(x < -1 + _HALF_BIN, torch.zeros_like(lower), lower)
    return (upper - lower).clamp_min(_LEAST).log()
