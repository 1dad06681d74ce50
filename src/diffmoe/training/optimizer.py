"""AdamW, its learning rate over time, and the average of the weights."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from diffmoe.config import TrainingConfig

__all__ = ["average_weights", "build_optimizer", "copy_buffers", "learning_rate"]


def build_optimizer(
    parameters: Iterable[nn.Parameter], config: TrainingConfig
) -> torch.optim.AdamW:
    """AdamW over the trainable ones of `parameters`, fused into one pass."""
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    return torch.optim.AdamW(
        trainable,
        lr=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate(config: TrainingConfig, step: int) -> float:
    """The rate of optimizer step `step` (from 0): linear warm-up, then constant or cosine to 0."""
    rate = config.learning_rate
    if step < config.warmup_steps:
        return rate * (step + 1) / config.warmup_steps
    if config.decay_steps is None:
        return rate
    done = min(1.0, (step - config.warmup_steps) / max(1, config.decay_steps - config.warmup_steps))
    return rate * 0.5 * (1 + math.cos(math.pi * done))


@torch.no_grad()
def average_weights(average: Sequence[Tensor], weights: Sequence[Tensor], share: Tensor) -> None:
    """average <- average + share * (weights - average).

    `share` is 1 - decay, or 0 after a step that was skipped; on the device, so nothing waits.
    """
    shares = {dtype: share.to(dtype) for dtype in {kept.dtype for kept in average}}
    each = [shares[kept.dtype].expand_as(kept) for kept in average]
    torch._foreach_lerp_(list(average), list(weights), each)


@torch.no_grad()
def copy_buffers(average: nn.Module, model: nn.Module) -> None:
    """Give the averaged network the thresholds of the network, as they are.

    A threshold belongs to the step it was measured at: averaged over 10,000 steps it would lag
    behind the predictor it is compared with.
    """
    for old, now in zip(average.buffers(), model.buffers(), strict=True):
        old.copy_(now)
