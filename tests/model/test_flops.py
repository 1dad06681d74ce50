"""Operations against a closed formula, the published ones and those of a real evaluation."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import tiny
from diffmoe.config import ROUTER_OPTIONS, BatchPool, Dense, ModelConfig, RouterOptions
from diffmoe.experiments.speed.cost import operations
from diffmoe.model import ROUTERS, Router, Routing, RoutingPlan, register_router
from diffmoe.model.flops import _count, count_flops
from diffmoe.model.layers import Attention
from diffmoe.presets import preset

# Multiply-adds of an evaluation at 256 x 256 pixels, in thousands of millions, as published (DiT).
PUBLISHED = {"dit-s": 6.06, "dit-b": 23.0, "dit-l": 80.7, "dit-xl": 118.6}


def dense_products(c: ModelConfig) -> int:
    """Multiply-adds of a dense DiT, counted by hand."""
    t, d, patch = c.tokens, c.width, c.patch_size**2
    embed = t * patch * c.channels * d + 256 * d + d * d
    attention = t * d * 3 * d + 2 * t * t * d + t * d * d
    block = attention + 2 * t * d * c.mlp_ratio * d + 6 * d * d
    final = 2 * d * d + t * d * patch * c.out_channels
    return embed + c.depth * block + final


def expert_products(c: ModelConfig) -> int:
    return len(c.moe_blocks) * 2 * c.tokens * c.width * c.mlp_ratio * c.width


def routing_products(c: ModelConfig) -> int:
    d, experts = c.width, c.router.num_experts
    predictor = d * d + d * experts if isinstance(c.router, BatchPool) else 0
    return len(c.moe_blocks) * c.tokens * (d * experts + predictor)


def assert_by_hand(config: ModelConfig) -> None:
    found, dense, experts = count_flops(config), dense_products(config), expert_products(config)
    assert found.dense == 2 * dense
    assert found.experts == 2 * experts
    assert found.routing == 2 * routing_products(config)
    assert found.fixed == 2 * (dense - experts) + found.routing
    assert found.at(0.5) == found.fixed + experts
    assert found.at(0) == found.fixed


@pytest.mark.parametrize("router", tiny.ROUTERS.values(), ids=tiny.ROUTERS.keys())
@pytest.mark.parametrize("changes", [{}, {"depth": 5, "input_size": 8, "mlp_ratio": 3}], ids=str)
def test_the_parts_are_those_counted_by_hand(router: RouterOptions, changes: dict) -> None:
    assert_by_hand(tiny.config(router, **changes))


@pytest.mark.parametrize("name", PUBLISHED)
def test_dense_networks_cost_what_was_published(name: str) -> None:
    config = preset(f"{name}-flow").model
    found = count_flops(config)
    assert found.dense == found.fixed == found.at(1) == 2 * dense_products(config)
    assert found.experts == found.routing == 0
    assert found.at(1) / 2e9 == pytest.approx(PUBLISHED[name], rel=1e-3)


@pytest.mark.parametrize("name", ["diffmoe-l-e16-flow", "diffmoe-s-e16-ddpm", "digits-diffmoe"])
def test_mixtures_are_counted_as_by_hand(name: str) -> None:
    assert_by_hand(preset(name).model)


def test_a_mixture_at_capacity_one_costs_its_twin_and_the_routing() -> None:
    config = preset("diffmoe-s-e16-flow").model
    found, twin = count_flops(config), count_flops(replace(config, router=Dense()))
    assert found.at(1) == twin.fixed + found.routing
    assert 0.02 < found.routing / twin.fixed < 0.06
    assert found.dense == twin.fixed


@pytest.mark.parametrize("selection", ["train", "token"])
@pytest.mark.parametrize("name", tiny.ROUTERS)
def test_a_real_evaluation_does_as_much(name: str, selection: str) -> None:
    config = tiny.config(tiny.ROUTERS[name])
    model = tiny.model(config.router, dtype=torch.float32)
    for layer in model.moe_layers:
        if name == "batch_pool":
            layer.router.threshold.fill_(0.5)
            layer.router.threshold_updates.fill_(1)
    policy = "ema" if selection == "token" else None
    plan, images = RoutingPlan(selection=selection, policy=policy), 16
    inputs, found = tiny.batch(images, dtype=torch.float32), []
    with torch.no_grad():
        total = operations(lambda: found.append(model(*inputs, plan)))
    taken = [int(record.count.sum()) / record.rows for record in found[0].routing]
    capacity = sum(taken) / max(1, len(taken))
    assert total / images == pytest.approx(count_flops(config).at(capacity))


def test_attention_counts_whatever_runs_it() -> None:
    def counted() -> int:
        return _count(lambda: Attention(8, 2)(torch.zeros(4, 5, 8)))

    wanted = 2 * 4 * (5 * 8 * 4 * 8 + 2 * 5 * 5 * 8)
    assert counted() == wanted
    with FakeTensorMode():
        assert counted() == wanted
    with torch.device("meta"):
        assert counted() == wanted
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert counted() == wanted


# --- a router from outside ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Counting(RouterOptions):
    """Options of a router whose shapes hang on values."""

    kind: ClassVar[str] = "counting"
    num_experts: int


class CountingRouter(Router):
    """Each row goes to its best expert; two products decide which."""

    def route(self, rows: Tensor, plan: RoutingPlan) -> Routing:
        affinity = (self.affinity(rows) * self.affinity(rows)).flatten(0, 1)
        expert = affinity.argmax(dim=1)
        pairs = (expert[:, None] == torch.arange(affinity.shape[1])).t().nonzero()
        return Routing(
            token=pairs[:, 1],
            gate=affinity[pairs[:, 1], pairs[:, 0]],
            count=torch.bincount(expert, minlength=affinity.shape[1]),
            affinity=affinity,
            demand=None,
            pool=torch.zeros_like(expert),
            quantile=None,
        )


@pytest.fixture
def counting() -> Iterator[Counting]:
    register_router(Counting, CountingRouter)
    yield Counting(num_experts=3)
    del ROUTERS[Counting], ROUTER_OPTIONS["counting"]


def test_a_router_that_needs_values_is_counted_on_them(counting: Counting) -> None:
    config = tiny.config(counting)
    found, twin = count_flops(config), count_flops(replace(config, router=Dense()))
    assert found.routing == 2 * 2 * config.tokens * config.width * 3
    assert found.at(1) == twin.fixed + found.routing
