"""One process of a run fails: the others end soon, with its name and its cause."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diffmoe.checkpoint import RunFolder, joint, newest_checkpoint
from diffmoe.config import RunConfig
from diffmoe.data.stream import _Samples
from diffmoe.errors import DataError
from diffmoe.training import loop, material, train
from runs_together import Run, losses, shared_run, tensors, trained
from together import Answer, together

Break = Callable[[], None]
SIZES = pytest.mark.parametrize("size", [2, 4])


def _rank() -> int:
    return int(os.environ["RANK"])


def _at_step(number: int, act: Callable[[], Any], rank: int = 1) -> Break:
    """Let one process `act` before it does a step."""

    def break_it() -> None:
        honest = loop.train_step

        def step(state: Any, *others: Any) -> Any:
            if _rank() == rank and state.step == number:
                act()
            return honest(state, *others)

        loop.train_step = step

    return break_it


def _raise(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def _broken(config: RunConfig, path: Path, break_it: Break) -> None:
    break_it()
    train(config, path, progress=False)


def _ended(
    size: int, break_it: Break, place: Path, timeout: float = 60.0, **changes: Any
) -> tuple[list[Answer], float]:
    """What each process raised, and after how many seconds the last of them had ended."""
    config = shared_run(loop__steps=20, machine__timeout=timeout, **changes)
    began = time.monotonic()
    answers = together(size, _broken, config, place / "run", break_it, place=place)
    return answers, time.monotonic() - began


def _told(answers: list[Answer]) -> list[str]:
    return [answer.text for answer in answers if answer.error and not answer.told]


@SIZES
@pytest.mark.parametrize("lost", ["last", "first"])
def test_a_killed_process_is_named_by_one_of_the_others(
    lost: str, size: int, tmp_path: Path
) -> None:
    rank = size - 1 if lost == "last" else 0
    kill = _at_step(3, lambda: os.kill(os.getpid(), signal.SIGKILL), rank)
    answers, seconds = _ended(size, kill, tmp_path)
    others = [answer for r, answer in enumerate(answers) if r != rank]
    assert answers[rank].error == "died"
    assert {(answer.error, answer.code) for answer in others} == {("PeerError", 6)}
    (sentence,) = _told(others)
    assert f"process {rank} (" in sentence and "is gone" in sentence and "step 4" in sentence
    assert seconds < 30  # half of the time after which it would count as hung


def _with_readers(break_it: Break) -> Break:
    def both() -> None:
        _Samples.in_memory = property(lambda self: False)  # digits need no readers
        break_it()

    return both


def test_a_killed_process_is_noticed_though_its_readers_lived_on(tmp_path: Path) -> None:
    kill = _at_step(3, lambda: os.kill(os.getpid(), signal.SIGKILL))
    answers, seconds = _ended(2, _with_readers(kill), tmp_path, machine__workers=2)
    assert answers[0].error == "PeerError" and "process 1 (" in answers[0].text
    assert seconds < 30


def _killed_while_all_save() -> None:
    honest, step = joint.save_file, loop.train_step

    def save_file(*others: Any) -> None:
        if _rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(20)
        honest(*others)

    def slow_step(*others: Any) -> Any:
        time.sleep(0.3)
        return step(*others)

    joint.save_file, loop.train_step = save_file, slow_step


def test_a_process_that_is_killed_while_all_save_is_not_waited_for(tmp_path: Path) -> None:
    """The others end before they have written parts that nobody could use; each takes 20 s."""
    answers, _ = _ended(2, _killed_while_all_save, tmp_path, loop__checkpoint_every=10)
    assert answers[0].error == "PeerError" and "process 1 (" in answers[0].text
    checkpoints = tmp_path / "run" / "checkpoints"
    assert not list(checkpoints.rglob("*.safetensors")) and newest_checkpoint(checkpoints) is None


FAILURES: dict[str, tuple[BaseException, str, int]] = {
    "bad sample": (DataError("img/7.png is damaged", where="/data", remedy="mend it"), "7.png", 3),
    "a bug": (ValueError("the bug of step 4"), "the bug of step 4", 1),
    "no memory": (MemoryError("no 3 GiB for an image"), "no 3 GiB", 1),
    "no memory on a GPU": (torch.OutOfMemoryError("CUDA out of memory"), "CUDA out of memory", 1),
}


@SIZES
@pytest.mark.parametrize("kind", FAILURES)
def test_the_cause_is_that_of_the_process_that_failed(kind: str, size: int, tmp_path: Path) -> None:
    error, words, code = FAILURES[kind]
    answers, seconds = _ended(size, _at_step(3, _raise(error)), tmp_path)
    failed, others = answers[1], [a for rank, a in enumerate(answers) if rank != 1]
    assert (failed.error, failed.code, failed.told) == (type(error).__name__, code, False)
    assert {(answer.error, answer.code) for answer in others} == {("PeerError", 6)}
    (sentence,) = _told(others)
    assert "process 1 (" in sentence and words in sentence
    assert seconds < 30


def _damage(path: Path) -> Break:
    def break_it() -> None:
        honest = material.stream

        def stream(*arguments: Any, first: int, rank: int, **named: Any) -> Iterator[Any]:
            for number, batch in enumerate(honest(*arguments, first=first, rank=rank, **named)):
                if rank == 1 and number == 2:
                    raise DataError("the image cannot be read", where=str(path))
                yield batch

        material.stream = stream

    return break_it


def test_a_file_that_one_process_cannot_read_is_named(tmp_path: Path) -> None:
    answers, _ = _ended(2, _damage(Path("/data/cat.png")), tmp_path)
    assert [answer.code for answer in answers] == [6, 3]
    assert all("/data/cat.png" in answer.text for answer in answers)


def _hang_until(others_ended: list[Path]) -> Callable[[], None]:
    def act() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end and not all(path.exists() for path in others_ended):
            time.sleep(0.1)
        assert time.monotonic() < end, "the others wait for ever"

    return act


@SIZES
def test_a_process_that_hangs_is_named_after_the_timeout(size: int, tmp_path: Path) -> None:
    """The others end while it still hangs."""
    others = [tmp_path / f".answer-{rank}" for rank in range(size) if rank != 1]
    answers, _ = _ended(size, _at_step(3, _hang_until(others)), tmp_path, timeout=4.0)
    assert {(answer.error, answer.code) for answer in answers} == {("PeerError", 6)}
    told = [answer for answer in answers if not answer.told]
    assert len(told) == 1 and "process 1 (" in told[0].text
    assert "does not answer" in told[0].text and "step 4" in told[0].text


def _poison(sample: int) -> Break:
    def break_it() -> None:
        honest = material.stream

        def stream(*arguments: Any, **named: Any) -> Iterator[Any]:
            for batch in honest(*arguments, **named):
                x = batch.x.double()
                if batch.first <= sample < batch.first + len(x):
                    x[sample - batch.first] = torch.nan
                yield batch._replace(x=x)

        material.stream = stream
        torch.set_default_dtype(torch.float64)

    return break_it


def test_an_image_that_is_no_number_on_one_process_is_skipped_by_all(tmp_path: Path) -> None:
    """As one process would: the same weights, counters and lines."""
    config = shared_run(loop__steps=6)
    for size in (1, 2, 4):
        answers = together(size, _broken, config, tmp_path / str(size), _poison(85), place=tmp_path)
        assert not any(answer.error for answer in answers), answers
    alone, wanted = RunFolder(tmp_path / "1"), tensors(tmp_path / "1")
    for size in (2, 4):
        folder = RunFolder(tmp_path / str(size))
        lines = [_lines(each.bad_steps) for each in (alone, folder)]
        assert len(lines[0]) == 1 and lines[0][0]["step"] == 3 and len(lines[0][0]["broken"]) == 1
        assert lines[1] == lines[0]
        assert _counters(folder.path) == _counters(alone.path)
        for key, value in tensors(folder.path).items():
            torch.testing.assert_close(value, wanted[key], rtol=1e-9, atol=1e-11, equal_nan=True)


def _lines(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("loss", "gradient_norm")} for line in lines]


def _counters(path: Path) -> dict[str, Any]:
    found = newest_checkpoint(path / "checkpoints")
    assert found is not None
    kept = {k: v for k, v in found[1].state.items() if not k.startswith("loss_")}
    return {**kept, "step": found[1].step, "samples": found[1].samples}


def _nan_from(first: int) -> Break:
    def break_it() -> None:
        honest = material.stream

        def stream(*arguments: Any, **named: Any) -> Iterator[Any]:
            for batch in honest(*arguments, **named):
                bad = first <= batch.first + len(batch.x) - 1 < first + 96
                bad = bad and named["rank"] == named["processes"] - 1
                yield batch._replace(x=batch.x * torch.nan) if bad else batch

        material.stream = stream

    return break_it


def test_too_many_bad_steps_of_one_process_end_all_of_them(tmp_path: Path) -> None:
    answers, _ = _ended(2, _nan_from(64), tmp_path, loop__max_bad_in_a_row=3)
    assert [(answer.error, answer.code) for answer in answers] == [("NonFiniteError", 4)] * 2
    assert len(_told(answers)) == 1


@pytest.mark.parametrize("first", [0, 64], ids=["to the beginning", "to a checkpoint"])
@pytest.mark.parametrize("degree", [1, None], ids=["copies", "sharded"])
def test_processes_go_back_together(first: int, degree: int | None, tmp_path: Path) -> None:
    """To what one process becomes that meets the same."""
    changes = {"loop__max_bad_in_a_row": 3, "loop__rewinds": 1, "loop__checkpoint_every": 2}
    config = shared_run(loop__steps=6, machine__shard_degree=degree, **changes)
    for size in (1, 2):
        place = tmp_path / str(size)
        own = config if size == 2 else shared_run(loop__steps=6, **changes)
        answers = together(size, _broken, own, place, _nan_from(first), place=tmp_path)
        assert not any(answer.error for answer in answers), answers
        assert _counters(place)["rewinds"] == 1 and len(losses(place)) == 6
    one, two = losses(tmp_path / "1"), losses(tmp_path / "2")
    assert max(abs(a - b) for a, b in zip(one, two, strict=True)) < 1e-5


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_process_stops_all_at_the_same_step(rank: int, tmp_path: Path) -> None:
    stop = _at_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM), rank)
    config = shared_run(loop__steps=6)
    answers = together(2, _broken, config, tmp_path / "stopped", stop, place=tmp_path)
    assert {(answer.error, answer.code) for answer in answers} == {("StoppedError", 75)}
    (sentence,) = _told(answers)
    assert "by SIGTERM after step 4, saved" in sentence and "the same command goes on" in sentence
    for name in ("stopped", "whole"):
        trained(2, [Run(config, tmp_path / name)], tmp_path)
    wanted, found = tensors(tmp_path / "whole"), tensors(tmp_path / "stopped")
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_a_run_that_another_job_writes_to_is_refused_by_all(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run").locked():
        answers, _ = _ended(2, lambda: None, tmp_path)
    assert {(answer.error, answer.code) for answer in answers} == {("StorageError", 5)}
    assert len(_told(answers)) == 1 and "another job writes" in answers[0].text


def _flip_one_bit() -> None:
    honest = loop.train_step

    def step(state: Any, *others: Any) -> Any:
        found = honest(state, *others)
        if _rank() == 1 and state.step == 3:
            with torch.no_grad():
                state.model.final.bias.view(torch.int32)[0] ^= 1
        return found

    loop.train_step = step


def test_weights_that_drift_apart_are_noticed_at_the_next_save(tmp_path: Path) -> None:
    answers, _ = _ended(2, _flip_one_bit, tmp_path, loop__checkpoint_every=5)
    assert {(answer.error, answer.code) for answer in answers} == {("PeerError", 6)}
    (sentence,) = _told(answers)
    assert "the weights of process 1 are no longer those of process 0 after step 5" in sentence
    assert newest_checkpoint(tmp_path / "run" / "checkpoints") is None


def test_each_run_of_a_program_has_a_group_of_its_own(tmp_path: Path) -> None:
    """And leaves none: the second is the first, and the program may go on."""
    runs = [Run(shared_run(loop__steps=3), tmp_path / name) for name in ("first", "second")]
    trained(2, runs, tmp_path)
    assert losses(runs[0].path) == losses(runs[1].path)
    assert not torch.distributed.is_initialized()
    assert replace(runs[0]).path.is_dir()
