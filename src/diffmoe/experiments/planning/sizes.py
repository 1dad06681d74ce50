"""What a network and one step of it need, counted without weights."""

import functools
import math
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from diffmoe.config import BatchPool, ModelConfig, RunConfig
from diffmoe.experiments.speed.cost import peak_bytes
from diffmoe.model import DiT, cast_for_products, some_conditions
from diffmoe.objective import Draws, Loss, build_objective
from diffmoe.training import training_plan

__all__ = ["Sizes", "capacity_of", "reported", "sizes_of", "step_bytes"]

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters."""

    total: int
    experts: int  # of all MoE layers
    routers: int  # of all MoE layers, capacity predictors among them
    outside: int  # what is in no block
    fixed: int  # that no gradient reaches: the position table
    block: int  # the largest block, its router and experts left out
    expert_block: int  # the experts of one block

    @property
    def dense(self) -> int:
        """All but the experts."""
        return self.total - self.experts

    @property
    def blocks(self) -> int:
        """All blocks, routers and experts left out."""
        return self.dense - self.routers - self.outside


@functools.cache
def sizes_of(config: ModelConfig) -> Sizes:
    """Parameters by the parts that are spread in different ways."""
    with torch.device("meta"):
        model = DiT(config)
    experts = [_count(layer.experts) for layer in model.moe_layers]
    routers = [_count(layer.router) for layer in model.moe_layers]
    layers = [_count(layer) for layer in model.moe_layers]
    dense = [i for i in range(config.depth) if i not in config.moe_blocks]
    rest = [_count(model.blocks[i]) for i in dense]
    rest += [
        _count(model.blocks[i]) - own for i, own in zip(config.moe_blocks, layers, strict=True)
    ]
    return Sizes(
        total=_count(model),
        experts=sum(experts),
        routers=sum(routers),
        outside=_count(model) - _count(model.blocks),
        fixed=sum(p.numel() for p in model.parameters() if not p.requires_grad),
        block=max(rest),
        expert_block=max(experts, default=0),
    )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def capacity_of(config: ModelConfig) -> float:
    """Experts a token meets on average in training; 1 for a dense network, and is its work."""
    router = config.router
    return float(getattr(router, "capacity", getattr(router, "top_k", 1)))


@functools.cache
def step_bytes(
    config: RunConfig, images: int, recompute: bool, *, gathered: bool = False, held: bool = True
) -> int:
    """The most bytes that forward and backward of `images` images hold at once, from fake tensors.

    Beside weights, moments and averages. Of gradients nothing counts if they are `held` from an
    earlier pass or by buckets; otherwise those that are there when the most is needed. `gathered`
    weights are in the dtype of products already, so that no copy of them is made.
    """
    with FakeTensorMode():
        model = DiT(config.model)
        if gathered and config.training.precision == "bfloat16":
            model = cast_for_products(model, torch.bfloat16).requires_grad_(True)
            model.positions.requires_grad_(False)
        model.activation_checkpointing = recompute

        def step() -> None:
            _forward(model, config, max(images, _fewest(config.model))).total.backward()

        if held:
            step()
        return peak_bytes(step, model if held else nn.Module(), _CPU)


@functools.cache
def reported(config: RunConfig) -> int:
    """How many numbers a step tells all processes: losses, norms, statistics of the routers."""
    images = config.model.pool_images
    with FakeTensorMode():
        model = DiT(config.model)
        loss = _forward(model, config, images)
        layers = zip(model.moe_layers, loss.routing, strict=True)
        sums = [layer.router.statistics(routing) for layer, routing in layers]
    return 2 + len(loss.terms) + sum(value.numel() for each in sums for value in each.values())


def _forward(model: DiT, config: RunConfig, images: int) -> Loss:
    """The loss of so many images as training computes it."""
    objective, shape = build_objective(config.objective), config.model
    x = torch.empty(images, shape.channels, shape.input_size, shape.input_size)
    draws = Draws(objective.times(torch.empty(images)), torch.empty_like(x))
    plan = training_plan(images, shape.pool_images)
    low = config.training.precision == "bfloat16"
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
        return objective.loss(model, x, some_conditions(shape, images), draws, plan)


def _fewest(config: ModelConfig) -> int:
    """Images whose tokens give each expert one: a smaller part of a pool is counted as so many."""
    if not isinstance(config.router, BatchPool):
        return 1
    return math.ceil(config.router.num_experts / (config.tokens * config.router.capacity))
