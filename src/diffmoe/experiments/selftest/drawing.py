"""Drills of drawing: an image knows of no other, and capacity has edges but no cliffs."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffmoe.config import RunConfig, SamplingConfig
from diffmoe.errors import ConfigError
from diffmoe.experiments.selftest.outcome import Drill, NotTriedError, Trial
from diffmoe.experiments.selftest.tiny import ROUTERS, lively_network, tiny_run
from diffmoe.model import DiT, RoutingPlan, build_model, capacity_of_images, top_pairs
from diffmoe.randomness import normals
from diffmoe.sampling import generate, is_strict, sampling_plan

__all__ = ["DRAWING"]

_CLOSE = 1e-5  # of the largest value: rounding of products whose shapes differ
_STRICT = {"DIFFMOE_STRICT": "1", "MKL_CBWR": "AVX2,STRICT"}
_LABELS, _SEEDS = [3, 1, 4, 1, 5, 9, 2], [11, 5, 3, 7, 2**62, 0, 6]
_REAL: dict[str, Any] = {"model__width": 384, "model__depth": 2, "model__heads": 6}


def _apart(one: Tensor, other: Tensor) -> float:
    """The largest difference, relative to the largest value; infinite of what is no number."""
    found = float((one - other).abs().max() / other.abs().max())
    return found if math.isfinite(found) else math.inf


def _near(one: Tensor, other: Tensor, where: str) -> Trial:
    if torch.equal(one, other):
        return Trial(True, "bit for bit the same")
    found, close = _apart(one, other), 0.0 if is_strict() else _CLOSE
    return Trial(found <= close, "within 1e-5" if found <= close else f"{found:.2g} off, {where}")


def batch_invariance(folder: Path, seed: int, count: int) -> Iterator[Trial]:
    """An image is the same in batches of any size, in another order and beside other images."""
    config = tiny_run(folder, **_REAL)
    model = lively_network(config, seed)
    for selection in ("token", "gate", "image")[:count]:
        settings = _selecting(config, selection, guidance=1.5)

        def drawn(labels: list[int], seeds: list[int], batch: int, s: Any = settings) -> Tensor:
            return generate(model, config, labels, seeds, settings=replace(s, batch=batch))

        whole = drawn(_LABELS, _SEEDS, 7)
        varied = len(whole.flatten(1).unique(dim=0)) == 7 and bool(whole.std() > 0.1)
        yield Trial(varied, "seven images unlike each other" if varied else "some images are alike")
        for size in (1, 2, 3, 5):
            many = drawn(_LABELS, _SEEDS, size)
            yield from (
                _near(*pair, f"batches of {size}") for pair in zip(many, whole, strict=True)
            )
        order = [4, 2, 6, 0, 5, 1, 3]
        mixed = drawn([_LABELS[i] for i in order], [_SEEDS[i] for i in order], 3)
        yield from (_near(mixed[n], whole[i], "in another order") for n, i in enumerate(order))
        yield _near(drawn([8, 1, 0], [99, 5, 98], 3)[1], whole[1], "beside others")


def strict_sampling(folder: Path, seed: int, count: int) -> Iterator[Trial]:
    """In strict mode, which has to be set before Python starts, all of that bit for bit."""
    out = folder / "figures.json"
    for _ in range(count):
        done = _in_strict_mode("--seed", str(seed), "--folder", str(folder), "--out", str(out))
        found = json.loads(out.read_text())["outcomes"][0] if out.exists() else {}
        if "strict sampling does not hold here" in found.get("seen", ""):
            raise NotTriedError("this processor or build of torch has no strict mode, and says so")
        held = done.returncode == 0 and bool(found) and "within" not in found["seen"]
        if held:
            yield from [Trial(True, "held bit for bit")] * found["held"]
        else:
            yield Trial(False, found.get("seen", done.stderr[-200:].strip()))


def _in_strict_mode(*words: str) -> "subprocess.CompletedProcess[str]":
    verb = [sys.executable, "-m", "diffmoe", "selftest", "--quiet", "--only", "batch-invariance"]
    environment = os.environ | _STRICT
    try:
        return subprocess.run([*verb, *words], env=environment, capture_output=True, text=True)
    except OSError as error:
        raise NotTriedError(f"no second Python can be started ({error.strerror})") from error


def _selecting(config: RunConfig, selection: str, **others: Any) -> SamplingConfig:
    """The sampling settings of a run in another selection."""
    policy = None if selection == "image" else "ema"
    changes: dict[str, Any] = {"selection": selection, "policy": policy, **others}
    return replace(config.sampling, **changes)


_FILLS = {"NaN": math.nan, "infinity": math.inf, "1e30": 1e30, "zeros": 0.0}


def hostile_neighbours(folder: Path, seed: int, count: int) -> Iterator[Trial]:
    """An image that is no image changes none of those drawn beside it, with any router."""
    kinds = [("batch_pool", s) for s in ("token", "gate", "image")]
    kinds += [(router, "token") for router in ROUTERS if router != "batch_pool"]
    for router, selection in kinds[:count]:
        config = tiny_run(folder, router, **_REAL)
        model = lively_network(config, seed)
        settings = _selecting(config, selection)
        x = normals(seed, "selftest/mates", 0, 6, (1, 8, 8))
        whole = _drawn(model, x, sampling_plan(model, settings, 6))
        for name, fill in _FILLS.items():
            for place in (0, 3):
                mates = x.clone()
                mates[place] = fill
                found = _drawn(model, mates, sampling_plan(model, settings, 6))
                others = [i for i in range(6) if i != place]
                where = f"a mate of {name}, {router}, {selection}"
                yield _near(found[others], whole[others], where)


@torch.no_grad()
def _drawn(model: DiT, x: Tensor, plan: RoutingPlan) -> Tensor:
    images = len(x)
    return model(x, torch.linspace(0.2, 0.8, images), torch.arange(images) % 10, plan).sample


# ---- the edges of capacity


def capacity_edges(folder: Path, seed: int, count: int) -> Iterator[Trial]:
    """Thresholds of any value and capacities of nothing are defined, or refused in a sentence."""
    config = tiny_run(folder, **_REAL)
    model = lively_network(config, seed)
    x = normals(seed, "selftest/edges", 0, 4, (1, 8, 8))
    edges: list[Callable[[], Trial]] = [
        lambda: _taken(model, x, 0.0, 1.0),
        lambda: _taken(model, x, -1.0, 1.0),
        lambda: _taken(model, x, 1.0, 0.0),
        lambda: _taken(model, x, 2.0, 0.0),
        lambda: _taken(model, x, math.nan, 0.0),
        lambda: _capped(model, x),
        lambda: _refused(
            "a pool too small for K", lambda: top_pairs(x.new_ones(1, 2, 8), ((0,),), 1)
        ),
        lambda: _refused("thresholds never measured", lambda: _unmeasured(config)),
    ]
    yield from (edge() for edge in edges[:count])


def _constant(model: DiT, value: float, cap: float | None = None) -> RoutingPlan:
    thresholds = torch.full((len(model.moe_layers), model.config.router.num_experts), value)
    return RoutingPlan(
        selection="token", policy="constant", thresholds=thresholds, max_capacity=cap
    )


@torch.no_grad()
def _taken(model: DiT, x: Tensor, threshold: float, share: float) -> Trial:
    """Whether experts take that share of all rows at a threshold, and images stay images."""
    times, labels = torch.linspace(0.2, 0.8, len(x)), torch.arange(len(x))
    found = model(x, times, labels, _constant(model, threshold))
    shares = {float(record.chosen.double().mean()) for record in found.routing}
    held = shares == {share} and bool(found.sample.isfinite().all())
    seen = "all rows" if share else "no rows"
    return Trial(held, seen if held else f"threshold {threshold} lets experts take {shares}")


@torch.no_grad()
def _capped(model: DiT, x: Tensor) -> Trial:
    """Whether no image gets more than its cap when every expert wants every row."""
    times, labels = torch.linspace(0.2, 0.8, len(x)), torch.arange(len(x))
    found = model(x, times, labels, _constant(model, 0.0, cap=1.5))
    most = max(float(capacity_of_images(r, model.config.tokens).max()) for r in found.routing)
    return Trial(most <= 1.5, "capped" if most <= 1.5 else f"an image took {most}, more than 1.5")


def _unmeasured(config: RunConfig) -> None:
    sampling_plan(build_model(config.model, 0), config.sampling, 2)


def _refused(what: str, work: Callable[[], object]) -> Trial:
    try:
        work()
    except ConfigError as error:
        one_line = len(str(error).splitlines()) == 1
        return Trial(one_line, "refused in one sentence" if one_line else str(error))
    return Trial(False, f"{what} is not refused")


DRAWING = (
    Drill("batch-invariance", "an image does not depend on its batch", batch_invariance, 3),
    Drill("strict-sampling", "in strict mode it has the same bits", strict_sampling, 1),
    Drill("hostile-neighbours", "no image changes those beside it", hostile_neighbours, 6),
    Drill("capacity-edges", "the edges of capacity are defined or refused", capacity_edges, 8),
)
