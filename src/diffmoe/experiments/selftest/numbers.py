"""Drills of what is no number: in a loss, a gradient, an image or a router's scores."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffmoe.checkpoint import RunFolder
from diffmoe.config import RunConfig
from diffmoe.data import Batch
from diffmoe.errors import ExitCode
from diffmoe.experiments.selftest.outcome import Drill, Trial
from diffmoe.experiments.selftest.tiny import (
    ROUTERS,
    begin_training,
    different,
    lively_network,
    newest_state,
    tiny_run,
)
from diffmoe.model import RoutingPlan, top_pairs
from diffmoe.objective import Loss, Objective, build_objective
from diffmoe.randomness import normals
from diffmoe.training import TrainingState, new_state, own_tensor, state_parts, train_step

__all__ = ["NUMBERS"]

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Poisoned:
    """An objective whose loss, or whose gradient alone, is made what `how` says."""

    inner: Objective
    how: str

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def loss(self, model: Any, *others: Any) -> Loss:
        """The loss of the inner objective, poisoned."""
        found = self.inner.loss(model, *others)
        if self.how == "gradient":
            weight = model.model.final.weight
            nothing = (weight - weight.detach()).sum()
            # The root of 0 is 0 and has no derivative: 0 times infinity.
            return replace(found, total=found.total + nothing.abs().sqrt() * nothing)
        bad = {"nan": math.nan, "inf": math.inf}.get(self.how)
        return found if bad is None else replace(found, total=found.total * bad)


def _batch(config: RunConfig, first: int, fill: float | None = None) -> Batch:
    """A batch of random images, the first pixel of its first one replaced."""
    images = config.training.global_batch
    x = normals(0, "selftest/batch", first, images, (1, 8, 8))
    if fill is not None:
        x[0, 0, 0, 0] = fill
    return Batch(x, torch.arange(images) % 10, first)


_POISONS: dict[str, tuple[str, float | None]] = {
    "NaN in an image": ("", math.nan),
    "infinity in an image": ("", math.inf),
    "NaN as loss": ("nan", None),
    "infinity as loss": ("inf", None),
    "NaN as gradient": ("gradient", None),
}


def bad_steps(folder: Path, seed: int, count: int) -> Iterator[Trial]:
    """A step that is no number changes no bit of weights, moments, averages and thresholds.

    The sound step after it does: what is compared is what training changes.
    """
    for router in list(ROUTERS)[:count]:
        config = tiny_run(folder, router)
        state, objective = new_state(config, CPU), build_objective(config.objective)
        train_step(state, objective, [_batch(config, 0)], config)
        for name, (how, fill) in _POISONS.items():
            before, step = _kept(state), state.step
            poisoned = Poisoned(objective, how)
            train_step(state, poisoned, [_batch(config, 16 * step, fill)], config)
            wrong = different(before, _kept(state))
            held = not wrong and state.step == step + 1
            yield Trial(held, "skipped" if held else f"{name} changes {wrong[:1]} of {router}")
        before = _kept(state)
        train_step(state, objective, [_batch(config, 16 * state.step)], config)
        yield Trial(len(different(before, _kept(state))) > 9, "a sound step learns")


def _kept(state: TrainingState) -> dict[str, Tensor]:
    parts = state_parts(state)
    return {
        f"{p}/{n}": own_tensor(v).detach().clone()
        for p, part in parts.items()
        for n, v in part.items()
    }


def divergence(folder: Path, seed: int, count: int) -> Iterator[Trial]:
    """Training that diverges stops with exit code 4 after so many bad steps, each of them noted."""
    for number in range(count):
        run = RunFolder(folder / str(number))
        config = tiny_run(
            folder,
            training__learning_rate=1e30,
            training__seed=seed + number,
            loop__max_bad_in_a_row=3,
            loop__steps=12,
            loop__checkpoint_every=1,
        )
        found = begin_training(config, run.path).answer()
        told = found.error == "NonFiniteError" and found.exit_code == ExitCode.NON_FINITE
        state = newest_state(run.path)
        finite = all(v.isfinite().all() for v in state.values() if isinstance(v, Tensor))
        noted = run.bad_steps.read_text().count("\n") if run.bad_steps.exists() else 0
        held = told and finite and noted >= 3 and "last good checkpoint" in found.said
        seen = "stopped with code 4, checkpoints finite, bad steps listed"
        yield Trial(held, seen if held else f"{found.told}; finite {finite}, {noted} noted")


def router_scores(folder: Path, seed: int, count: int) -> Iterator[Trial]:
    """Rows whose scores are no numbers take no expert's room from sound rows.

    That is tried on images that compete in a pool, and on single rows of an image.
    """
    config = tiny_run(folder)
    model, plan = lively_network(config, seed), RoutingPlan(selection="train")
    for bad in (math.nan, math.inf, -math.inf)[:count]:
        x = normals(seed, "selftest/rows", 0, 8, (1, 8, 8))
        x[0] = bad
        with torch.no_grad():
            found = model(x, torch.full((8,), 0.5), torch.arange(8), plan)
        taken = sum(int(r.chosen[: config.model.tokens].sum()) for r in found.routing)
        yield _room(taken if found.sample[1:].isfinite().all() else -1, bad, "a pool")
        affinity = normals(seed, "selftest/scores", 0, 2, (16, 4)).softmax(dim=-1)
        affinity[:, 5] = bad
        token, _ = top_pairs(affinity, ((0,), (1,)), 1.0)
        yield _room(int((token % 16 == 5).sum()), bad, "an image")


def _room(lost: int, bad: float, where: str) -> Trial:
    seen = "the sound rows have all the room"
    return Trial(lost == 0, f"{lost} places of {where} lost to rows of {bad}" if lost else seen)


NUMBERS = (
    Drill("bad-steps", "a step that is no number changes nothing", bad_steps, 4),
    Drill("divergence", "training that diverges stops with code 4", divergence, 1),
    Drill("router-scores", "scores that are no numbers take no room", router_scores, 3),
)
