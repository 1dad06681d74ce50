"""What a model costs, how fast it is, and what a pool of one image does to it."""

import math
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import trained
from diffmoe.analysis import CapacityTrace
from diffmoe.checkpoint import LoadedRun, RunFolder, load
from diffmoe.codec import build_codec, to_uint8
from diffmoe.config import Dense, SamplingConfig
from diffmoe.errors import ConfigError
from diffmoe.experiments.analysis import batch_of_one, cost_of, seconds_per_image, timing
from diffmoe.experiments.scoring import Reference
from diffmoe.model import activated_parameters, count_flops, count_parameters
from diffmoe.sampling import generate
from diffmoe.training import train
from runs import run_config
from tiny import batch_pool

NONE = Reference(None, "nothing to score against")


def run_of(measured: bool = True, **changes: Any) -> LoadedRun:
    """A tiny run whose network behaves as a trained one does."""
    config = run_config(**changes)
    network = trained.network(config, measured)
    return LoadedRun(RunFolder(Path("nowhere")), config, network, 4, "ema", "")


def compared(run: LoadedRun, settings: SamplingConfig | None = None, **more: Any) -> Any:
    codec = build_codec(run.config.codec, torch.device("cpu"))
    options = {"reference": NONE, "count": 18, "many": 8, "shown": 3, **more}
    reference = options.pop("reference")
    return batch_of_one(run, codec, reference, settings or run.config.sampling, **options)


# --- a batch of one -----------------------------------------------------------------------------


def test_variants_are_what_a_user_would_draw() -> None:
    run = run_of()
    found = compared(run)
    assert found.drawn == 16
    names = [(variant.name, variant.batch) for variant in found.variants]
    pairs = [(kind, batch) for kind in ("static", "dynamic") for batch in (1, 8)]
    assert names == [*pairs, ("dynamic, token", 8)]
    for variant in found.variants:
        policy = "static" if variant.name == "static" else "ema"
        selection = "token" if variant.name.endswith("token") else "pool"
        changes = {"selection": selection, "policy": policy, "batch": variant.batch}
        settings = replace(run.config.sampling, **changes)  # a batch is one pool
        trace = CapacityTrace.empty(run.config, settings.steps)
        labels = [image % 10 for image in range(16)]
        draw = partial(generate, run.model, run.config, labels, range(16), settings=settings)
        wanted = to_uint8(draw(callback=trace))
        assert variant.images.shape == (3, 1, 8, 8) and variant.images.dtype == np.uint8
        difference = np.abs(variant.images.astype(int) - wanted[:3].numpy())
        assert difference.max() <= 1, (variant.name, variant.batch)
        assert variant.capacity == pytest.approx(trace.average, abs=1e-3)
        assert variant.agreement is None and variant.frechet is None


def test_change_is_the_distance_between_the_sizes_of_the_pool() -> None:
    found = compared(run_of(), shown=16).variants
    for one, several in zip(found[:4:2], found[1:4:2], strict=True):
        assert one.change == several.change
        difference = (one.images.astype(float) - several.images) / 127.5
        assert one.change == pytest.approx(math.sqrt((difference**2).mean()))
    assert found[0].change > 0 and found[4].change == 0
    assert found[0].capacity == found[1].capacity == 1


