"""Floating point operations of one evaluation of one image, without building the network."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from diffmoe.config import Dense, ModelConfig
from diffmoe.model.condition import some_conditions
from diffmoe.model.dit import DiT
from diffmoe.model.layers import FEW_ROWS, FeedForward
from diffmoe.model.router import ROUTERS
from diffmoe.model.routing import RoutingPlan

__all__ = ["Flops", "count_flops"]


@dataclass(frozen=True)
class Flops:
    """Operations of the matrix products of one image in one evaluation; a multiply-add is two."""

    fixed: int  # whatever the capacity; routers and capacity predictors are part of it
    experts: int  # the experts of all MoE layers at capacity 1
    routing: int  # routers and capacity predictors

    def at(self, capacity: float) -> float:
        """Operations at an average capacity over the MoE layers."""
        return self.fixed + capacity * self.experts

    @property
    def dense(self) -> int:
        """Operations of the dense twin: its FFN do the work of experts at capacity 1."""
        return self.fixed - self.routing + self.experts


def count_flops(config: ModelConfig) -> Flops:
    """Operations of the network `config` describes, for one image of many in a batch.

    The predictor counts, although `gate` and `image` selection leave it out. Alone in a batch an
    image costs a few per cent more, as small products are done on more rows than it has.
    """
    dense = _operations_of_the_dense_twin(config)
    experts = len(config.moe_blocks) * _operations_of_an_ffn(config)
    routing = sum(_operations_of_a_router(config, layer) for layer in range(len(config.moe_blocks)))
    return Flops(fixed=dense - experts + routing, experts=experts, routing=routing)


def _operations_of_the_dense_twin(config: ModelConfig) -> int:
    images, side = FEW_ROWS, config.input_size  # of fewer images, some products count padding
    with FakeTensorMode():
        model = DiT(replace(config, router=Dense()))
        x, told = torch.empty(images, config.channels, side, side), some_conditions(config, images)
        plan = RoutingPlan(selection="train")
        return _count(lambda: model(x, torch.empty(images), told, plan)) // images


def _operations_of_an_ffn(config: ModelConfig) -> int:
    with FakeTensorMode():
        network = FeedForward(config.width, config.mlp_ratio * config.width)
        images = FEW_ROWS  # as above
        rows = torch.empty(images * config.tokens, config.width)
        return _count(lambda: network(rows)) // images


def _operations_of_a_router(config: ModelConfig, layer: int) -> int:
    try:
        with FakeTensorMode():
            return _route(config, layer)
    except RuntimeError:  # shapes that hang on values, which only real tensors have
        return _route(config, layer)


def _route(config: ModelConfig, layer: int) -> int:
    """Operations of a router for one image."""
    router = ROUTERS[type(config.router)](config, layer)
    router.initialize(torch.Generator().manual_seed(0))
    images = max(config.pool_images, FEW_ROWS)  # as above
    rows = torch.zeros(images, config.tokens, config.width)
    plan = RoutingPlan(selection="train")
    return _count(lambda: router.route(rows, plan)) // images


def _count(run: Callable[[], object]) -> int:
    # torch knows how to count its other kernels of attention, but not that of CPUs.
    kernels = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=kernels) as counter:
        run()
    return counter.get_total_flops()


def _attention(query: Any, key: Any, *_: Any, **__: Any) -> int:
    """Queries by keys, then weights by values."""
    images, heads, tokens, width = query
    return 4 * images * heads * tokens * key[2] * width
