"""Checkpoints in the background: none is called saved before it is, no fault is swallowed."""

import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import children
from diffmoe.checkpoint import Content, RunFolder, load, verify, write
from diffmoe.errors import ExitCode, StorageError
from diffmoe.training import loop, new_state, saving, train
from diffmoe.training.saving import Saver
from long_record import hold
from runs import changed, newest_tensors, run_config

CPU = torch.device("cpu")
BACKGROUND = pytest.mark.parametrize("background", [False, True])


def kept(path: Path) -> list[int]:
    return sorted(int(p.name[5:]) for p in RunFolder(path).checkpoints.glob("step-*"))


class Gate:
    """A disk that takes its time: `write` waits until it is let through."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.opened, self.reached = threading.Event(), threading.Event()
        patch.setattr(saving, "write", self._write)

    def _write(self, parent: Path, content: Content, group: object) -> Path:
        self.reached.set()
        assert self.opened.wait(60)
        return write(parent, content)


def test_a_step_does_not_wait_for_the_disk_and_the_copy_is_of_its_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = run_config(), RunFolder(tmp_path)
    state, gate = new_state(config, CPU), Gate(monkeypatch)
    wanted = {name: value.clone() for name, value in state.model.state_dict().items()}
    with Saver(config, folder) as saver:
        saver.save(state)
        assert gate.reached.wait(60)
        with torch.no_grad():  # what the next step does
            for parameter in state.model.parameters():
                parameter.add_(1)
        assert not kept(tmp_path) and folder.saved_step is None
        assert not saver.failed
        gate.opened.set()
        saver.wait()
        assert kept(tmp_path) == [0]
    found = newest_tensors(tmp_path)
    assert all(torch.equal(found[f"model/{name}"], value) for name, value in wanted.items())


def test_one_checkpoint_is_written_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, gate = run_config(), Gate(monkeypatch)
    state, order = new_state(config, CPU), []
    monkeypatch.setattr(RunFolder, "note_saved", lambda folder, step: order.append(step))
    with Saver(config, RunFolder(tmp_path)) as saver:
        saver.save(state)
        threading.Timer(0.2, gate.opened.set).start()
        state.step = 1
        saver.save(state)  # waits for the first
        assert order[:1] == [0]
    assert order == [0, 1] and kept(tmp_path) == [0, 1]


@BACKGROUND
def test_a_full_disk_ends_the_run_and_keeps_the_last_checkpoint(
    background: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(parent: Path, content: Content, group: object) -> Path:
        if content.step == 4:
            raise StorageError("cannot write step-00000004 (No space left on device)")
        return write(parent, content)

    config = run_config(loop__steps=50, machine__background_saves=background)
    done = []
    honest = loop.train_step

    def counted(state: Any, *others: Any) -> Any:
        done.append(state.step)
        if background:
            time.sleep(0.02)
        return honest(state, *others)

    with monkeypatch.context() as patch:
        patch.setattr(saving, "write", full)
        patch.setattr(loop, "train_step", counted)
        with pytest.raises(StorageError, match="No space left") as caught:
            train(config, tmp_path, progress=False)
    assert caught.value.exit_code is ExitCode.STORAGE
    assert len(done) < 10  # told at one of the next steps, not at the end
    assert load(tmp_path).step == 2 and RunFolder(tmp_path).saved_step == 2
    train(config, tmp_path, progress=False)
    assert load(tmp_path).step == 50


@BACKGROUND
def test_a_last_checkpoint_that_cannot_be_written_is_no_success(
    background: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*others: Any) -> Path:
        raise StorageError("cannot write it (No space left on device)")

    monkeypatch.setattr(saving, "write", full)
    config = run_config(loop__checkpoint_every=100, machine__background_saves=background)
    with pytest.raises(StorageError, match="No space left"):
        train(config, tmp_path, progress=False)
    monkeypatch.undo()
    monkeypatch.setattr(saving, "write", full)
    with pytest.raises(StorageError, match="No space left"):  # and no StoppedError that says saved
        train(config, tmp_path, progress=False, max_seconds=0)


def test_an_error_of_training_waits_for_the_write_and_is_not_hidden_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, gate = new_state(run_config(), CPU), Gate(monkeypatch)
    with pytest.raises(ValueError, match="mine"), Saver(run_config(), RunFolder(tmp_path)) as saver:
        saver.save(state)
        threading.Timer(0.2, gate.opened.set).start()
        raise ValueError("mine")
    assert kept(tmp_path) == [0]


def test_a_write_that_nobody_waits_for_keeps_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second job would sweep what is being written, and the rename publish half of it."""
    config, folder = run_config(), RunFolder(tmp_path)
    state, gate = new_state(config, CPU), Gate(monkeypatch)
    with pytest.raises(KeyboardInterrupt), folder.locked() as lock:
        folder.claim(config)
        with Saver(config, folder, lock) as saver:
            saver.save(state)
            raise KeyboardInterrupt  # the second signal
    with pytest.raises(StorageError, match="another job writes"), folder.locked():
        pass
    gate.opened.set()
    saver.wait()
    with folder.locked():
        assert kept(tmp_path) == [0]


