"""Checkpoints written while training goes on: the step waits for a copy, not for the disk."""

import math
import os
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from types import TracebackType

import torch
from torch import Tensor

from diffmoe.checkpoint import (
    Content,
    Piece,
    RunFolder,
    newest_good,
    prune,
    require_space,
    unshared,
    write,
)
from diffmoe.config import RunConfig, to_dict
from diffmoe.distributed import ALONE, Group, is_of_peers, refuse_drift
from diffmoe.errors import AbandonedWriteError, NonFiniteError
from diffmoe.training.state import TrainingState, own_tensor, state_content, state_parts

__all__ = ["WRITER", "Saver", "last_good", "refuse_small_disk"]


WRITER = "diffmoe-writer"  # the name of the thread that writes


class Saver:
    """Writes a run's checkpoints one after the other, in a thread of its own if asked to.

    `lock` is the open file that holds the run folder. Of several processes each writes its pieces,
    and all of them call it at the same steps.

    A checkpoint that could not be written raises its StorageError at the next call of `save`
    or `wait`: whatever follows a `wait` that returns may call the checkpoint saved. Weights
    that are not finite are not written: NonFiniteError.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        lock: int | None = None,
        group: Group = ALONE,
    ) -> None:
        self._config, self._folder, self._lock = config, folder, lock
        self._group = group.beside() if config.machine.background_saves else group
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
        threading.Thread(target=self._try_to_write, args=work, daemon=True, name=WRITER).start()

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
        _refuse_broken_weights(content, folder, self._group)
        path = write(folder.checkpoints, content, self._group.host)
        if self._group.first:
            folder.note_saved(content.step)
            prune(folder.checkpoints, path, loop.keep_checkpoints, loop.keep_every)

    @property
    def failed(self) -> bool:
        """Whether `wait` would raise at once."""
        return self._error is not None and (self._written is None or self._written.is_set())

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
            if error is None or not is_of_peers(error):  # without them it is never complete
                self._written.wait()
        elif self._written is not None and not self._written.is_set():
            raise AbandonedWriteError from error


def _refuse_broken_weights(content: Content, folder: RunFolder, group: Group) -> None:
    """Weights that are no numbers are never saved, so no checkpoint holds any.

    Nor are copies that are not the same: PeerError.
    """
    weights = content.parts["model"].values()
    own = [own_tensor(value) for value in weights]
    share = tuple(value.offsets for value in weights if isinstance(value, Piece))
    finite = all(bool(value.isfinite().all()) for value in own)
    told = group.gather((share, _bits(own) if group.size > 1 else 0, finite))
    if not all(sound for _, _, sound in told):
        raise group.spoken(
            NonFiniteError(
                f"the weights after step {content.step} are not finite",
                where=str(folder.path),
                remedy="lower training.learning_rate or set training.clip_norm in a new run; last"
                f" good checkpoint: {group.first_says(lambda: last_good(folder))}",
            )
        )
    refuse_drift(group, [(share, bits) for share, bits, _ in told], content.step)


def _bits(tensors: Sequence[Tensor]) -> int:
    """A sum of the bits of all, whatever the order they are added in."""
    return sum(int(value.reshape(-1).view(torch.int16).sum()) for value in tensors)


def last_good(folder: RunFolder) -> str:
    """The name of the newest checkpoint that is sound and whose last step was finite."""
    found = newest_good(folder.checkpoints)
    return found[0].name if found else "none yet"


def refuse_small_disk(config: RunConfig, folder: RunFolder, state: TrainingState) -> None:
    """Raise StorageError unless the checkpoints to be kept at once will fit on the disk."""
    parts = state_parts(state)["model"].values()
    weights = sum(math.prod(value.shape) * own_tensor(value).itemsize for value in parts)
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
