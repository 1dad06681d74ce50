"""Classifier-free guidance as a wrapper around a field (Ho & Salimans 2022)."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from diffmoe.config import SamplingConfig
from diffmoe.objective import Field, FieldOutput

__all__ = ["guided"]

_SLACK = 1e-9  # a time of the grid that is an edge up to rounding lies inside


def guided(
    conditional: Field,
    both: Field,
    settings: SamplingConfig,
    noise_level: Callable[[float], float],
) -> Field:
    """`unconditional + scale * (conditional - unconditional)` inside the interval of times.

    `both` evaluates the conditional images and, behind them, the same images without condition;
    outside the interval, or at scale 1, `conditional` alone is evaluated.
    """
    if settings.guidance == 1.0:
        return conditional

    def field(x: Tensor, t: float | Tensor) -> FieldOutput:
        level = noise_level(float(t))
        if not settings.guidance_end - _SLACK <= level <= settings.guidance_start + _SLACK:
            return conditional(x, t)
        output = both(torch.cat([x, x]), t)
        value = _combine(output.value, settings.guidance, settings.guided_channels)
        variance = None if output.variance is None else output.variance.chunk(2)[0]
        return replace(output, value=value, variance=variance, branches=2)

    return field


def _combine(value: Tensor, scale: float, channels: int | None) -> Tensor:
    conditional, unconditional = value.chunk(2)
    mixed = unconditional + scale * (conditional - unconditional)
    if channels is None:
        return mixed
    return torch.cat([mixed[:, :channels], conditional[:, channels:]], dim=1)
