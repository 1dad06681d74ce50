"""Drills of the file system: what it must offer for promises to be kept at all."""

import fcntl
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from diffmoe.checkpoint import Content, newest_checkpoint, verify, write, write_text
from diffmoe.errors import StorageError
from diffmoe.experiments.selftest.children import begin, wait_for
from diffmoe.experiments.selftest.faults import telling_parts
from diffmoe.experiments.selftest.outcome import Drill, NotTriedError, Trial, brief

__all__ = ["FILE_SYSTEM", "newest_step", "refusal", "saved"]


def saved(parent: Path, *steps: int) -> list[Path]:
    """Checkpoints of those steps."""
    return [write(parent, Content(step, 16 * step, telling_parts(step))) for step in steps]


def newest_step(parent: Path) -> int | None:
    """The step of the newest checkpoint that is sound; None if there is none, or readers crash."""
    try:
        found = newest_checkpoint(parent)
    except Exception:
        return None
    return found[1].step if found else None


def refusal(checkpoint: Path) -> str:
    """What a reader says of a checkpoint; empty if it takes it, or crashes."""
    try:
        verify(checkpoint)
    except StorageError as error:
        return brief(error)
    except Exception:
        return ""
    return ""


# ---- the file system


def renames(folder: Path, seed: int, count: int) -> Iterator[Trial]:
    """A reader never sees a file that is half replaced, nor a checkpoint that is half there."""
    path, size = folder / "text", 1 << 16
    write_text(path, "a" * size)

    def replace() -> None:
        for step in range(10_000):
            write_text(path, "ab"[step % 2] * size)
            saved(folder / "checkpoints", step)

    child = begin(replace)
    try:
        for _ in range(count):
            found = path.read_text()
            whole = len(found) == size and len(set(found)) == 1
            yield Trial(whole, "a file replaced is whole" if whole else "half a file was read")
            for checkpoint in (folder / "checkpoints").glob("step-*"):
                appeared = refusal(checkpoint)
                yield Trial(not appeared, appeared or "a checkpoint that appears is whole")
                shutil.rmtree(checkpoint)
            time.sleep(0.002)
        yield Trial(not child.is_over, "the writer ended" if child.is_over else "to the end")
    finally:
        child.end()


def order(folder: Path, seed: int, count: int) -> Iterator[Trial]:
    """The newest checkpoint is that of the highest step, whatever dates and names say."""
    rng = random.Random(seed)
    for number in range(count):
        parent = folder / str(number)
        paths = saved(parent, *(steps := rng.sample(range(1, 1000), 3)))
        for path, date in zip(paths, rng.sample(range(10**9), 3), strict=True):
            os.utime(path / "manifest.json", (date, date))
            os.utime(path, (date, date))
        paths[steps.index(max(steps))].rename(parent / "step-00000000-copy")
        held = newest_step(parent) == max(steps)
        yield Trial(held, "the highest step is taken" if held else "another step is taken")


Lock = Callable[[int], object]


def _locks(lock: Lock) -> Callable[[Path, int, int], Iterator[Trial]]:
    def work(folder: Path, seed: int, count: int) -> Iterator[Trial]:
        path = folder / "lock"
        path.touch()
        _refuse_unlockable(path, lock)
        for _ in range(count):
            holder = begin(lambda: _hold(path, lock, folder / "held"))
            held = wait_for((folder / "held").exists) and not _can_lock(path, lock)
            holder.end()
            (folder / "held").unlink(missing_ok=True)
            yield Trial(held, "shut to a second process" if held else "open to a second process")
            free = wait_for(lambda: _can_lock(path, lock), 5)
            yield Trial(free, "free once its holder is killed" if free else "stays with the dead")

    return work


def _refuse_unlockable(path: Path, lock: Lock) -> None:
    try:
        _can_lock(path, lock)
    except OSError as error:
        raise NotTriedError(f"this file system has no such locks ({error.strerror})") from error


def _hold(path: Path, lock: Lock, mark: Path) -> None:
    with path.open("r+b") as stream:
        lock(stream.fileno())
        mark.touch()
        time.sleep(60)


def _can_lock(path: Path, lock: Lock) -> bool:
    with path.open("r+b") as stream:
        try:
            lock(stream.fileno())
        except BlockingIOError:
            return False
        return True


def _flock(handle: int) -> None:
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _byte_lock(handle: int) -> None:
    fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 2**40)


FILE_SYSTEM = tuple(
    Drill(name, promise, work, count, is_storage=True)
    for name, promise, work, count in (
        ("renames", "what is replaced is never seen half-written", renames, 60),
        ("order", "the newest checkpoint is that of the highest step", order, 5),
        ("flock", "a lock on a file shuts out a second process", _locks(_flock), 2),
        ("byte-locks", "a lock on a byte shuts out a second process", _locks(_byte_lock), 2),
    )
)
