"""Checkpoints written while training goes on: the step waits for a copy, not for the disk."""

import os
import threading
from contextlib import nullcontext
from types import TracebackType

from torch import Tensor

from diffmoe.checkpoint import (
    Content,
    RunFolder,
    newest_good,
    prune,
    require_space,
    unshared,
    write,
)
from diffmoe.config import RunConfig, to_dict
from diffmoe.errors import AbandonedWriteError, NonFiniteError
from diffmoe.training.state import TrainingState, state_content

__all__ = ["Saver", "last_good", "refuse_small_disk"]


class Saver:
    """Writes a run's checkpoints one after the other, in a thread of its own if asked to.

    `lock` is the open file that holds the run folder.

    A checkpoint that could not be written raises its StorageError at the next call of `save`,
    `poll` or `wait`: whatever follows a `wait` that returns may call the checkpoint saved. Weights
    that are not finite are not written: NonFiniteError.
    """

    def __init__(self, config: RunConfig, folder: RunFolder, lock: int | None = None) -> None:
        self._config, self._folder, self._lock = config, folder, lock
        self._copies: dict[str, dict[str, Tensor]] = {}  # of the state, used again each time
        self._written: threading.Event | None = None  # set once the last write is over
        self._error: BaseException | None = None

    def save(self, state: TrainingState) -> None:
        """Write the state as it is now; returns once it is copied, or written where none waits."""
        self.wait()
        background = self._config.machine.background_saves
        content = state_content(state, to_dict(self._config), self._copies if background else None)
        if not background:
            self._write(content)
            return
        # Whoever stops without waiting leaves the lock to the thread: nobody else may write yet.
        lock = None if self._lock is None else os.dup(self._lock)
        # An event, as Python 3.11 takes a thread for ended when its join was interrupted.
        self._written = threading.Event()
        work = (content, lock, self._written)
        threading.Thread(target=self._try_to_write, args=work, daemon=True).start()

    def _try_to_write(self, content: Content, lock: int | None, written: threading.Event) -> None:
        try:
            with nullcontext() if lock is None else unshared(lock):
                self._write(content)
        except BaseException as error:  # raised again in the thread that trains
            self._error = error
        finally:
            if lock is not None:
                os.close(lock)
            written.set()

    def _write(self, content: Content) -> None:
        loop, folder = self._config.loop, self._folder
        _refuse_broken_weights(content, folder)
        path = write(folder.checkpoints, content)
        folder.note_saved(content.step)
        prune(folder.checkpoints, path, loop.keep_checkpoints, loop.keep_every)

    def poll(self) -> None:
        """Raise what a write has met; never waits."""
        if self._written is not None and self._written.is_set():
            self.wait()

    def wait(self) -> None:
        """Return once all that was to be saved is on the disk."""
        if self._written is not None:
            self._written.wait()
            self._written = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Finish the last write, but for a user who asked twice to stop: AbandonedWriteError."""
        if kind is None:
            self.wait()
        elif self._written is not None and issubclass(kind, Exception):
            self._written.wait()
        elif self._written is not None and not self._written.is_set():
            raise AbandonedWriteError from error


def _refuse_broken_weights(content: Content, folder: RunFolder) -> None:
    """Weights that are no numbers are never saved, so no checkpoint holds any."""
    if not all(bool(value.isfinite().all()) for value in content.parts["model"].values()):
        raise NonFiniteError(
            f"the weights after step {content.step} are not finite",
            where=str(folder.path),
            remedy="lower training.learning_rate or set training.clip_norm in a new run; last good"
            f" checkpoint: {last_good(folder)}",
        )


def last_good(folder: RunFolder) -> str:
    """The name of the newest checkpoint that is sound and whose last step was finite."""
    found = newest_good(folder.checkpoints)
    return found[0].name if found else "none yet"


def refuse_small_disk(config: RunConfig, folder: RunFolder, state: TrainingState) -> None:
    """Raise StorageError unless the checkpoints to be kept at once will fit on the disk."""
    weights = sum(value.nbytes for value in state.model.state_dict().values())
    each = 4 * weights + 2**16  # weights, their average and two moments; the manifest
    every, first, last = config.loop.keep_every, state.step, config.loop.steps
    steps = [int(path.name[5:]) for path in folder.checkpoints.glob("step-" + 8 * "[0-9]")]
    there = sum(step <= first and not (every and step % every == 0) for step in steps)
    more = max(1, config.loop.keep_checkpoints + 1 - there)  # one goes when the next is complete
    more += last // every - first // every if every else 0
    require_space(
        folder.checkpoints,
        more * each,
        f"{more} more checkpoint{'s' if more > 1 else ''} of this run",
        "lower --loop.keep-checkpoints",
    )