TWICE = """
import os, signal, sys, threading, time
from diffmoe.cli import main
from diffmoe.training import saving

honest = saving.write

def slow(*others):
    def again():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
    threading.Thread(target=again, daemon=True).start()
    blob = b"x" * (1 << 26)
    import hashlib
    for _ in range(400):
        hashlib.sha256(blob)  # native code, as safetensors is
    return honest(*others)

saving.write = slow
sys.exit(main(sys.argv[1:]))
"""


def test_a_second_signal_while_a_checkpoint_is_written_is_code_75(tmp_path: Path) -> None:
    """Python's own end would stop the thread in native code, and abort."""
    train(run_config(), tmp_path / "run", progress=False)
    words = ["train", str(tmp_path / "run"), "--loop.steps", "100000", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", TWICE, *words], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == ExitCode.RESUMABLE, (done.returncode, done.stderr)
    assert "interrupted while a checkpoint was being written" in done.stderr
    assert load(tmp_path / "run").step == 4
    train(run_config(loop__steps=6), tmp_path / "run", progress=False)
    assert kept(tmp_path / "run") == [4, 6]


# ---- full, small and closed disks

LEVELS = (0.1, 0.5, 0.9, 0.99)


@BACKGROUND
@pytest.mark.parametrize("level", LEVELS)
def test_a_disk_that_fills_while_a_checkpoint_is_written(
    level: float, background: bool, tmp_path: Path
) -> None:
    """A file may take 10, 50, 90 or 99 % of the largest part: 4 of 4 are one sentence."""
    config = run_config(machine__background_saves=background, model__width=32)
    train(changed(config, {"loop.steps": 2}), tmp_path, progress=False)
    largest = max(
        p.stat().st_size for p in (RunFolder(tmp_path).checkpoints).rglob("*.safetensors")
    )

    def starved() -> str:
        limit = int(largest * level)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        torch.set_num_threads(1)
        train(config, tmp_path, progress=False)
        return "saved"

    kind, said = children.outcome(starved)
    assert kind == "StorageError" and "File too large" in said
    assert "no half-written file was left" in said and len(said.splitlines()) == 1
    assert kept(tmp_path) == [2] and not list(RunFolder(tmp_path).checkpoints.glob(".tmp-*"))
    assert verify(RunFolder(tmp_path).checkpoints / "step-00000002").step == 2
    train(config, tmp_path, progress=False)
    assert kept(tmp_path) == [2, 4]


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(
    ("checkpoints", "keep", "refused"), [(2.9, 2, True), (3.1, 2, False), (3.1, 3, True)]
)
def test_the_space_that_checkpoints_need_is_checked_before_the_first_step(
    checkpoints: float, keep: int, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(loop__keep_checkpoints=keep)
    train(config, tmp_path / "measured", progress=False)
    newest = RunFolder(tmp_path / "measured").checkpoints / "step-00000004"
    free = int(checkpoints * sum(p.stat().st_size for p in newest.iterdir()))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(10**12, 0, free))
    if not refused:
        train(config, tmp_path / "run", progress=False)
        return
    with pytest.raises(
        StorageError, match=r"no space for \d more checkpoints .* needed, .* free"
    ) as caught:
        train(config, tmp_path / "run", progress=False)
    assert "lower --loop.keep-checkpoints" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_space_is_asked_for_what_is_still_to_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that has its checkpoints needs room for one, until the oldest goes."""
    train(run_config(), tmp_path, progress=False)
    newest = RunFolder(tmp_path).checkpoints / "step-00000004"
    size = sum(p.stat().st_size for p in newest.iterdir())
    for room, fits in ((0.5, False), (1.6, True)):
        monkeypatch.setattr(
            shutil, "disk_usage", lambda place, r=room: Usage(10**12, 0, int(r * size))
        )
        if fits:
            train(run_config(loop__steps=6), tmp_path, progress=False)
        else:
            with pytest.raises(StorageError, match="no space for 1 more checkpoint of this run"):
                train(run_config(loop__steps=6), tmp_path, progress=False)


def test_milestones_still_to_come_need_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(loop__steps=40, loop__keep_every=4, loop__checkpoint_every=2)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(10**12, 0, 0))
    with pytest.raises(StorageError, match="no space for 13 more checkpoints"):  # 3 and 10
        train(config, tmp_path, progress=False)


def test_colleagues_may_read_a_checkpoint(tmp_path: Path) -> None:
    train(run_config(), tmp_path, progress=False)
    files = [p for p in RunFolder(tmp_path).checkpoints.rglob("*") if p.is_file()]
    assert files and all(file.stat().st_mode & 0o777 == 0o644 for file in files)


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A folder whose way there is open to any user, unlike that of `tmp_path`."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_run_folder_that_may_not_be_written_is_one_sentence(open_to_all: Path) -> None:
    run = open_to_all / "run"
    train(run_config(), run, progress=False)

    def closed() -> str:
        if os.geteuid() == 0:
            os.setuid(65534)  # permissions are nothing to root
        train(run_config(loop__steps=8), run, progress=False)
        return "saved"

    for place in (run, run / "checkpoints"):
        place.chmod(0o555)
    try:
        found = children.outcome(closed)
    finally:
        for place in (run, run / "checkpoints"):
            place.chmod(0o755)
    assert found[0] == "StorageError" and "Permission denied" in found[1], found
    assert len(found[1].splitlines()) == 1
    assert load(run).step == 4


# ---- killed while it trains


def train_for_ever(path: Path, steps: int) -> Any:
    def work(pipe: int) -> None:
        torch.set_num_threads(1)
        train(run_config(loop__steps=steps, loop__checkpoint_every=3), path, progress=False)
        os.write(pipe, b"done")

    return work


def kill_and_resume(home: Path, kills: int, steps: int, seed: int) -> dict[str, Any]:
    """SIGKILL a training job at random moments and give the same command again, to its end."""
    rng, done, killed = random.Random(seed), False, 0
    while not done:
        child, pipe = children.fork(train_for_ever(home / "killed", steps))
        if killed < kills:
            began = RunFolder(home / "killed").saved_step
            for _ in range(3000):  # until it has done something, or ended
                ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if ended or RunFolder(home / "killed").saved_step != began:
                    break
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.1))
            children.kill(child)
            killed += 1
            done = children.read_all(pipe) == b"done"
        else:
            os.waitpid(child, 0)
            done = children.read_all(pipe) == b"done"
            assert done
    train(
        run_config(loop__steps=steps, loop__checkpoint_every=3), home / "straight", progress=False
    )
    wanted, found = newest_tensors(home / "straight"), newest_tensors(home / "killed")
    assert wanted.keys() == found.keys()
    unequal = [name for name in wanted if not torch.equal(wanted[name], found[name])]
    told = [(RunFolder(home / k).metrics).read_text().count("\n") for k in ("straight", "killed")]
    assert told[0] == told[1]
    return {"kills": killed, "steps": steps, "tensors": len(wanted), "unequal": len(unequal)}


def test_a_killed_run_ends_as_the_undisturbed_one(tmp_path: Path) -> None:
    found = kill_and_resume(tmp_path, kills=5, steps=60, seed=0)
    assert found["unequal"] == 0 and found["kills"] >= 3


@pytest.mark.long
def test_fifty_kills_change_no_bit_of_a_run(tmp_path: Path) -> None:
    def measure() -> dict[str, Any]:
        found = kill_and_resume(tmp_path, kills=50, steps=600, seed=1)
        assert found["unequal"] == 0 and found["kills"] == 50
        return found

    promise = (
        "a job killed at random moments and started again ends with the weights of one left alone"
    )
    hold("kills_while_training", promise, 50, measure)


def test_a_kill_between_two_micro_batches_changes_nothing(tmp_path: Path) -> None:
    config = run_config(machine__micro_batch=8)
    train(changed(config, {"loop.steps": 8}), tmp_path / "straight", progress=False)
    train(config, tmp_path / "killed", progress=False)

    def killed(pipe: int) -> None:
        torch.set_num_threads(1)
        honest, seen = loop.train_step.__globals__["_loss"], []

        def dying(*others: Any) -> Any:
            seen.append(1)
            if len(seen) == 4:  # the second micro-batch of the second step
                os._exit(9)
            return honest(*others)

        loop.train_step.__globals__["_loss"] = dying
        train(changed(config, {"loop.steps": 8}), tmp_path / "killed", progress=False)

    child, _ = children.fork(killed)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    train(changed(config, {"loop.steps": 8}), tmp_path / "killed", progress=False)
    straight, found = newest_tensors(tmp_path / "straight"), newest_tensors(tmp_path / "killed")
    assert all(torch.equal(straight[name], found[name]) for name in straight)


def resident() -> int:
    """Bytes of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_two_hundred_saves_leak_nothing(tmp_path: Path) -> None:
    """Less than 1 MiB a save; one copy kept too many of these would be 4 MiB."""

    def grown() -> float:
        torch.set_num_threads(1)
        config = run_config(model__width=128, loop__keep_checkpoints=1)
        state = new_state(config, CPU)
        with Saver(config, RunFolder(tmp_path)) as saver:
            for step in range(220):
                state.step = step
                saver.save(state)
                if step == 20:
                    saver.wait()
                    before = resident()
            saver.wait()
        return (resident() - before) / 200

    assert children.outcome(grown) < 2**20
    assert kept(tmp_path) == [219]
