"""What a network costs: parameters, activated parameters and memory, without building it."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from diffmoe.config import ModelConfig
from diffmoe.model.dit import DiT
from diffmoe.model.layers import FeedForward
from diffmoe.model.routing import RoutingPlan

__all__ = ["ParameterCounts", "activated_parameters", "count_parameters", "saved_bytes"]


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
        dense_ffn=sum(_size(m) for m in model.modules() if isinstance(m, FeedForward)),
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


def saved_bytes(config: ModelConfig, images: int, dtype: torch.dtype, recompute: bool) -> int:
    """Bytes kept for the backward pass of `images` images, from a run on fake tensors.

    With `recompute`, what the largest block keeps while it is run again comes on top.
    """
    pools = tuple(image // config.pool_images for image in range(images))
    plan = RoutingPlan(selection="train", pool_of_image=pools)
    with FakeTensorMode(), torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        model = DiT(config)
        model.activation_checkpointing = recompute
        shape = (images, config.channels, config.input_size, config.input_size)
        x, labels = torch.empty(shape), torch.zeros(images).long()
        kept = _kept(model, lambda: model(x, torch.empty(images), labels, plan))
        if not recompute:
            return kept
        tokens = torch.empty(images, config.tokens, config.width, dtype=dtype)
        vector = torch.empty(images, config.width)
        kinds = {type(block.feed_forward): block for block in model.blocks}
        run_again = [
            _kept(model, functools.partial(block, tokens, vector, plan)) for block in kinds.values()
        ]
        return kept + max(run_again)


def _kept(model: torch.nn.Module, run: Callable[[], object]) -> int:
    """Bytes of the tensors that `run` saves for its backward pass, the weights apart."""
    weights = {id(parameter.untyped_storage()) for parameter in model.parameters()}
    seen: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor.untyped_storage()) not in weights:
            seen[id(tensor.untyped_storage())] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())


def _size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
