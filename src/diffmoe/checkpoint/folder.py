"""A run folder: one config, its checkpoints, its metrics and what is derived from them."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from diffmoe.checkpoint.files import entries, storage_errors, sweep, write_text
from diffmoe.checkpoint.metrics import read_metrics
from diffmoe.checkpoint.store import Manifest, claimed_step, find_checkpoint, read_part
from diffmoe.config import (
    RunConfig,
    from_dict,
    identity_differences,
    read_config,
    to_yaml,
)
from diffmoe.errors import ConfigError, NoRunError, StorageError
from diffmoe.model import DiT, empty_model

__all__ = ["LoadedRun", "RunFolder", "load", "load_tensors", "refuse_foreign"]

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
    def samples(self) -> Path:
        """Images drawn from the run."""
        return self.path / "samples"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder against a second job, rid of what an interrupted one left.

        The lock ends with the process. A folder that was made for it goes again if the block fails
        before the folder is claimed.
        """
        with storage_errors("to the run folder", self.path):
            inner_first = (self.checkpoints, self.path, *self.path.parents)
            absent = [path for path in inner_first if not path.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            lock = self._lock.open("w")
        with lock:
            self._hold(lock.fileno())
            try:
                self._tidy()
                yield
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
            for written in (self.config, self.metrics):  # a report may be at work beside this job
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
        if changed and self._has_past:
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
                self.metrics.unlink(missing_ok=True)  # before the config: they tell of the old one
        write_text(self.config, to_yaml(config))

    def _changes(self, config: RunConfig) -> str:
        """Which fields make the run that is here another one than `config`; empty if none do."""
        found = identity_differences(read_config(self.config), config) if self.is_run else {}
        return ", ".join(f"{name} {a} -> {b}" for name, (a, b) in list(found.items())[:5])

    @property
    def _has_past(self) -> bool:
        return claimed_step(self.checkpoints) is not None or self.lost_step is not None

    @property
    def lost_step(self) -> int | None:
        """The last step that metrics tell of, if they prove that a checkpoint was written.

        A line of metrics is written after the checkpoint of its step, so lines that reach the
        first one due prove that there was one. A job killed before then left none.
        """
        if not self.is_run:
            return None
        loop = read_config(self.config).loop
        last = max((line["step"] for line in read_metrics(self.metrics)), default=0)
        return last if last >= min(loop.checkpoint_every, loop.steps) else None

    def _foreign(self) -> str:
        """The first thing here that is no leftover of a job; empty if there is none."""
        if not self.path.is_dir():
            return ""
        others = (path for path in entries(self.path) if not _is_leftover(path))
        return next((path.name for path in others), "")


def _is_leftover(path: Path) -> bool:
    """Whether something is left of a job that was killed before it had claimed its folder."""
    if path.name == "checkpoints" and path.is_dir():
        return all(entry.name.startswith(("step-", ".tmp-")) for entry in entries(path))
    return path.name == ".lock" or path.name.startswith(".tmp-")


@dataclass(frozen=True)
class LoadedRun:
    """A trained model and where it came from."""

    folder: RunFolder
    config: RunConfig
    model: DiT
    step: int
    weights: str  # `ema` or `raw`
    fingerprint: str  # sha256 of the weights file
    trained_on: dict[str, str] = field(default_factory=dict)  # `codec` and `data`, where known


def load(
    path: Path | str,
    *,
    weights: Literal["ema", "raw"] = "ema",
    device: torch.device | str = "cpu",
    step: int | None = None,
) -> LoadedRun:
    """The newest checkpoint of a run, or that of `step`, ready to sample from.

    Raises NoRunError when the folder is no run, StorageError when it has no such checkpoint or
    that one is damaged: another one would be another model.
    """
    folder = RunFolder(Path(path))
    config = folder.read_config()
    found = find_checkpoint(folder.checkpoints, step)
    if found is None:
        raise StorageError(
            "the run has no checkpoint yet", where=str(path), remedy=f"diffmoe train {path}"
        )
    checkpoint, manifest = found
    refuse_foreign(manifest, config, checkpoint)
    part = {"ema": "ema", "raw": "model"}[weights]
    model = _read_model(config, checkpoint, part).to(device)
    fingerprint = str(manifest.files[f"{part}.safetensors"]["sha256"])
    facts = (manifest.step, weights, fingerprint, manifest.trained_on)
    return LoadedRun(folder, config, model, *facts)


def _read_model(config: RunConfig, checkpoint: Path, part: str) -> DiT:
    """The model of one part of a checkpoint, frozen."""
    model = empty_model(config.model)
    load_tensors(model, read_part(checkpoint, part), where=str(checkpoint))
    return model.requires_grad_(False).eval()


def refuse_foreign(manifest: Manifest, config: RunConfig, checkpoint: Path) -> None:
    """Raise StorageError if a checkpoint was written by a run that is not `config`.

    Equal shapes do not make an equal model: the number of heads, say, leaves none.
    """
    if not manifest.config:
        return
    try:
        theirs = from_dict(manifest.config, where=str(checkpoint))
    except RecursionError as error:
        raise StorageError(
            "the config in the checkpoint's manifest is no config", where=str(checkpoint)
        ) from error
    changed = identity_differences(theirs, config)
    if changed:
        name, (there, here) = next(iter(changed.items()))
        raise StorageError(
            f"the checkpoint belongs to another model: {name} is {there} there and {here} in"
            " config.yaml",
            where=str(checkpoint),
            remedy="restore config.yaml or the checkpoint",
        )


def load_tensors(model: torch.nn.Module, tensors: dict[str, Tensor], *, where: str) -> None:
    """Copy tensors into a model; raises StorageError naming what is missing, extra or misshapen."""
    fault = _misfit(model.state_dict(), tensors)
    if fault:
        raise StorageError(fault, where=where, remedy="it belongs to another model")
    model.load_state_dict(tensors)


def _misfit(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> str:
    """Why tensors do not fit a model, empty if they do."""
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing:
        return f"the checkpoint lacks {_tensors(missing)}, e.g. {missing[0]}"
    if extra:
        return f"the checkpoint has {_tensors(extra)} that the model has not, e.g. {extra[0]}"
    shapes = {n: (list(found[n].shape), list(wanted[n].shape)) for n in sorted(wanted)}
    wrong = [name for name, (there, here) in shapes.items() if there != here]
    if not wrong:
        return ""
    there, here = shapes[wrong[0]]
    verb = "has" if len(wrong) == 1 else "have"
    return (
        f"{_tensors(wrong)} {verb} another shape than the model's, e.g. {wrong[0]} is {there} there"
        f" and {here} here"
    )


def _tensors(names: list[str]) -> str:
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''}"
