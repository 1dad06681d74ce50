"""The noise schedule of DDPM and everything that follows from it, whole or respaced.

Nichol & Dhariwal 2021 (learned-range variance, respacing), in float64.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffmoe.config import DDPMConfig
from diffmoe.objective.records import like_images

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule:
    """A forward process that visits some of the training time steps.

    `timesteps` ascend; step i of this process is training time `timesteps[i]`.
    """

    timesteps: Int[Tensor, "n"]
    alpha_bar: Float[Tensor, "n"]  # share of signal variance left after each step

    @classmethod
    def whole(cls, config: DDPMConfig) -> "Schedule":
        """Every training step, linear betas."""
        betas = torch.linspace(
            config.beta_start, config.beta_end, config.timesteps, dtype=torch.float64
        )
        return cls(torch.arange(config.timesteps), (1 - betas).cumprod(0))

    def respaced(self, timesteps: Int[Tensor, "m"]) -> "Schedule":
        """The process that visits only `timesteps`, with the same marginals there."""
        return Schedule(timesteps, self.alpha_bar[timesteps])

    @cached_property
    def alpha_bar_before(self) -> Float[Tensor, "n"]:
        """alpha_bar one step nearer to the data, 1 before the first."""
        return torch.cat([torch.ones(1, dtype=torch.float64), self.alpha_bar[:-1]])

    @cached_property
    def beta(self) -> Float[Tensor, "n"]:
        """Variance added by each step."""
        return 1 - self.alpha_bar / self.alpha_bar_before

    @cached_property
    def log_posterior_variance(self) -> Float[Tensor, "n"]:
        """log of the variance of q(x_before | x_t, x_0); the first, log 0, takes the second's."""
        variance = self.beta * (1 - self.alpha_bar_before) / (1 - self.alpha_bar)
        first = variance[1:2] if len(variance) > 1 else self.beta[:1]
        return torch.cat([first, variance[1:]]).log()

    def at(self, values: Float[Tensor, "n"], step: Tensor, x: Tensor) -> Tensor:
        """`values` at each image's step, shaped to multiply images `x`."""
        return like_images(values.to(x.device)[step], x)

    def noisy(self, x_0: Tensor, noise: Tensor, step: Int[Tensor, "B"]) -> Tensor:
        """A draw of q(x_t | x_0)."""
        signal = self.at(self.alpha_bar.sqrt(), step, x_0)
        return signal * x_0 + self.at((1 - self.alpha_bar).sqrt(), step, x_0) * noise

    def clean(self, x_t: Tensor, noise: Tensor, step: Int[Tensor, "B"]) -> Tensor:
        """The x_0 that `noise` implies."""
        signal = self.at(self.alpha_bar.sqrt(), step, x_t)
        return (x_t - self.at((1 - self.alpha_bar).sqrt(), step, x_t) * noise) / signal

    def posterior_mean(self, x_0: Tensor, x_t: Tensor, step: Int[Tensor, "B"]) -> Tensor:
        """Mean of q(x_before | x_t, x_0)."""
        of_clean = self.alpha_bar_before.sqrt() * self.beta / (1 - self.alpha_bar)
        of_noisy = (1 - self.beta).sqrt() * (1 - self.alpha_bar_before) / (1 - self.alpha_bar)
        return self.at(of_clean, step, x_t) * x_0 + self.at(of_noisy, step, x_t) * x_t

    def log_variance(self, learned: Tensor, step: Int[Tensor, "B"]) -> Tensor:
        """The learned variance: -1 is the posterior's, 1 is beta, geometric between."""
        low = self.at(self.log_posterior_variance, step, learned)
        high = self.at(self.beta.log(), step, learned)
        share = (learned + 1) / 2
        return share * high + (1 - share) * low
