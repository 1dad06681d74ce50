"""The loop: what a run tells, how it stops, and what it leaves when it fails."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import diffmoe.training.loop as loop
import diffmoe.training.material as material
from diffmoe.checkpoint import RunFolder, load, newest_checkpoint
from diffmoe.cli import main
from diffmoe.config import SD_VAE, FolderData, RunConfig, read_config, to_yaml
from diffmoe.errors import (
    ConfigError,
    DataError,
    DiffMoEError,
    ExitCode,
    StoppedError,
    StorageError,
)
from diffmoe.training import train
from long_record import hold
from runs import OBJECTIVES, ROUTER_KINDS, changed, newest_tensors, run_config, stored_latents

SPEED = {"images_per_second", "peak_memory_gib"}
TERMS = {"flow": {"mse"}, "ddpm": {"mse", "vb"}}
ROUTED = {"capacity", "dead_experts", "poisoned_rows"}
OWN = {
    "dense": set(),
    "token_choice": {"balance"} | ROUTED,
    "expert_choice": ROUTED,
    "batch_pool": {"predictor", "predictor_accuracy"} | ROUTED,
}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def steps(path: Path) -> list[int]:
    return [line["step"] for line in lines(path)]


def kept(path: Path) -> list[int]:
    return sorted(int(p.name[5:]) for p in RunFolder(path).checkpoints.glob("step-*"))


# ---- metrics


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("router", ROUTER_KINDS)
def test_a_line_tells_terms_routing_gradient_and_speed(
    router: str, objective: str, tmp_path: Path
) -> None:
    config = run_config(router, objective, model__depth=4)
    train(config, tmp_path, progress=False)
    layers = {
        f"{name}/layer{i}"
        for name in OWN[router] - {"balance", "predictor"}
        for i in range(2 if router != "dense" else 0)
    }
    wanted = (
        {"step", "loss", "gradient_norm", "bad_steps"}
        | TERMS[objective]
        | OWN[router]
        | layers
        | SPEED
    )
    assert steps(tmp_path) == [2, 4]
    for line in lines(tmp_path):
        assert line.keys() == wanted
        assert all(math.isfinite(value) for value in line.values())
        assert line["images_per_second"] > 0 and line["peak_memory_gib"] > 0.01


def test_lines_are_means_over_their_window(tmp_path: Path) -> None:
    train(run_config(loop__log_every=1), tmp_path / "each", progress=False)
    train(run_config(loop__log_every=4), tmp_path / "all", progress=False)
    each, (whole,) = lines(tmp_path / "each"), lines(tmp_path / "all")
    for name in ("loss", "mse", "predictor", "gradient_norm", "capacity/layer0"):
        known = [line[name] for line in each if line[name] is not None]
        assert whole[name] == pytest.approx(sum(known) / len(known), rel=1e-6), name
        assert len(known) == (3 if name == "capacity/layer0" else 4)


def test_what_cannot_be_known_yet_is_null(tmp_path: Path) -> None:
    train(run_config(loop__log_every=1, loop__steps=2), tmp_path, progress=False)
    first, second = lines(tmp_path)  # thresholds are measured at the end of the first step
    unknown = {name for name, value in first.items() if value is None}
    assert {"capacity", "predictor_accuracy", "dead_experts/layer0"} <= unknown
    assert not unknown & {"loss", "mse", "gradient_norm", "images_per_second"}
    assert all(math.isfinite(value) for value in second.values())


def test_shares_are_shares_and_expert_choice_has_capacity_one(tmp_path: Path) -> None:
    train(run_config("batch_pool"), tmp_path / "pool", progress=False)
    for line in lines(tmp_path / "pool"):
        assert 0 <= line["predictor_accuracy"] <= 1 and 0 <= line["dead_experts"] <= 1
        assert 0 <= line["capacity"] <= 4
    train(run_config("expert_choice"), tmp_path / "choice", progress=False)
    assert [line["capacity"] for line in lines(tmp_path / "choice")] == [1.0, 1.0]


def test_a_line_between_two_is_for_the_time_being(tmp_path: Path) -> None:
    """A stop tells what it knows; the line that was due then comes as if nothing had happened."""
    config = run_config(loop__log_every=3, loop__steps=5)
    train(config, tmp_path / "run", progress=False)
    assert steps(tmp_path / "run") == [3, 5]
    train(changed(config, {"loop.steps": 6}), tmp_path / "run", progress=False)
    train(changed(config, {"loop.steps": 6}), tmp_path / "straight", progress=False)
    told = [
        [{name: line[name] for name in line.keys() - SPEED} for line in lines(tmp_path / kind)]
        for kind in ("run", "straight")
    ]
    assert told[0] == told[1] and [line["step"] for line in told[0]] == [3, 6]


def test_a_resume_drops_the_lines_it_will_write_again(tmp_path: Path) -> None:
    config = run_config(loop__log_every=1)
    train(config, tmp_path, progress=False)
    with (tmp_path / "metrics.jsonl").open("a") as stream:  # a killed job went on to step 6
        stream.write('{"step": 5, "loss": 1}\n{"step": 6, "loss": 1}\n{"step": 7, "lo')
    train(changed(config, {"loop.steps": 8}), tmp_path, progress=False)
    assert steps(tmp_path) == list(range(1, 9))
    assert all("mse" in line for line in lines(tmp_path))


GARBAGE = b'\x00\xff\n[1]\n"text"\n{"loss": 1}\n{"step": "x"}\n' + b'{"a":' * 100_000 + b"\n"


def test_damaged_metrics_cost_only_their_damaged_lines(tmp_path: Path) -> None:
    train(run_config(), tmp_path, progress=False)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(GARBAGE + path.read_bytes() + GARBAGE)
    train(run_config(loop__steps=6), tmp_path, progress=False)
    assert steps(tmp_path) == [2, 4, 6]


def test_a_full_disk_under_the_metrics_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Path.open

    def full(path: Path, mode: str = "r", **others: Any) -> Any:
        if mode == "a":
            raise OSError(28, "No space left on device")
        return honest(path, mode, **others)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(StorageError, match=r"cannot write metrics\.jsonl \(No space left"):
        train(run_config(), tmp_path, progress=False)


def test_tensorboard_holds_the_same_values(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(run_config(), tmp_path, progress=False)
    train(run_config(loop__steps=6), tmp_path, progress=False)
    found = reader.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    told = {event.step: event.value for event in found.Scalars("loss")}
    assert told == pytest.approx({line["step"]: line["loss"] for line in lines(tmp_path)})


def test_checkpoints_come_at_their_cadence_and_old_ones_go(tmp_path: Path) -> None:
    config = run_config(loop__steps=7, loop__checkpoint_every=2, loop__keep_checkpoints=2)
    train(config, tmp_path, progress=False)
    assert kept(tmp_path) == [6, 7]
    found = newest_checkpoint(RunFolder(tmp_path).checkpoints)
    assert found is not None and found[1].samples == 7 * 16


# ---- stopping


def _wait_for(handled: Callable[[], bool]) -> None:
    """The kernel may deliver a signal to another thread, and joins two that have not been seen."""
    for _ in range(500):
        if handled():
            return
        time.sleep(0.01)


def signal_at(step: int, *numbers: int) -> Callable[..., Any]:
    """A train_step that receives signals while it works on a step."""
    honest = loop.train_step

    def interrupted(state: Any, *others: Any) -> Any:
        if state.step == step - 1:
            for number in numbers:
                handler = signal.getsignal(number)
                os.kill(os.getpid(), number)
                _wait_for(lambda n=number, h=handler: signal.getsignal(n) is not h)
        return honest(state, *others)

    return interrupted


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_ends_the_step_saves_and_the_same_command_goes_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = signal.Signals[name]
    config = run_config(loop__steps=8, loop__checkpoint_every=100)
    train(config, tmp_path / "straight", progress=False)
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", signal_at(3, number))
        with pytest.raises(StoppedError, match=f"by {name} after step 3, saved") as caught:
            train(config, tmp_path / "stopped", progress=False)
    assert caught.value.exit_code is ExitCode.RESUMABLE
    assert signal.getsignal(number) == before
    assert kept(tmp_path / "stopped") == [3]
    assert steps(tmp_path / "stopped") == [2, 3]
    train(config, tmp_path / "stopped", progress=False)
    assert_equal_runs(tmp_path / "straight", tmp_path / "stopped")


def test_a_signal_during_the_last_step_is_no_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "train_step", signal_at(4, signal.SIGTERM))
    train(run_config(), tmp_path, progress=False)
    assert kept(tmp_path)[-1] == 4


def test_a_second_signal_stops_at_once_and_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "train_step", signal_at(4, signal.SIGINT, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        train(run_config(loop__steps=8), tmp_path, progress=False)
    assert kept(tmp_path) in ([], [2])  # the one of step 2 may still have been on its way
    monkeypatch.undo()
    for _ in range(500):
        try:
            train(run_config(loop__steps=8), tmp_path, progress=False)
            break
        except StorageError as error:  # until that write is over, nobody else may write
            assert "another job writes to this run" in str(error)
            time.sleep(0.01)
    train(run_config(loop__steps=8), tmp_path / "straight", progress=False)
    assert_equal_runs(tmp_path / "straight", tmp_path)


def test_time_that_is_up_ends_the_step_and_saves(tmp_path: Path) -> None:
    config = run_config(loop__steps=8, loop__checkpoint_every=100)
    for step in (1, 2):  # one step at least is done each time
        with pytest.raises(StoppedError, match=f"at the end of its time after step {step}, saved"):
            train(config, tmp_path / "run", progress=False, max_seconds=0)
        assert load(tmp_path / "run").step == step
    train(config, tmp_path / "run", progress=False, max_seconds=1e6)
    train(config, tmp_path / "straight", progress=False)
    assert_equal_runs(tmp_path / "straight", tmp_path / "run")


def test_a_signal_between_two_steps_never_ends_without_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, sent = loop.Window.read, []

    def interrupted(window: loop.Window, *others: Any) -> dict[str, float]:
        if not sent:
            sent.append(os.kill(os.getpid(), signal.SIGTERM))
        return honest(window, *others)

    monkeypatch.setattr(loop.Window, "read", interrupted)
    config = run_config(loop__steps=50, loop__log_every=5, loop__checkpoint_every=100)
    with pytest.raises(StoppedError, match="after step 6, saved"):
        train(config, tmp_path, progress=False)
    assert kept(tmp_path) == [6]


def flags(config_steps: int) -> list[str]:
    """`run_config` in words."""
    words = f"""--model.width 16 --model.depth 2 --model.heads 2 --model.pool-images 8
        --training.global-batch 16 --training.warmup-steps 2 --training.decay-steps 40
        --loop.steps {config_steps} --loop.log-every 2 --loop.checkpoint-every 100000
        --sampling.steps 3 --sampling.batch 4 --quiet"""
    return words.split()


def started(words: list[str], run: Path) -> subprocess.Popen[str]:
    """A job in a process group of its own, once it has written its first metrics."""
    job = subprocess.Popen(
        [sys.executable, "-m", "diffmoe", *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or not lines(run):
        assert job.poll() is None and time.monotonic() < deadline, job.communicate()
        time.sleep(0.01)
    return job


def assert_equal_runs(one: Path, other: Path) -> None:
    wanted, found = newest_tensors(one), newest_tensors(other)
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_sigterm_from_outside_is_exit_code_75_and_the_same_command_finishes(
    tmp_path: Path,
) -> None:
    run, total = tmp_path / "stopped", 300
    words = ["train", "digits-diffmoe", *flags(total)]
    job = started([*words, "--run", str(run)], run)
    job.send_signal(signal.SIGTERM)
    _, said = job.communicate(timeout=60)
    assert job.returncode == ExitCode.RESUMABLE == 75, said
    assert said.startswith("diffmoe: stopped by SIGTERM after step ")
    assert said.endswith(f"go on with: diffmoe train {run}\n") and len(said.splitlines()) == 1
    (stopped,) = kept(run)
    assert 0 < stopped < total
    assert main([*words, "--run", str(run)]) == 0
    assert main([*words, "--run", str(tmp_path / "straight")]) == 0
    assert_equal_runs(tmp_path / "straight", run)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_to_the_whole_group_leaves_the_readers_to_the_main_process(
    name: str, tmp_path: Path
) -> None:
    """As SLURM and a terminal send it; readers that died first would take the checkpoint along."""
    data = stored_latents(tmp_path / "latents", 64)
    config = run_config(data=data, machine__workers=2, loop__steps=300, loop__log_every=2)
    config = changed(config, {"loop.checkpoint_every": 100_000})
    for run in (tmp_path / "stopped", tmp_path / "straight"):
        run.mkdir()
        (run / "config.yaml").write_text(to_yaml(config))
    words = ["train", str(tmp_path / "stopped"), "--quiet"]
    job = started(words, tmp_path / "stopped")
    os.killpg(job.pid, signal.Signals[name])
    _, said = job.communicate(timeout=60)
    assert job.returncode == ExitCode.RESUMABLE, said
    assert f"stopped by {name} after step" in said and "worker" not in said
    assert len(kept(tmp_path / "stopped")) == 1
    assert main(words) == 0
    train(config, tmp_path / "straight", progress=False)
    assert_equal_runs(tmp_path / "straight", tmp_path / "stopped")


# ---- failing


def test_a_rate_far_too_large_is_exit_code_4(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*flags(40), "--training.learning-rate", "1e30", "--run", str(tmp_path / "run")]
    assert main(["train", "digits-diffmoe", *words]) == ExitCode.NON_FINITE == 4
    said = capsys.readouterr().err
    assert said.startswith(
        "diffmoe: error: the loss or its gradient was not finite in 10 steps in a row"
    )
    assert "training.learning_rate" in said and len(said.splitlines()) == 1
    words[words.index("1e30")] = "1e-3"  # what the sentence asks for, in the same folder
    assert main(["train", "digits-diffmoe", *words]) == ExitCode.DONE
    assert read_config(tmp_path / "run" / "config.yaml").training.learning_rate == 1e-3


def test_a_job_beside_a_running_one_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with folder.locked(), pytest.raises(StorageError, match="another job writes to this run"):
        train(run_config(), tmp_path, progress=False)


def nowhere(tmp_path: Path) -> RunConfig:
    return run_config(data=FolderData(path=tmp_path / "nowhere"))


def unset(tmp_path: Path) -> RunConfig:
    return run_config(data=FolderData())


def no_device(tmp_path: Path) -> RunConfig:
    return run_config(machine__device="nonsense")


def no_codec(tmp_path: Path) -> RunConfig:
    codec = changed(SD_VAE, {"path": str(tmp_path / "nowhere"), "factor": 1})
    return run_config(codec=codec)


def few_classes(tmp_path: Path) -> RunConfig:
    return run_config(model__num_classes=9)


@pytest.mark.parametrize("broken", [nowhere, unset, no_device, no_codec, few_classes])
def test_a_run_that_cannot_begin_leaves_no_trace(
    broken: Callable[[Path], RunConfig], tmp_path: Path
) -> None:
    with pytest.raises(DiffMoEError):
        train(broken(tmp_path), tmp_path / "run", progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_at_the_start_leaves_no_trace(
    workers: int, tmp_path: Path
) -> None:
    (tmp_path / "pictures" / "cat").mkdir(parents=True)
    (tmp_path / "pictures" / "cat" / "one.png").write_bytes(b"no image")
    data = FolderData(path=tmp_path / "pictures")
    config = run_config(data=data, machine__workers=workers, model__num_classes=1)
    with pytest.raises(DataError, match="image 0 cannot be read") as caught:
        train(config, tmp_path / "run", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]
    del caught  # its traceback holds on to the loader


def test_a_sample_that_cannot_be_read_harms_no_run_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(*others: Any, **more: Any) -> Any:
        raise DataError("image 3 cannot be read")
        yield

    train(run_config(), tmp_path, progress=False)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    monkeypatch.setattr(material, "stream", unreadable)
    with pytest.raises(DataError, match="image 3 cannot be read"):
        train(run_config(loop__steps=6), tmp_path, progress=False)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_progress_is_shown_and_can_be_silenced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(run_config(), tmp_path / "loud")
    shown = capsys.readouterr().err
    assert "train loud" in shown and "4/4" in shown and "loss=" in shown
    train(run_config(), tmp_path / "silent", progress=False)
    assert capsys.readouterr().err == ""


def test_progress_that_nobody_watches_is_seldom_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(loop__steps=30, loop__log_every=1, loop__checkpoint_every=100)
    train(config, tmp_path / "run")
    shown = capsys.readouterr().err.split("\r")
    assert len([line for line in shown if "train run" in line]) == 2  # the first and the last
    assert "30/30" in shown[-1] and "loss=" in shown[-1]
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with loop._bar(config, RunFolder(tmp_path), 0, True) as bar:
        assert bar.mininterval == 1.0


def test_a_folder_of_another_run_is_refused_before_the_data_are_read(tmp_path: Path) -> None:
    train(run_config(), tmp_path, progress=False)
    with pytest.raises(ConfigError, match="holds another config"):
        train(changed(nowhere(tmp_path), {"training.seed": 3}), tmp_path, progress=False)


# --- compiled -----------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own imports
@pytest.mark.parametrize("router", ROUTER_KINDS)
def test_compiled_training_is_training(router: str, tmp_path: Path) -> None:
    """One graph for all steps and both micro-batches, a plan made anew for each."""

    def measure() -> dict[str, float]:
        torch.compiler.reset()
        config = run_config(router, machine__micro_batch=8)
        for compiled in (False, True):
            own = changed(config, {"machine.compile": compiled})
            train(own, tmp_path / str(compiled), progress=False)
        plain, fast = (newest_tensors(tmp_path / str(compiled)) for compiled in (False, True))
        for name, value in plain.items():
            torch.testing.assert_close(fast[name], value, rtol=1e-3, atol=1e-4, msg=name)
        return {"largest": max((fast[n] - v).abs().max().item() for n, v in plain.items())}

    promise = "a run with machine.compile ends with the weights of one without"
    hold(f"compiled_training_{router}", promise, 4, measure)
