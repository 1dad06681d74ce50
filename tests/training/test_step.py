"""One optimizer step: the same gradient in parts, thresholds once, no draw from anywhere else."""

import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from diffmoe.codec import build_codec
from diffmoe.config import RunConfig
from diffmoe.data import Batch, open_source, stream
from diffmoe.objective import build_objective
from diffmoe.presets import PRESETS
from diffmoe.training import (
    TrainingState,
    average_weights,
    learning_rate,
    new_state,
    train_step,
    training_plan,
)
from runs import OBJECTIVES, ROUTER_KINDS, run_config

CPU = torch.device("cpu")


def batches(config: RunConfig, first: int = 0) -> Iterator[list[Batch]]:
    """The micro-batches of each optimizer step."""
    one = stream(
        config,
        open_source(config),
        build_codec(config.codec, CPU),
        first=first,
        device=CPU,
    )
    count = config.training.global_batch // config.micro_batch
    while True:
        yield list(itertools.islice(one, count))


def stepped(config: RunConfig, steps: int = 1, dtype: torch.dtype = torch.float32) -> TrainingState:
    """The state after some steps, in a dtype of choice."""
    state, objective = new_state(config, CPU), build_objective(config.objective)
    for part in (state.model, state.average):
        part.to(dtype)
    for micro in itertools.islice(batches(config), steps):
        cast = [batch._replace(x=batch.x.to(dtype)) for batch in micro]
        train_step(state, objective, cast, config)
    return state


def gradients(state: TrainingState) -> dict[str, Tensor]:
    named = state.model.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


# ---- accumulation


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("router", ROUTER_KINDS)
def test_accumulated_gradients_are_those_of_the_large_batch(router: str, objective: str) -> None:
    # Two steps: at the first the output layer is zero and hides the gradients behind it.
    config = run_config(router, objective, training__clip_norm=None, training__warmup_steps=0)
    parts = run_config(
        router,
        objective,
        training__clip_norm=None,
        training__warmup_steps=0,
        machine__micro_batch=8,
    )
    whole, summed = stepped(config, 3, torch.float64), stepped(parts, 3, torch.float64)
    wanted, found = gradients(whole), gradients(summed)
    assert wanted.keys() == found.keys()
    assert all(g.dtype == torch.float64 and g.abs().max() > 0 for g in wanted.values())
    largest = max(float(g.abs().max()) for g in wanted.values())
    for name, gradient in wanted.items():
        assert float((found[name] - gradient).abs().max()) < 1e-9 * largest, name


def test_without_micro_batches_the_gradient_is_that_of_the_loss() -> None:
    config = run_config(training__clip_norm=None)
    state, objective = new_state(config, CPU), build_objective(config.objective)
    (micro,) = itertools.islice(batches(config), 1)
    _, terms, statistics, _ = train_step(state, objective, micro, config)
    norm = torch.stack([g.norm() for g in gradients(state).values()]).norm()
    assert terms["gradient_norm"].item() == pytest.approx(norm.item(), rel=1e-5)
    assert terms["loss"].item() == pytest.approx(
        terms["mse"].item() + terms["predictor"].item(), rel=1e-6
    )
    assert len(statistics) == 1 and state.step == 1


def test_pools_are_consecutive_images() -> None:
    plan = training_plan(6, 2)
    assert plan.selection == "train"
    assert plan.pools(6) == ((0, 1), (2, 3), (4, 5))


# ---- thresholds and averages


@pytest.mark.parametrize("micro", [8, 16])
def test_thresholds_are_updated_once_a_step(micro: int) -> None:
    config = run_config(machine__micro_batch=micro, machine__activation_checkpointing=micro == 8)
    router = stepped(config, 3).model.moe_layers[0].router
    assert router.threshold_updates.item() == 3


@pytest.mark.parametrize("again", [False, True])
def test_thresholds_do_not_depend_on_the_micro_batch(again: bool) -> None:
    whole = stepped(run_config(), 3).model.moe_layers[0].router
    parts = (
        stepped(run_config(machine__micro_batch=8, machine__activation_checkpointing=again), 3)
        .model.moe_layers[0]
        .router
    )
    for name in ("threshold", "gate_threshold"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-4, atol=0)


