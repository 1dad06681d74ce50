"""What is no number harms nothing: the step is skipped, counted, named, and too many are told."""

import itertools
import json
import logging
import math
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffmoe.checkpoint import RunFolder, load, newest_checkpoint, verify
from diffmoe.config import RunConfig
from diffmoe.data import open_source, stream
from diffmoe.errors import ExitCode, NonFiniteError
from diffmoe.model import Router
from diffmoe.objective import build_objective
from diffmoe.training import (
    Saver,
    loop,
    material,
    new_state,
    state_parts,
    step,
    train,
    train_step,
    watch,
)
from diffmoe.training.watch import ExpertWatch
from runs import (
    OBJECTIVES,
    ROUTER_KINDS,
    changed,
    newest_tensors,
    poisoned,
    run_config,
    stored_latents,
)

CPU = torch.device("cpu")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def everything(state: Any) -> dict[str, Tensor]:
    parts = state_parts(state)
    return {f"{kind}/{n}": t.clone() for kind in parts for n, t in parts[kind].items()}


# ---- one step

Fault = Callable[[pytest.MonkeyPatch, Any, list[Any]], None]


def bad_input(patch: pytest.MonkeyPatch, state: Any, micro: list[Any]) -> None:
    micro[1].x[3, 0, 0, 0] = math.nan


def infinite_input(patch: pytest.MonkeyPatch, state: Any, micro: list[Any]) -> None:
    micro[0].x[0] = math.inf


def bad_loss(patch: pytest.MonkeyPatch, state: Any, micro: list[Any]) -> None:
    honest = step._loss

    def broken(*others: Any) -> Any:
        found = honest(*others)
        return replace(found, total=found.total * math.inf)

    patch.setattr(step, "_loss", broken)


def bad_gradient(patch: pytest.MonkeyPatch, state: Any, micro: list[Any]) -> None:
    state.model.final.bias.register_hook(lambda gradient: gradient * math.nan)


def overflowing_gradient(patch: pytest.MonkeyPatch, state: Any, micro: list[Any]) -> None:
    state.model.final.bias.register_hook(lambda gradient: gradient + 1e38)


def bad_router_score(patch: pytest.MonkeyPatch, state: Any, micro: list[Any]) -> None:
    honest = Router.affinity

    def broken(router: Router, rows: Tensor) -> Tensor:
        return honest(router, rows).index_fill(1, torch.tensor([3]), math.nan)

    patch.setattr(Router, "affinity", broken)


