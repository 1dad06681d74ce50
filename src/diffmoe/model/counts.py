"""What a network costs: parameters and activated parameters, without building it."""

from dataclasses import dataclass

import torch

from diffmoe.config import ModelConfig
from diffmoe.model.dit import DiT
from diffmoe.model.layers import FeedForward

__all__ = ["ParameterCounts", "activated_parameters", "count_parameters"]


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters by part; `total` includes the fixed position table, as the paper's sizes do."""

    total: int
    dense_ffn: int  # feed-forward layers of the dense blocks
    experts: int  # experts of the MoE blocks
    routing: int  # routers and capacity predictors


def count_parameters(config: ModelConfig) -> ParameterCounts:
    """Parameters of the network `config` describes; allocates nothing."""
    with torch.device("meta"):
        model = DiT(config)
    return ParameterCounts(
        total=_size(model),
        dense_ffn=sum(
            _size(block.feed_forward)
            for block in model.blocks
            if isinstance(block.feed_forward, FeedForward)
        ),
        experts=sum(_size(layer.experts) for layer in model.moe_layers),
        routing=sum(_size(layer.router) for layer in model.moe_layers),
    )


def activated_parameters(config: ModelConfig, capacity: float = 1.0) -> dict[str, float]:
    """Parameters a token meets at average capacity C, by two definitions.

    `eq40` is the paper's Eq. 40, (1 + C) / (1 + E) of all FFN parameters with routers and
    predictors among them; `executed` counts routers and predictors whole.
    """
    counts, experts = count_parameters(config), config.router.num_experts
    if experts == 0:
        return {"eq40": counts.total, "executed": counts.total}
    moe, dense = len(config.moe_blocks), config.depth - len(config.moe_blocks)
    ffn = counts.dense_ffn + counts.experts + counts.routing
    share = (dense + capacity * moe) / (dense + experts * moe)
    idle = counts.experts * (1 - capacity / experts)
    return {"eq40": counts.total - ffn + share * ffn, "executed": counts.total - idle}


def _size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