def test_activation_checkpointing_changes_no_bit() -> None:
    plain = stepped(run_config(), 3).model.state_dict()
    again = stepped(run_config(machine__activation_checkpointing=True), 3).model.state_dict()
    assert all(torch.equal(plain[name], again[name]) for name in plain)


@pytest.mark.parametrize("decay", [0.0, 0.9, 1.0])
def test_the_average_is_its_formula_and_thresholds_are_copied(decay: float) -> None:
    config = run_config(training__ema_decay=decay)
    state, objective = new_state(config, CPU), build_objective(config.objective)
    for micro in itertools.islice(batches(config), 3):
        before = {name: p.clone() for name, p in state.average.named_parameters()}
        train_step(state, objective, micro, config)
        model = dict(state.model.named_parameters())
        for name, now in state.average.named_parameters():
            wanted = decay * before[name] + (1 - decay) * model[name]
            torch.testing.assert_close(now, wanted, rtol=1e-5, atol=1e-7)
        pairs = zip(state.average.buffers(), state.model.buffers(), strict=True)
        assert all(torch.equal(kept, live) for kept, live in pairs)
    assert state.average.moe_layers[0].router.threshold_updates == 3
    assert not any(p.requires_grad for p in state.average.parameters())


def test_averaging_reads_the_weights_and_leaves_them() -> None:
    average, model = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    average.load_state_dict({"weight": torch.tensor([[1.0]]), "bias": torch.tensor([0.0])})
    model.load_state_dict({"weight": torch.tensor([[3.0]]), "bias": torch.tensor([8.0])})
    average_weights([*average.parameters()], [*model.parameters()], torch.tensor(0.25))
    assert (average.weight.item(), average.bias.item()) == (1.5, 2.0)
    assert (model.weight.item(), model.bias.item()) == (3.0, 8.0)


# ---- learning rate and clipping


@pytest.mark.parametrize(
    ("step", "share"),
    [(0, 0.25), (1, 0.5), (3, 1.0), (4, 1.0), (7, 0.75), (10, 0.5), (16, 0.0), (99, 0.0)],
)
def test_the_rate_warms_up_and_decays_as_a_cosine(step: int, share: float) -> None:
    config = run_config(
        training__learning_rate=2.0, training__warmup_steps=4, training__decay_steps=16
    ).training
    wanted = 1 + np.cos(np.pi * 3 / 12) if step == 7 else 2 * share
    assert learning_rate(config, step) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(("step", "share"), [(0, 0.5), (1, 1.0), (2, 1.0), (10**6, 1.0)])
def test_the_rate_is_constant_without_a_decay(step: int, share: float) -> None:
    config = run_config(training__warmup_steps=2, training__decay_steps=None).training
    assert learning_rate(config, step) == share * config.learning_rate


def test_the_optimizer_uses_the_rate_of_the_step() -> None:
    config = run_config(training__warmup_steps=4)
    state = stepped(config, 3)
    assert state.optimizer.param_groups[0]["lr"] == learning_rate(config.training, 2)


def test_gradients_are_clipped_to_the_norm_and_reported_before() -> None:
    free = stepped(run_config(training__clip_norm=None))
    norm = torch.stack([g.norm() for g in gradients(free).values()]).norm().item()
    limit = norm / 10
    config = run_config(training__clip_norm=limit)
    state, objective = new_state(config, CPU), build_objective(config.objective)
    terms = train_step(state, objective, next(batches(config)), config).terms
    clipped = torch.stack([g.norm() for g in gradients(state).values()]).norm().item()
    assert terms["gradient_norm"].item() == pytest.approx(norm, rel=1e-5)
    assert clipped == pytest.approx(limit, rel=1e-4)


def test_presets_of_the_paper_do_not_clip() -> None:
    small = ("digits", "scenes")
    paper = [build().training for name, build in PRESETS.items() if not name.startswith(small)]
    assert paper and all(config.clip_norm is None for config in paper)


