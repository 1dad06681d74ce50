"""A long work in numbered parts that any number of processes share, and that survives any of them.

A part is a folder that appears by one rename. Who works on a part holds a lock on one byte of a
file, which the system lets go when the process ends, however it ends: no process has to know of
another, whether they are ranks of one job, jobs on several machines or the same command again.
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from diffmoe.checkpoint.files import (
    entries,
    new_folder,
    remove_folder,
    storage_errors,
    sweep,
    write_text,
)
from diffmoe.errors import ConfigError, StorageError

__all__ = ["Parts", "refuse_foreign_parts"]

_KEY, _LOCK, _PART = "work.json", ".lock", "part-"
_KEY_BYTE = 2**40  # beyond the bytes of parts: locked by all who are at work
_PATIENCE = 0.2  # seconds between two looks at what other processes do


@dataclass
class Parts:
    """The parts of one work, done and still to do; made by `Parts.opened`."""

    folder: Path
    count: int
    _lock: IO[bytes] = field(repr=False)

    @classmethod
    @contextmanager
    def opened(
        cls, folder: Path, count: int, key: dict[str, Any], finished: Callable[[], bool]
    ) -> Iterator["Parts | None"]:
        """The parts in `folder`, begun or gone on with; None if `finished` says the work is done.

        `key` is all that the result depends on. Raises ConfigError if the folder holds parts of
        another key, or another process works there with one, StorageError if it is something else
        or cannot be written.
        """
        key = json.loads(json.dumps(key, default=str))
        with closing(_entered(cls, folder, count)) as parts:
            if finished():  # since the caller looked, or killed before it could tidy up
                parts._tidy(key)
                yield None
                return
            parts._claim_key(key)
            yield parts

    def close(self) -> None:
        """Let go of all locks."""
        self._lock.close()

    def path(self, number: int) -> Path:
        """Where a part lies once it is done."""
        return self.folder / f"{_PART}{number:06d}"

    def is_done(self, number: int) -> bool:
        """Whether a part is there."""
        return self.path(number).is_dir()

    @property
    def done(self) -> list[int]:
        """The numbers of the parts that are there."""
        names = {entry.name for entry in entries(self.folder)}
        return [n for n in range(self.count) if self.path(n).name in names]

    @property
    def is_whole(self) -> bool:
        """Whether every part is there."""
        return len(self.done) == self.count

    @property
    def is_over(self) -> bool:
        """Whether another process has ended the work and removed its parts."""
        try:
            there = (self.folder / _LOCK).stat()
        except OSError:
            return True
        return not os.path.samestat(os.fstat(self._lock.fileno()), there)

    def fill(
        self, make: Callable[[int, Path], object], tell: Callable[[int], object] | None = None
    ) -> None:
        """Call `make(number, folder)` for each part that is not there, until all are.

        What other processes are at is waited for, and made here should they die. `tell` is called
        with the number of parts that are there whenever it may have changed.
        """
        while not self.is_over:
            for number in range(self.count):
                with self.claimed(number) as folder:
                    if folder is None:
                        continue
                    make(number, folder)
                if tell is not None:
                    tell(len(self.done))
            if self.is_whole:
                return
            if tell is not None:
                tell(len(self.done))
            time.sleep(_PATIENCE)

    def end(self, assemble: Callable[[], object], finished: Callable[[], bool]) -> None:
        """See to it that one process calls `assemble`, which makes `finished` true."""
        while not finished():
            with self.ending() as mine:
                if mine:
                    assemble()
            if mine:
                return
            if self.is_over and not finished():
                raise StorageError(
                    "another process ended the work, and its result is gone",
                    where=str(self.folder),
                    remedy="give the same command again",
                )
            time.sleep(_PATIENCE)

    def scratch(self, name: str) -> Path:
        """A place for a file that is of no use once the work has ended."""
        return self.folder / f".tmp-{name}"

    @contextmanager
    def claimed(self, number: int) -> Iterator[Path | None]:
        """A folder to fill that becomes part `number` if the block succeeds.

        None where the part is done, or another process works on it.
        """
        with self._held(number) as mine:
            # Asked in this order: parts that vanish as the work ends look as if never done.
            if not mine or self.is_done(number) or self.is_over:
                yield None
                return
            self._sweep(number)
            with new_folder(self.path(number)) as aside:
                yield aside

    @contextmanager
    def ending(self) -> Iterator[bool]:
        """Whether this process is to put the parts together: one does, once every part is there.

        If the block succeeds the parts are removed.
        """
        with self._held(self.count) as mine:
            if not mine or not self.is_whole or self.is_over:
                yield False
                return
            yield True
            remove_folder(self.folder)

    @contextmanager
    def _held(self, number: int) -> Iterator[bool]:
        """Whether the lock on a number could be had, held as long as the block runs."""
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            raise self._no_locks(error) from error
        try:
            yield True
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN, 1, number)

    def _sweep(self, number: int) -> None:
        """Remove what a process left that was killed at this part."""
        for left in self.folder.glob(f".tmp-{self.path(number).name}-*"):
            shutil.rmtree(left, ignore_errors=True)

    def _enter(self, alone: bool) -> bool:
        """Lock the key, for this process alone if nobody else is at work; whether it could be."""
        how = fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH
        try:
            fcntl.lockf(self._lock, how, 1, _KEY_BYTE)
        except BlockingIOError:
            return False
        except OSError as error:
            raise self._no_locks(error) from error
        return True

    def _claim_key(self, key: dict[str, Any]) -> None:
        """Note what the parts are of, or see that it is the same.

        The lock on the key is shared by all who work here, so only who is alone may change it, and
        does so only where nothing is lost.
        """
        place = self.folder / _KEY
        alone = self._enter(alone=True) or not self._enter(alone=False)
        found = _read_key(place)
        if found != key and not self.is_over:
            if not alone or self.done:
                raise _another(self.folder, found, key, alone)
            write_text(place, json.dumps(key, indent=1))
        self._enter(alone=False)

    def _tidy(self, key: dict[str, Any]) -> None:
        """Remove the parts of a work that is done, unless they are of another one or in use."""
        ours = self._enter(alone=True) and not self.is_over
        found = _read_key(self.folder / _KEY)
        if ours and (found == key or (found is None and not self.done)):
            remove_folder(self.folder)

    def _no_locks(self, error: OSError) -> StorageError:
        return StorageError(
            f"files cannot be locked here ({error.strerror})",
            where=str(self.folder),
            remedy="work on a file system with locks, and copy the result",
        )


def _entered(kind: type[Parts], folder: Path, count: int) -> Parts:
    """The parts of a folder that is there, made if need be: one may be renamed away meanwhile."""
    while True:
        refuse_foreign_parts(folder)
        with storage_errors("parts", folder):
            folder.mkdir(parents=True, exist_ok=True)
            sweep(folder.parent, f"{folder.name}-")  # what is left of parts that were removed
            try:
                lock = (folder / _LOCK).open("a+b")
            except FileNotFoundError:
                continue
        parts = kind(folder, count, lock)
        if not parts.is_over:
            return parts
        parts.close()


def _another(folder: Path, found: Any, key: Any, alone: bool) -> ConfigError:
    """The error of parts that are of something else, or of nobody knows what."""
    if found is None:
        what = "parts lie here without a record of what they are of"
    else:
        who = "an unfinished work" if alone else "another process with a work"
        what = f"{who} of other settings lies here: {_difference(found, key)}"
    return ConfigError(
        what,
        where=str(folder),
        remedy="finish it with the command that began it, remove the folder, or choose another"
        " --out",
    )


def refuse_foreign_parts(folder: Path) -> None:
    """Raise StorageError if a folder of parts would lie where something else lies."""
    others = [e.name for e in entries(folder) if not _is_ours(e)]
    is_file = (folder.exists() or folder.is_symlink()) and not folder.is_dir()
    if is_file or others:
        raise StorageError(
            f"{others[0] if others else folder.name} lies where parts are to be kept",
            where=str(folder),
            remedy="choose another --out",
        )


def _is_ours(entry: Path) -> bool:
    return entry.name in (_KEY, _LOCK) or entry.name.startswith((_PART, ".tmp-"))


def _read_key(place: Path) -> Any:
    """What parts are of; None where it cannot be read."""
    try:
        return json.loads(place.read_text())
    except (OSError, ValueError, RecursionError):
        return None


def _difference(found: Any, wanted: Any, name: str = "") -> str:
    """The first thing in which two records differ."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in [*found, *wanted]:
            if found.get(key) != wanted.get(key):
                return _difference(found.get(key), wanted.get(key), f"{name}.{key}".lstrip("."))
    return f"{name or 'all'} {_short(found)} -> {_short(wanted)}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
