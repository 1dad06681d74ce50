"""Models small enough to be checked by loops."""

from typing import Any

import torch
from torch import Tensor

from diffmoe.config import BatchPool, Dense, ExpertChoice, ModelConfig, RouterOptions, TokenChoice
from diffmoe.model import DiT, MixtureOfExperts, RoutingPlan, build_model


def batch_pool(num_experts: int = 3, capacity: float = 1.0) -> BatchPool:
    return BatchPool(
        num_experts=num_experts, capacity=capacity, predictor_weight=1.0, threshold_decay=0.95
    )


def expert_choice(num_experts: int = 3, capacity: float = 1.0) -> ExpertChoice:
    return ExpertChoice(num_experts=num_experts, capacity=capacity)


def token_choice(num_experts: int = 3, top_k: int = 1) -> TokenChoice:
    return TokenChoice(num_experts=num_experts, top_k=top_k, balance_weight=0.01)


ROUTERS = {
    "dense": Dense(),
    "token_choice": token_choice(4),
    "expert_choice": expert_choice(4),
    "batch_pool": batch_pool(4),
}
ROUTED = {name: router for name, router in ROUTERS.items() if name != "dense"}
TRAIN = RoutingPlan(selection="train")


def config(router: RouterOptions | None = None, **changes: Any) -> ModelConfig:
    """4 tokens of width 8, two blocks, the second a mixture of experts."""
    base: dict[str, Any] = {
        "input_size": 4,
        "patch_size": 2,
        "channels": 2,
        "out_channels": 2,
        "width": 8,
        "depth": 2,
        "heads": 2,
        "mlp_ratio": 2,
        "num_classes": 5,
        "router": router or batch_pool(),
        "moe_period": 2,
        "pool_images": 4,
    }
    return ModelConfig(**base | changes)


def normals(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def stir(module: torch.nn.Module, seed: int = 0, scale: float = 0.4) -> None:
    """Give every trained parameter a random value: initialisation hides much behind zeros."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data.copy_(scale * noise)


def layer(router: RouterOptions, seed: int = 0, **changes: Any) -> MixtureOfExperts:
    """A float64 layer with random weights; a batch pool also with random thresholds."""
    made = MixtureOfExperts(config(router, **changes), 0).double()
    made.router.initialize(torch.Generator().manual_seed(seed))
    stir(made, seed)
    if isinstance(router, BatchPool):
        made.router.threshold.copy_(0.3 + 0.4 * normals(router.num_experts, seed=seed).sigmoid())
        made.router.gate_threshold.copy_(0.5 * normals(router.num_experts, seed=seed).sigmoid())
        made.router.threshold_updates.fill_(1)
    return made


def model(
    router: RouterOptions, seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any
) -> DiT:
    """A DiT with random weights everywhere."""
    made = build_model(config(router, **changes), seed).to(dtype)
    stir(made, seed, scale=0.25)
    return made


def batch(
    images: int, seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy images, times and labels."""
    shape = config(**changes)
    x = normals(images, shape.channels, shape.input_size, shape.input_size, seed=seed, dtype=dtype)
    return x, torch.linspace(0.1, 0.9, images, dtype=dtype), torch.arange(images) % 5
