"""AdamW, its learning rate over time, and the average of the weights."""

import math

import torch
from torch import nn

from diffmoe.config import TrainingConfig

__all__ = ["average_weights", "build_optimizer", "learning_rate"]


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters, fused into one pass."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
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
def average_weights(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * model; buffers (thresholds) are copied.

    A threshold belongs to the step it was measured at: averaged over 10,000 steps it would lag
    behind the predictor it is compared with.
    """
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
    for kept, now in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(now)
