"""A router of one's own: one class, one line in `ROUTERS`, no other file touched."""

import inspect
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import tiny
from diffmoe.model import ROUTERS, DiT, Router, Routing, RoutingPlan, build_model


@dataclass(frozen=True, kw_only=True)
class Hash:
    """Options of the hash router."""

    kind: ClassVar[str] = "hash"
    num_experts: int
    evenness: float  # weight of its loss

    def check(self, tokens: int, pool_images: int) -> None:
        """Hash routing fits any pool."""


class HashRouter(Router):
    """Each row goes to the expert its position hashes to; counts how often each was used."""

    def __init__(self, config, layer: int) -> None:
        super().__init__(config, layer)
        self.options = config.router
        self.register_buffer("used", torch.zeros(self.options.num_experts))

    def initialize(self, generator: torch.Generator) -> None:
        super().initialize(generator)
        self.used.zero_()

    def route(self, rows: Tensor, plan: RoutingPlan) -> Routing:
        images, tokens, _ = rows.shape
        affinity = self.affinity(rows).flatten(0, 1)
        place = torch.arange(tokens, device=rows.device).repeat(images)
        expert = (place * 7 + self.layer) % self.options.num_experts
        token = expert.argsort(stable=True)
        return Routing(
            token=token,
            gate=affinity[token, expert[token]],
            count=torch.bincount(expert, minlength=self.options.num_experts),
            affinity=affinity,
            demand=None,
            pool=torch.zeros_like(expert),
            quantile=None,
            rows_per_expert=None,
        )

    @property
    def loss_weights(self) -> dict[str, float]:
        return {"evenness": self.options.evenness}

    def losses(self, routing: Routing) -> dict[str, Tensor]:
        return {"evenness": routing.affinity.mean(dim=0).square().sum()}

    @torch.no_grad()
    def update(self, statistics: dict[str, Tensor]) -> None:
        self.used += statistics["pairs"]


@pytest.fixture
def model(monkeypatch) -> DiT:
    monkeypatch.setitem(ROUTERS, Hash, HashRouter)
    return build_model(tiny.config(Hash(num_experts=3, evenness=0.5), depth=4), seed=0)


def test_it_trains(model: DiT) -> None:
    tiny.stir(model, scale=0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x, t, labels = tiny.batch(8, dtype=torch.float32)
    history = []
    for _ in range(20):
        prediction = model(x, t, labels, tiny.TRAIN)
        loss = (prediction.sample - x).square().mean()
        for layer, routing in zip(model.moe_layers, prediction.routing, strict=True):
            losses, weights = layer.router.losses(routing), layer.router.loss_weights
            loss = loss + sum(weights[name] * value for name, value in losses.items())
            statistics = layer.router.statistics(routing)
            assert statistics["rows"].item() == 32 and statistics["pairs"].sum().item() == 32
            layer.router.update(statistics)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.8 * history[0]
    assert [layer.router.used.sum().item() for layer in model.moe_layers] == [20 * 32] * 2
    assert all(layer.router.weight.grad.any() for layer in model.moe_layers)


def test_it_works_wherever_the_others_do(model: DiT) -> None:
    tiny.stir(model)
    inputs = tiny.batch(4, dtype=torch.float32)
    token = RoutingPlan(selection="token", policy="ema")
    one, two = model(*inputs, tiny.TRAIN), model(*inputs, token)
    assert len(one.routing) == 2 and torch.equal(one.sample, two.sample)
    model.activation_checkpointing = True
    assert torch.equal(model(*inputs, tiny.TRAIN).sample, one.sample)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(*inputs, tiny.TRAIN).routing[0].gate.dtype == torch.float32


def test_it_is_short() -> None:
    lines = inspect.getsource(Hash) + inspect.getsource(HashRouter)
    assert len(lines.splitlines()) < 80