# ---- precision


@pytest.mark.parametrize("router", ROUTER_KINDS)
def test_bfloat16_computes_low_and_keeps_high(router: str) -> None:
    low = stepped(run_config(router, training__precision="bfloat16"), 3)
    high = stepped(run_config(router), 3)
    floats = [t for t in low.model.state_dict().values() if t.is_floating_point()]
    assert all(t.dtype == torch.float32 and t.isfinite().all() for t in floats)
    moments = [t for values in low.optimizer.state.values() for t in values.values()]
    assert all(t.dtype == torch.float32 for t in moments)
    apart = (low.model.final.weight - high.model.final.weight).abs().max()
    assert 0 < apart < 0.02


# ---- no hidden state, no waiting


def raising(*arguments: Any, **named: Any) -> None:
    raise AssertionError("a global generator was used")


@contextmanager
def forbidden(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every way to draw from a global generator raises."""
    with patch.context() as inside:
        for name in ("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "normal"):
            inside.setattr(torch, name, raising)
        for name in ("bernoulli", "multinomial", "poisson", "seed", "manual_seed"):
            inside.setattr(torch, name, raising)
        for name in ("normal_", "uniform_", "bernoulli_", "random_", "exponential_", "cauchy_"):
            inside.setattr(torch.Tensor, name, raising)
        for name in ("rand", "randn", "random", "randint", "normal", "uniform", "permutation"):
            inside.setattr(np.random, name, raising)
        for name in ("shuffle", "choice", "seed", "default_rng"):
            inside.setattr(np.random, name, raising)
        for name in ("random", "randint", "shuffle", "choice", "uniform", "gauss", "sample"):
            inside.setattr(random, name, raising)
        yield


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("router", ROUTER_KINDS)
def test_a_step_draws_from_no_global_generator(
    router: str, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(router, objective, machine__micro_batch=8)
    state, made = new_state(config, CPU), build_objective(config.objective)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    python_state = random.getstate()
    with forbidden(monkeypatch):
        for micro in itertools.islice(batches(config), 2):
            train_step(state, made, micro, config)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()
    assert random.getstate() == python_state


def test_a_draw_from_a_global_generator_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    for draw in (
        lambda: torch.randn(2),
        lambda: torch.empty(2).normal_(),
        lambda: np.random.rand(),
        lambda: random.random(),
    ):
        with pytest.raises(AssertionError), forbidden(monkeypatch):
            draw()


class NoWaiting(TorchDispatchMode):
    """Refuses what would make the host wait for a device: reading values, or shapes from values."""

    WAITS = (
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "unique",
        "unique_dim",
        "_unique2",
        "is_nonzero",
        "equal",
    )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.WAITS, f"{name} waits for the device"
        if name == "index":
            indices = [i for i in args[1] if i is not None]
            assert all(i.dtype not in (torch.bool, torch.uint8) for i in indices), "boolean index"
        return func(*args, **(kwargs or {}))


@contextmanager
def no_waiting(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Also forbids copies to the host, which a CPU makes without an operator."""

    def waiting(*arguments: Any, **named: Any) -> None:
        raise AssertionError("a copy to the host waits for the device")

    with patch.context() as inside, NoWaiting():
        for name in ("tolist", "cpu", "numpy", "item"):
            inside.setattr(torch.Tensor, name, waiting)
        yield


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("router", ["dense", "expert_choice", "batch_pool"])
def test_a_step_never_waits_for_the_device(
    router: str, clip: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(router, machine__micro_batch=8, training__clip_norm=clip)
    state, objective = new_state(config, CPU), build_objective(config.objective)
    for micro in itertools.islice(batches(config), 2):
        with no_waiting(monkeypatch):
            train_step(state, objective, micro, config)


def test_waiting_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    for wait in (
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: x[x > 1],
        lambda x: bool(x.any()),
    ):
        with pytest.raises(AssertionError), no_waiting(monkeypatch):
            wait(torch.ones(3))