FAULTS: list[Fault] = [
    bad_input,
    infinite_input,
    bad_loss,
    bad_gradient,
    overflowing_gradient,
    bad_router_score,
]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(
    ("fault", "router"),
    [
        pytest.param(fault, router, id=f"{fault.__name__}-{router}")
        for fault, router in itertools.product(FAULTS, ROUTER_KINDS)
        if fault is not bad_router_score or router != "dense"  # which has no router
    ],
)
def test_a_step_that_is_no_number_changes_no_bit(
    fault: Fault, router: str, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, moments, averages and thresholds; without the guard all of them are NaN."""
    config = run_config(router, objective, machine__micro_batch=8, training__clip_norm=1.0)
    state, made = new_state(config, CPU), build_objective(config.objective)
    batches = stream(config, open_source(config), None, first=0, device=CPU)
    for _ in range(2):
        assert train_step(state, made, [next(batches), next(batches)], config).sound
    micro = [next(batches)._replace(x=next(batches).x.clone()) for _ in range(2)]
    with monkeypatch.context() as patch:
        fault(patch, state, micro)
        before = everything(state)
        found = train_step(state, made, micro, config)
    after = everything(state)
    assert not found.sound and state.step == 3 and state.counters.position == 48
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value.numpy().tobytes() == after[name].numpy().tobytes(), name


def test_a_bad_first_step_leaves_a_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moments begin with the first sound step."""
    config = run_config(training__warmup_steps=0, training__decay_steps=None)
    state, made = new_state(config, CPU), build_objective(config.objective)
    batches = stream(config, open_source(config), None, first=0, device=CPU)
    first = next(batches)
    before = everything(state)
    assert not train_step(state, made, [first._replace(x=first.x * math.nan)], config).sound
    after = everything(state)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(not after[name].any() for name in after.keys() - before.keys())
    fresh = new_state(config, CPU)
    for one in (state, fresh):
        assert train_step(one, made, [first], config).sound
    found, wanted = everything(state), everything(fresh)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


# ---- a run


def test_bad_steps_are_skipped_counted_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = run_config(loop__steps=8, loop__log_every=4, machine__micro_batch=8)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(material, "stream", poisoned(material.stream, 20, 90))  # of steps 2 and 6
        train(config, tmp_path, progress=False)
    folder = RunFolder(tmp_path)
    assert all(value.isfinite().all() for value in newest_tensors(tmp_path).values())
    found = lines(folder.bad_steps)
    assert [line["step"] for line in found] == [2, 6]
    assert [(line["first_sample"], line["last_sample"]) for line in found] == [(16, 31), (80, 95)]
    source = open_source(config)
    batches = stream(config, source, None, first=16, device=CPU)
    assert found[0]["places"] == [*next(batches).index, *next(batches).index]
    assert found[0]["loss"] is None and "gradient_norm" in found[0]
    assert found[0]["broken"] == found[0]["places"][:8]  # the micro-batch of sample 20
    told = lines(folder.metrics)
    assert [line["bad_steps"] for line in told] == [1, 2]
    assert all(math.isfinite(line["loss"]) for line in told)  # the mean of the sound ones
    newest = newest_checkpoint(folder.checkpoints)
    assert newest is not None and newest[1].state["bad_steps"] == 2
    assert "step 2 was skipped" in caplog.text and "2 so far" in caplog.text


@pytest.mark.parametrize(("log", "save"), [(1, 4), (4, 2), (100, 2), (2, 100)])
def test_too_many_bad_steps_in_a_row_stop_the_run(
    log: int, save: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(
        loop__steps=12, loop__log_every=log, loop__checkpoint_every=save, loop__max_bad_in_a_row=3
    )
    with monkeypatch.context() as patch:
        bad = range(16 * 5, 16 * 12, 16)  # steps 6 and after, beside 1 and 3
        patch.setattr(material, "stream", poisoned(material.stream, 0, 32, *bad))
        with pytest.raises(NonFiniteError, match="in 3 steps in a row, up to step 8") as caught:
            train(config, tmp_path / "run", progress=False)
    assert caught.value.exit_code is ExitCode.NON_FINITE == 4
    said = str(caught.value)
    assert len(said.splitlines()) == 1 and "bad_steps.jsonl names the images" in said
    good = {4: "step-00000004", 2: "step-00000004", 100: "none yet"}[save]
    assert said.endswith(f"last good checkpoint: {good}")
    kept = sorted(int(p.name[5:]) for p in RunFolder(tmp_path / "run").checkpoints.glob("step-*"))
    assert kept == {4: [4], 2: [4, 6], 100: []}[save]
    train(config, tmp_path / "run", progress=False)  # sound data
    assert load(tmp_path / "run").step == 12


def test_the_last_good_checkpoint_is_kept_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints of bad steps hold the same weights, but what led there may be in them."""
    config = run_config(loop__checkpoint_every=1, loop__keep_checkpoints=1, loop__steps=12)
    config = changed(config, {"loop.max_bad_in_a_row": 5})
    monkeypatch.setattr(material, "stream", poisoned(material.stream, *range(48, 200, 16)))
    with pytest.raises(NonFiniteError, match="last good checkpoint: step-00000003"):
        train(config, tmp_path, progress=False)
    folders = sorted(RunFolder(tmp_path).checkpoints.glob("step-*"))
    assert [verify(path).state["bad_in_a_row"] for path in folders] == [0, 4]
    with pytest.raises(NonFiniteError, match="in 5 steps in a row, up to step 8"):
        train(config, tmp_path, progress=False)


def test_weights_that_are_no_numbers_are_never_saved(tmp_path: Path) -> None:
    config = run_config(training__learning_rate=1e39, training__warmup_steps=0, loop__steps=2)
    with pytest.raises(NonFiniteError, match="the weights after step 2 are not finite"):
        train(config, tmp_path, progress=False)
    assert not list(RunFolder(tmp_path).checkpoints.glob("step-*"))


def test_the_image_that_did_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A poisoned image harms no other of its pool, so its own loss tells."""
    honest = material.stream

    def stream_with_one(*others: Any, **more: Any) -> Any:
        for batch in honest(*others, **more):
            x = batch.x.clone()
            if batch.first == 16:
                x[5, 0, 3, 3] = math.inf
            yield batch._replace(x=x)

    monkeypatch.setattr(material, "stream", stream_with_one)
    train(run_config(), tmp_path, progress=False)
    (line,) = lines(RunFolder(tmp_path).bad_steps)
    assert line["broken"] == [line["places"][5]]


# ---- going back


def rewound(path: Path, **changes: Any) -> RunConfig:
    return run_config(
        loop__steps=12, loop__log_every=1, loop__max_bad_in_a_row=2, loop__rewinds=1, **changes
    )


def test_a_rewind_goes_on_with_the_data_after_the_bad_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = rewound(tmp_path)
    monkeypatch.setattr(
        material, "stream", poisoned(material.stream, *range(64, 96))
    )  # steps 5 and 6
    train(config, tmp_path / "run", progress=False)
    assert "2 steps in a row were not finite: going on from step-00000004" in caplog.text
    folder = RunFolder(tmp_path / "run")
    newest = newest_checkpoint(folder.checkpoints)
    assert newest is not None and newest[1].step == 12
    assert newest[1].samples == newest[1].state["position"] == 16 * 14
    assert (newest[1].state["rewinds"], newest[1].state["bad_steps"]) == (1, 2)
    assert [line["step"] for line in lines(folder.metrics)] == list(range(1, 13))
    assert [line["step"] for line in lines(folder.bad_steps)] == [5, 6]

    # The same as a run that never saw the bad data.
    state, made = new_state(config, CPU), build_objective(config.objective)
    for first in [*range(0, 64, 16), *range(96, 224, 16)]:
        batches = stream(config, open_source(config), None, first=first, device=CPU)
        train_step(state, made, [next(batches)], config)
    wanted, found = everything(state), newest_tensors(tmp_path / "run")
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


@pytest.mark.parametrize("stop", [5, 6, 7])
def test_a_stop_around_a_rewind_changes_nothing(
    stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = rewound(tmp_path)
    monkeypatch.setattr(material, "stream", poisoned(material.stream, *range(64, 96)))
    train(config, tmp_path / "straight", progress=False)
    train(changed(config, {"loop.steps": stop}), tmp_path / "run", progress=False)
    train(config, tmp_path / "run", progress=False)
    straight, resumed = newest_tensors(tmp_path / "straight"), newest_tensors(tmp_path / "run")
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    assert [line["step"] for line in lines(RunFolder(tmp_path / "run").bad_steps)] == [5, 6]


class Arrival:
    """What tells that a verdict has come from the device."""

    def synchronize(self) -> None:
        pass


def test_a_device_ahead_of_the_host_goes_back_to_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verdicts two steps late, or at once before a save or a line: the same run to the last bit."""
    config = changed(rewound(tmp_path), {"loop.log_every": 5, "loop.checkpoint_every": 3})
    monkeypatch.setattr(material, "stream", poisoned(material.stream, *range(64, 96)))
    train(config, tmp_path / "near", progress=False)
    honest = watch._sent
    with monkeypatch.context() as patch:
        patch.setattr(watch, "_sent", lambda *w: honest(*w)._replace(arrived=Arrival()))
        train(config, tmp_path / "far", progress=False)
        train(changed(config, {"loop.log_every": 1}), tmp_path / "told", progress=False)
    near = newest_tensors(tmp_path / "near")
    for other in ("far", "told"):
        found = newest_tensors(tmp_path / other)
        kept = [name for name in near if not name.startswith("window/")]  # as lines fall
        assert all(torch.equal(near[name], found[name]) for name in kept), other
    states = [
        verify(RunFolder(tmp_path / kind).checkpoints / "step-00000012").state
        for kind in ("near", "far", "told")
    ]
    assert states[0] == states[1] == states[2] and states[0]["rewinds"] == 1


def test_a_line_of_the_way_that_was_left_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job killed soon after it went back still knows what it met before."""
    config = changed(rewound(tmp_path), {"loop.checkpoint_every": 1})
    monkeypatch.setattr(material, "stream", poisoned(material.stream, *range(64, 96)))
    honest = loop.train_step

    def killed(state: Any, *others: Any) -> Any:
        if state.step == 5 and state.counters.rewinds:
            raise KeyboardInterrupt
        return honest(state, *others)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", killed)
        patch.setattr(loop, "Saver", waiting(loop.Saver))
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path, progress=False)
    folder = RunFolder(tmp_path)
    assert load(tmp_path).step == 5 and load(tmp_path).state["rewinds"] == 1
    train(config, tmp_path, progress=False)
    assert [line["step"] for line in lines(folder.bad_steps)] == [5, 6]
    assert load(tmp_path).state["bad_steps"] == 2


def waiting(kind: type[Saver]) -> type[Saver]:
    """A saver that always waits."""

    class Waiting(kind):  # type: ignore[misc, valid-type]
        def save(self, state: Any) -> None:
            super().save(state)
            self.wait()

    return Waiting


def test_a_rewind_gives_up_what_was_saved_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint of the way that was left would else stand for the step of the new one."""
    config = rewound(tmp_path, loop__checkpoint_every=5, loop__keep_checkpoints=9)
    config = changed(config, {"loop.max_bad_in_a_row": 3})
    monkeypatch.setattr(material, "stream", poisoned(material.stream, *range(16 * 8, 16 * 11)))
    train(config, tmp_path, progress=False)
    for step_, position in ((5, 5), (10, 16), (12, 18)):
        manifest = verify(RunFolder(tmp_path).checkpoints / f"step-{step_:08d}")
        assert manifest.samples == 16 * position
        assert manifest.state["bad_in_a_row"] == 0


def test_without_a_good_checkpoint_a_rewind_leads_to_the_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where checkpoints of bad steps are there: they are given up."""
    config = changed(rewound(tmp_path), {"loop.checkpoint_every": 1})
    with monkeypatch.context() as patch:
        patch.setattr(material, "stream", poisoned(material.stream, *range(32)))  # steps 1 and 2
        train(config, tmp_path / "run", progress=False)
    newest = newest_checkpoint(RunFolder(tmp_path / "run").checkpoints)
    assert newest is not None and newest[1].state["position"] == 16 * 14
    state, made = new_state(config, CPU), build_objective(config.objective)
    for first in range(32, 224, 16):
        batches = stream(config, open_source(config), None, first=first, device=CPU)
        train_step(state, made, [next(batches)], config)
    wanted, found = everything(state), newest_tensors(tmp_path / "run")
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_a_rewind_ends_the_readers_of_the_way_that_was_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = stored_latents(tmp_path / "latents", 64)
    config = changed(rewound(tmp_path, data=data), {"machine.workers": 2})
    monkeypatch.setattr(material, "stream", poisoned(material.stream, *range(64, 96)))
    honest, readers = loop.train_step, []

    def counted(state: Any, *others: Any) -> Any:
        readers.append(len(multiprocessing.active_children()))
        return honest(state, *others)

    monkeypatch.setattr(loop, "train_step", counted)
    train(config, tmp_path / "run", progress=False)
    assert load(tmp_path / "run").state["rewinds"] == 1
    assert readers[0] == readers[-1] == 2


def test_rewinds_come_to_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = changed(rewound(tmp_path), {"loop.rewinds": 3})
    monkeypatch.setattr(material, "stream", poisoned(material.stream, *range(64, 10_000, 16)))
    with pytest.raises(NonFiniteError, match=r"--loop\.rewinds 4") as caught:
        train(config, tmp_path, progress=False)
    assert "last good checkpoint: step-00000004" in str(caught.value)


# ---- spikes


def test_a_spike_is_noted_and_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = run_config(loop__steps=80, loop__log_every=100, loop__checkpoint_every=100)
    config = changed(config, {"training.learning_rate": 1e-6})
    poison = poisoned(material.stream, 16 * 59, 16 * 69, value=100.0)  # steps 60 and 70
    monkeypatch.setattr(material, "stream", poison)
    train(config, tmp_path, progress=False)
    found = lines(RunFolder(tmp_path).spikes)
    assert [line["step"] for line in found] == [60, 70]
    assert all(line["loss"] > line["usual"] + 6 * line["deviation"] for line in found)
    assert len(found[0]["places"]) == 16
    assert "the loss of step 60 is" in caplog.text
    train(changed(config, {"loop.steps": 90}), tmp_path, progress=False)
    assert lines(RunFolder(tmp_path).spikes) == found


def test_usual_losses_are_no_spikes(tmp_path: Path) -> None:
    config = run_config(loop__steps=150, loop__log_every=100, loop__checkpoint_every=1000)
    train(config, tmp_path, progress=False)
    assert not RunFolder(tmp_path).spikes.exists()


# ---- experts


def test_starving_and_greedy_experts_are_told_once_until_they_recover(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watch, healthy = ExpertWatch(), [0.2, 0.3, 0.25, 0.25]
    with caplog.at_level(logging.WARNING):
        watch.look([healthy, [0.0, 0.6, 0.6, 1.0]], 10)
        assert caplog.messages == [
            "MoE layer 1, expert 0 took next to no token up to step 10",
            "MoE layer 1, expert 3 took nearly every token up to step 10",
        ]
        watch.look([healthy, [0.0, 0.6, 0.6, 1.0]], 20)
        assert len(caplog.messages) == 2
        watch.look([healthy, healthy], 30)
        watch.look([[math.nan] * 4, [0.3, 0.6, 0.0, 0.2]], 40)
        assert caplog.messages[2:] == ["MoE layer 1, expert 2 took next to no token up to step 40"]


@pytest.mark.parametrize("router", ["token_choice", "batch_pool"])
def test_a_run_tells_of_an_expert_that_nobody_chooses(
    router: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    honest = loop.train_step

    def starving(state: Any, *others: Any) -> Any:
        """Nobody takes the second expert, or its demand is never above the threshold."""
        found = honest(state, *others)
        for sums in found.statistics:
            sums["above" if "above" in sums else "pairs"][1] = 0
        return found

    monkeypatch.setattr(loop, "train_step", starving)
    train(run_config(router), tmp_path, progress=False)
    told = [message for message in caplog.messages if "expert 1 took next to no token" in message]
    assert len(told) == 1
