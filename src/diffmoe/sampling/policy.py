"""How many rows each expert takes while sampling: from settings to a routing plan."""

from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffmoe.config import SamplingConfig
from diffmoe.errors import ConfigError
from diffmoe.model import DiT, RoutingPlan

__all__ = ["decisive_settings", "sampling_plan"]


def decisive_settings(settings: SamplingConfig) -> dict[str, Any]:
    """The settings that change an image: the batch does where images know of each other."""
    decisive = asdict(settings)
    if settings.selection != "pool" and not settings.shared_step:
        del decisive["batch"]
    return decisive


def sampling_plan(
    model: DiT,
    settings: SamplingConfig,
    images: int,
    branches: int = 1,
    *,
    thresholds: Float[Tensor, "L E"] | None = None,
) -> RoutingPlan:
    """The plan of one evaluation over `branches` times `images` images.

    `thresholds` are those of policy `target`. Raises ConfigError when they are missing or do not
    fit, or when the model's tracked thresholds are asked for but were never measured.
    """
    free = settings.selection == "image"
    plan = RoutingPlan(
        selection=settings.selection,
        policy=None if free else settings.policy,
        thresholds=_thresholds(model, settings, thresholds),
        pool_of_image=_pools(settings, images, branches),
        max_capacity=settings.max_capacity,
    )
    for layer in model.moe_layers:
        layer.router.check(plan)
    return plan


def _thresholds(model: DiT, settings: SamplingConfig, given: Tensor | None) -> Tensor | None:
    device = model.positions.device
    shape = (len(model.moe_layers), model.config.router.num_experts)
    if settings.gamma is not None:
        return torch.full(shape, settings.gamma, device=device)
    if settings.policy != "target":
        if given is not None:
            raise ConfigError(f"policy {settings.policy} takes no thresholds")
        return None
    if given is None:
        raise ConfigError(
            "policy target needs thresholds", remedy="diffmoe.calibrate(run, settings) makes them"
        )
    if tuple(given.shape) != shape:
        raise ConfigError(
            f"the thresholds have shape {tuple(given.shape)}, the model needs {shape}",
            remedy="calibrate this model",
        )
    if given.isnan().any():
        raise ConfigError("the thresholds are no numbers", remedy="calibrate the model anew")
    return given.to(device)


def _pools(settings: SamplingConfig, images: int, branches: int) -> tuple[int, ...]:
    """Consecutive images of the batch share a pool, all of them unless a size is said.

    Guidance branches share one only when the pool is joint.
    """
    size = settings.pool_images or images
    pools = -(-images // size)
    apart = 0 if settings.guidance_pool == "joint" else pools
    return tuple(
        image // size + branch * apart for branch in range(branches) for image in range(images)
    )
