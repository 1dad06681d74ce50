"""How many rows each expert takes while sampling: from settings to a routing plan."""

import torch

from diffmoe.config import SamplingConfig
from diffmoe.model import DiT, RoutingPlan

__all__ = ["sampling_plan"]


def sampling_plan(
    model: DiT, settings: SamplingConfig, images: int, branches: int = 1
) -> RoutingPlan:
    """The plan of one evaluation over `branches` times `images` images.

    Raises ConfigError when the model's tracked thresholds are asked for but were never measured.
    """
    free = settings.selection == "image"
    plan = RoutingPlan(
        selection=settings.selection,
        policy=None if free else settings.policy,
        thresholds=_constant(model, settings),
        pool_of_image=_pools(settings, images, branches),
        max_capacity=settings.max_capacity,
    )
    for layer in model.moe_layers:
        layer.router.check(plan)
    return plan


def _constant(model: DiT, settings: SamplingConfig) -> torch.Tensor | None:
    if settings.gamma is None:
        return None
    device = model.positions.device
    shape = (len(model.moe_layers), model.config.router.num_experts)
    return torch.full(shape, settings.gamma, device=device)


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
