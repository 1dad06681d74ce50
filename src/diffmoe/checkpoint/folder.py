"""A run folder: one config, its checkpoints, its metrics and what is derived from them."""

import fcntl
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from diffmoe.checkpoint.choice import claimed_step
from diffmoe.checkpoint.files import entries, storage_errors, sweep, write_text
from diffmoe.checkpoint.lines import read_lines, write_lines
from diffmoe.checkpoint.locks import unshared
from diffmoe.checkpoint.metrics import read_metrics
from diffmoe.config import (
    RunConfig,
    identity_differences,
    read_config,
    to_yaml,
)
from diffmoe.errors import ConfigError, NoRunError, StorageError

__all__ = ["RunFolder"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunFolder:
    """The layout of a run on disk."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def is_run(self) -> bool:
        """Whether there is a run in this folder; StorageError if it may not be looked into."""
        try:
            return self.config.is_file()
        except PermissionError as error:
            raise StorageError(
                f"the folder cannot be read ({error.strerror})",
                where=str(self.path),
                remedy="check its permissions",
            ) from error

    def read_config(self) -> RunConfig:
        """The config of the run; raises NoRunError if there is no run."""
        if not self.is_run:
            raise NoRunError(str(self.path))
        return read_config(self.config)

    @property
    def checkpoints(self) -> Path:
        """One folder for each checkpoint."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """A line of JSON every few steps."""
        return self.path / "metrics.jsonl"

    @property
    def bad_samples(self) -> Path:
        """A line of JSON for each damaged sample that was replaced."""
        return self.path / "bad_samples.jsonl"

    @property
    def bad_steps(self) -> Path:
        """A line of JSON for each optimizer step that was skipped."""
        return self.path / "bad_steps.jsonl"

    @property
    def spikes(self) -> Path:
        """A line of JSON for each loss far above the usual."""
        return self.path / "spikes.jsonl"

    @property
    def _told(self) -> tuple[Path, ...]:
        """What training tells of its steps and samples."""
        return self.metrics, self.bad_steps, self.spikes, self.bad_samples

    @property
    def samples(self) -> Path:
        """Images drawn from the run."""
        return self.path / "samples"

    @property
    def calibrations(self) -> Path:
        """Thresholds found for the capacities that were asked for."""
        return self.path / "calibration"

    @property
    def evaluations(self) -> Path:
        """Numbers of images drawn from the run."""
        return self.path / "evaluation"

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, as the data of the training had them; empty if none are kept.

        They are for messages and pages: bytes that are no text are replaced, not refused.
        """
        return read_lines(self._classes)

    def trained_classes(self, classes: int) -> int:
        """How many of a model's classes were trained, the first ones: those that have names here.

        All of them where no names are kept.
        """
        return min(len(self.class_names), classes) or classes

    def keep_class_names(self, names: Sequence[str]) -> None:
        """Write the names of the classes, a line each, for when the data are not at hand."""
        write_lines(self._classes, names)

    @property
    def words(self) -> tuple[str, ...]:
        """The vocabulary of a network that reads words, in the order of its table."""
        return read_lines(self._words)

    @property
    def captions(self) -> tuple[str, ...]:
        """Some captions of the training, for when nobody names a prompt."""
        return read_lines(self._captions)

    def keep_texts(self, words: Sequence[str], captions: Sequence[str]) -> None:
        """Write the vocabulary, if there is one, and some captions, a line each."""
        if words:
            write_lines(self._words, words)
        write_lines(self._captions, captions)

    @property
    def _classes(self) -> Path:
        return self.path / "classes.txt"

    @property
    def _words(self) -> Path:
        return self.path / "words.txt"

    @property
    def _captions(self) -> Path:
        return self.path / "captions.txt"

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Hold the folder against a second job, rid of what an interrupted one left.

        The lock ends with the process; a copy (`os.dup`) of the open file given keeps it beyond
        the block. A folder that was made for it goes again if the block fails before the folder is
        claimed.
        """
        with storage_errors("to the run folder", self.path):
            inner_first = (self.checkpoints, self.path, *self.path.parents)
            absent = [path for path in inner_first if not path.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            lock = self._lock.open("w")
        with lock, unshared(lock.fileno()):
            self._hold(lock.fileno())
            try:
                self._tidy()
                yield lock.fileno()
            except BaseException:
                if not self.is_run:
                    self._vanish(absent)
                raise

    @property
    def _lock(self) -> Path:
        return self.path / ".lock"

    def _hold(self, lock: int) -> None:
        """Lock an open file; raises StorageError if another job holds it or has just removed it."""
        with suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), self._lock.stat()):
                return
        raise StorageError(
            "another job writes to this run",
            where=str(self.path),
            remedy="wait for it, or choose another --run",
        )

    def _tidy(self) -> None:
        with storage_errors("to the run folder", self.path):
            sweep(self.checkpoints)
            own = (self.config, self._classes, self._words, self._captions, self._saved)
            for written in (*own, *self._told):  # a report may be at work beside this job
                sweep(self.path, written.stem)

    def _vanish(self, made: list[Path]) -> None:
        """Remove the lock and the folders made with it, as far as nothing else is in them."""
        with suppress(OSError):
            self._lock.unlink(missing_ok=True)
            for path in made:
                if path.exists():
                    path.rmdir()

    def refuse_another(self, config: RunConfig) -> None:
        """Raise an error if this folder is the home of anything but `config`.

        ConfigError if it is another run that has a checkpoint, or had one; StorageError if it holds
        things that belong to no run.
        """
        changed = self._changes(config)
        if changed and self.has_past:
            raise ConfigError(
                f"the run folder holds another config: {changed}",
                where=str(self.path),
                remedy="choose another --run, or restore these fields",
            )
        foreign = "" if self.is_run else self._foreign()
        if foreign:
            raise StorageError(
                f"the folder is no run and holds other things, {foreign} for one",
                where=str(self.path),
                remedy="choose another --run, which is not there yet or is empty",
            )

    def claim(self, config: RunConfig) -> None:
        """Make this folder the home of `config`, of another one only if that left nothing."""
        self.refuse_another(config)
        changed = self._changes(config)
        with storage_errors("to the run folder", self.path):
            self.checkpoints.mkdir(exist_ok=True)
            if changed:
                _LOG.info("%s has no checkpoint and begins anew: %s", self.path, changed)
                for told in self._told:  # before the config: they tell of the old one
                    told.unlink(missing_ok=True)
        write_text(self.config, to_yaml(config))

    def _changes(self, config: RunConfig) -> str:
        """Which fields make the run that is here another one than `config`; empty if none do."""
        found = identity_differences(read_config(self.config), config) if self.is_run else {}
        return ", ".join(f"{name} {a} -> {b}" for name, (a, b) in list(found.items())[:5])

    @property
    def has_past(self) -> bool:
        """Whether a checkpoint was written here, be it lost."""
        return claimed_step(self.checkpoints) is not None or self.saved_step is not None

    @property
    def _saved(self) -> Path:
        return self.path / "saved.json"

    @property
    def saved_step(self) -> int | None:
        """The step of the checkpoint that was written last; None if there was none."""
        lines = read_metrics(self._saved) if self.is_run else []
        return lines[-1]["step"] if lines else None

    def note_saved(self, step: int | None) -> None:
        """Note that a checkpoint is on the disk, for when it is lost; or that there is none."""
        if step is None:
            self._saved.unlink(missing_ok=True)
        else:
            write_text(self._saved, json.dumps({"step": step}) + "\n")

    def _foreign(self) -> str:
        """The first thing here that is no leftover of a job; empty if there is none."""
        if not self.path.is_dir():
            return ""
        others = (path for path in entries(self.path) if not _is_leftover(path))
        return next((path.name for path in others), "")


def _is_leftover(path: Path) -> bool:
    """Whether something is left of a job that was killed before it had claimed its folder."""
    if path.name == "checkpoints" and path.is_dir():
        return all(entry.name.startswith(("step-", ".tmp-", "damaged-")) for entry in entries(path))
    return path.name == ".lock" or path.name.startswith(".tmp-")