def test_images_that_know_no_pool_are_drawn_alone_to_see_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A token selection that did look at its batch would be found out."""
    run, batches = run_of(), []

    def spoilt(*args: Any, settings: SamplingConfig, **more: Any) -> Any:
        batches.append(settings.batch)
        return generate(*args, settings=settings, **more) + 0.5 * (settings.batch == 1)

    assert compared(run).variants[4].change == 0
    monkeypatch.setattr(sys.modules[batch_of_one.__module__], "generate", spoilt)
    assert compared(run).variants[4].change > 0.1
    assert batches[-2:] == [8, 1]


def test_samples_of_a_trained_run_are_scored(tmp_path: Path) -> None:
    train(run_config(), tmp_path, progress=False)
    run = load(tmp_path)
    reference = Reference.of(run.config, run.trained_on.get("data"))
    found = compared(run, reference=reference, count=8).variants
    assert all(0 <= variant.agreement <= 1 and variant.frechet > 0 for variant in found)


FLOW = [
    {"policy": "constant", "gamma": 0.4, "max_capacity": 2.0},
    {"capacity": 0.7, "capacity_level": "layer"},
    {"selection": "gate"},
    {"selection": "image"},
    {"selection": "pool", "pool_images": 3, "batch": 9, "guidance_pool": "joint"},
    {"sampler": "heun", "guidance": 2.0, "guidance_end": 0.5, "batch": 125},
    {"sampler": "dopri5", "rtol": 0.1, "atol": 0.1},
    {"sampler": "dopri5", "rtol": 0.1, "atol": 0.1, "shared_step": True, "selection": "pool"},
    {"precision": "bfloat16"},
]


@pytest.mark.parametrize("changes", FLOW, ids=str)
def test_whatever_was_asked_for_the_variants_can_be_drawn(changes: dict[str, Any]) -> None:
    settings = SamplingConfig(**{"steps": 2, "batch": 4, **changes})
    found = compared(run_of(), settings, count=4, many=4)
    assert len(found.variants) == 5 and found.drawn == 4


@pytest.mark.parametrize("changes", [{}, {"sampler": "ddim", "eta": 0.5}], ids=str)
def test_ddpm_has_the_same_variants(changes: dict[str, Any]) -> None:
    run = run_of(objective="ddpm")
    found = compared(run, replace(run.config.sampling, **changes), count=4, many=2)
    assert len(found.variants) == 5 and found.variants[4].change == 0


def test_an_image_too_small_for_its_experts_is_left_out() -> None:
    run = run_of(model__router=batch_pool(20))  # 16 tokens an image
    found = compared(run, count=4, many=4).variants
    assert [(v.name, v.batch) for v in found[:2]] == [("static", 4), ("dynamic", 1)]
    assert math.isnan(found[0].change) and len(found) == 4


def test_thresholds_never_measured_are_left_out() -> None:
    found = compared(run_of(measured=False), count=4, many=2)
    assert {variant.name for variant in found.variants} == {"static"}


@pytest.mark.parametrize("router", ["dense", "token_choice", "expert_choice"])
def test_other_routers_have_nothing_to_compare(router: str) -> None:
    assert compared(run_of(router=router)) is None


def test_no_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="count 0"):
        compared(run_of(), count=0)


# --- seconds ------------------------------------------------------------------------------------


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[SamplingConfig]:
    """The settings of every batch drawn from now on."""
    seen: list[SamplingConfig] = []

    def watched(*args: Any, settings: SamplingConfig, **more: Any) -> Any:
        seen.append(settings)
        return generate(*args, settings=settings, **more)

    monkeypatch.setattr(timing, "generate", watched)
    return seen


def test_rounds_are_interleaved_behind_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    run, seen = run_of(), drawn(monkeypatch)
    found = seconds_per_image(run, run.config.sampling, (1, 4), rounds=3)
    assert list(found) == [1, 4] and all(seconds > 0 for seconds in found.values())
    assert [way.batch for way in seen] == [1, 4, 1, 4, 4, 1, 1, 4]
    assert [way.steps for way in seen] == [2, 2] + [3] * 6


def test_a_budget_ends_after_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    run, seen = run_of(), drawn(monkeypatch)
    assert seconds_per_image(run, run.config.sampling, (1, 2), rounds=50, budget=0).keys() == {1, 2}
    assert len(seen) == 4


def test_pools_follow_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    run, seen = run_of(model__router=batch_pool(20)), drawn(monkeypatch)
    settings = SamplingConfig(steps=1, selection="pool", policy="static", pool_images=2, batch=4)
    assert seconds_per_image(run, settings, (1, 3, 4), rounds=1).keys() == {3, 4}
    assert [way.pool_images for way in seen] == [None, 2, None, 2]


def test_a_target_is_timed_at_its_thresholds() -> None:
    run = run_of()
    settings, thresholds = run.config.sampling.at(capacity=0.7), torch.full((1, 4), 0.3)
    assert seconds_per_image(run, settings, [2], rounds=1, thresholds=thresholds)[2] > 0
    with pytest.raises(ConfigError, match="policy target needs thresholds"):
        seconds_per_image(run, settings, [2], rounds=1)


# --- cost ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("router", ["batch_pool", "token_choice", "expert_choice", "dense"])
@pytest.mark.parametrize("objective", ["flow", "ddpm"])
def test_costs_are_the_parts_put_together(router: str, objective: str) -> None:
    run = run_of(router=router, objective=objective)
    model, timings = run.config.model, {1: 0.5, 16: 0.125}
    cost = cost_of(run, run.config.sampling, 0.5, evaluations_per_image=4.5, timings=timings)
    flops, numbers = count_flops(model), cost.numbers
    activated = activated_parameters(model, 0.5)
    twin = count_flops(replace(model, router=Dense()))
    wanted = {
        "total_parameters": count_parameters(model).total,
        "eq40_parameters": activated["eq40"],
        "executed_parameters": activated["executed"],
        "dense_gflops": twin.fixed / 1e9,
        "evaluation_gflops": flops.at(0.5) / 1e9,
        "routing_gflops": flops.routing / 1e9,
        "evaluations_per_image": 4.5,
        "image_gflops": 4.5 * flops.at(0.5) / 1e9,
        "batch_1_seconds": 0.5,
        "batch_1_gflops_per_second": 9 * flops.at(0.5) / 1e9,
        "batch_16_seconds": 0.125,
        "batch_16_gflops_per_second": 36 * flops.at(0.5) / 1e9,
    }
    assert numbers == pytest.approx(wanted)
    assert len(cost.rows) == len(wanted)
    assert all(name and value and meaning for name, value, meaning in cost.rows)


def test_what_readers_see() -> None:
    run = run_of()
    settings = replace(run.config.sampling, guidance=2.0)
    rows = cost_of(run, settings, 0.9, evaluations_per_image=6.0, timings={8: 0.0123}).rows
    values = {name: (value, meaning) for name, value, meaning in rows}
    assert values["evaluations per image"] == ("6", "3 steps of euler, guidance 2")
    assert values["seconds per image, batch of 8"][0] == "0.0123 s"
    assert "at capacity 0.900" in values["evaluation"][1]
    settings = SamplingConfig(**{**asdict(settings), "sampler": "dopri5", "selection": "token"})
    rows = cost_of(run, settings, 0.9, evaluations_per_image=20.0, timings={}).rows
    assert ("evaluations per image", "20", "dopri5 chooses its steps, guidance 2") in rows
