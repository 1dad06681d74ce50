"""A router of one's own: one class of options, one class, one call; every room takes it."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import tiny
from diffmoe.checkpoint import load
from diffmoe.cli import main
from diffmoe.config import (
    ROUTER_OPTIONS,
    BatchPool,
    RouterOptions,
    from_dict,
    read_config,
    register_options,
    to_dict,
)
from diffmoe.errors import ConfigError
from diffmoe.model import ROUTERS, DiT, Router, Routing, RoutingPlan, build_model, register_router
from diffmoe.sampling import generate
from diffmoe.training import train
from runs import newest_tensors, run_config


@dataclass(frozen=True, kw_only=True)
class Hash(RouterOptions):
    """Options of the hash router."""

    kind: ClassVar[str] = "hash"
    num_experts: int
    evenness: float  # weight of its loss


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
        )

    @property
    def loss_weights(self) -> dict[str, float]:
        return {"evenness": self.options.evenness}

    def losses(self, routing: Routing) -> dict[str, Tensor]:
        return {"evenness": routing.affinity.mean(dim=0).square().sum()}

    @torch.no_grad()
    def update(self, statistics: dict[str, Tensor]) -> None:
        self.used += statistics["pairs"]


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    register_router(Hash, HashRouter)
    yield
    del ROUTERS[Hash], ROUTER_OPTIONS["hash"]


@pytest.fixture
def model() -> DiT:
    return build_model(tiny.config(Hash(num_experts=3, evenness=0.5), depth=4), seed=0)


def test_it_learns(model: DiT) -> None:
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


def hash_run(**changes):
    return run_config(model__router=Hash(num_experts=3, evenness=0.5), **changes)


def test_it_trains_resumes_and_samples(tmp_path: Path) -> None:
    train(hash_run(), tmp_path / "whole", progress=False)
    train(hash_run(loop__steps=2), tmp_path / "parts", progress=False)
    train(hash_run(), tmp_path / "parts", progress=False)
    whole, parts = newest_tensors(tmp_path / "whole"), newest_tensors(tmp_path / "parts")
    assert whole["model/blocks.1.feed_forward.router.used"].sum().item() == 4 * 16 * 16
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    run = load(tmp_path / "parts")
    assert run.config == read_config(tmp_path / "parts" / "config.yaml") == hash_run()
    assert generate(run.model, run.config, [3, 4], [0, 1]).isfinite().all()


def test_the_command_line_knows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(hash_run(loop__steps=2), tmp_path / "run", progress=False)
    more = ["train", str(tmp_path / "run"), "--loop.steps", "4", "--quiet"]
    assert main(more) == 0
    assert main(["sample", str(tmp_path / "run"), "--count", "2", "--quiet"]) == 0
    assert main([*more, "--model.router.evenness", "0.7"]) == 2
    assert "model.router.evenness" in capsys.readouterr().err


def test_a_config_of_it_is_text_and_back() -> None:
    config = hash_run()
    assert from_dict(to_dict(config), where="here") == config
    text = to_dict(config)
    text["model"]["router"]["kind"] = "hush"
    with pytest.raises(ConfigError, match="there is no kind 'hush', did you mean hash"):
        from_dict(text, where="here")


def test_a_kind_belongs_to_one_router() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Other(RouterOptions):
        kind: ClassVar[str] = "hash"
        num_experts: int

    with pytest.raises(ConfigError, match="kind 'hash' belongs to Hash"):
        register_router(Other, HashRouter)
    with pytest.raises(ConfigError, match="dict cannot stand in a config"):
        register_options(dict)  # type: ignore[arg-type]
    register_router(Hash, HashRouter)  # again, as a notebook does
    assert ROUTER_OPTIONS["batch_pool"] is BatchPool


def test_a_program_that_does_not_know_it_says_so(tmp_path: Path) -> None:
    train(hash_run(loop__steps=2), tmp_path, progress=False)
    kept = ROUTER_OPTIONS.pop("hash")
    try:
        with pytest.raises(ConfigError, match="there is no kind 'hash'"):
            read_config(tmp_path / "config.yaml")
    finally:
        ROUTER_OPTIONS["hash"] = kept


def test_it_is_short() -> None:
    lines = inspect.getsource(Hash) + inspect.getsource(HashRouter)
    assert len(lines.splitlines()) < 80
