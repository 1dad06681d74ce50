"""A run folder: one config, its checkpoints, its metrics and what is derived from them."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from diffmoe.checkpoint.files import storage_errors, write_text
from diffmoe.checkpoint.store import Manifest, newest_checkpoint, read_part, sweep
from diffmoe.config import (
    RunConfig,
    from_dict,
    identity_differences,
    read_config,
    to_yaml,
)
from diffmoe.errors import ConfigError, StorageError
from diffmoe.model import DiT

__all__ = ["LoadedRun", "RunFolder", "load", "load_tensors"]


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
        """Whether there is a run in this folder."""
        return self.config.is_file()

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
        """Hold the folder against a second job; the lock ends with the process."""
        with storage_errors("to the run folder", self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("w")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StorageError(
                    "another job writes to this run",
                    where=str(self.path),
                    remedy="wait for it, or choose another --run",
                ) from error
            yield

    def refuse_another(self, config: RunConfig) -> None:
        """Raise ConfigError if this folder is the home of a run that is not `config`."""
        changed = identity_differences(read_config(self.config), config) if self.is_run else {}
        if changed:
            listed = ", ".join(f"{name} {a} -> {b}" for name, (a, b) in list(changed.items())[:5])
            raise ConfigError(
                f"the run folder holds another config: {listed}",
                where=str(self.path),
                remedy="choose another --run, or restore these fields",
            )

    def claim(self, config: RunConfig) -> None:
        """Make this folder the home of `config`, rid of what an interrupted job left."""
        self.refuse_another(config)
        with storage_errors("to the run folder", self.path):
            self.checkpoints.mkdir(exist_ok=True)
        sweep(self.checkpoints)
        for written in (self.config, self.metrics):  # a report may be at work beside this job
            sweep(self.path, written.stem)
        write_text(self.config, to_yaml(config))


@dataclass(frozen=True)
class LoadedRun:
    """A trained model and where it came from."""

    folder: RunFolder
    config: RunConfig
    model: DiT
    step: int
    weights: str  # `ema` or `raw`
    fingerprint: str  # sha256 of the weights file


def load(
    path: Path | str,
    *,
    weights: Literal["ema", "raw"] = "ema",
    device: torch.device | str = "cpu",
) -> LoadedRun:
    """The newest sound checkpoint of a run, ready to sample from.

    Raises StorageError when the folder is no run, has no checkpoint, or none that is sound.
    """
    folder = RunFolder(Path(path))
    if not folder.is_run:
        raise StorageError(
            "this folder is no run: it has no config.yaml",
            where=str(path),
            remedy="give the folder of a training run, or train one: diffmoe train PRESET",
        )
    config = read_config(folder.config)
    found = newest_checkpoint(folder.checkpoints)
    if found is None:
        raise StorageError(
            "the run has no checkpoint yet", where=str(path), remedy=f"diffmoe train {path}"
        )
    checkpoint, manifest = found
    _refuse_strange(manifest, config, checkpoint)
    part = {"ema": "ema", "raw": "model"}[weights]
    with torch.device("meta"):
        model = DiT(config.model)
    model.to_empty(device="cpu")
    load_tensors(model, read_part(checkpoint, part), where=str(checkpoint))
    fingerprint = str(manifest.files[f"{part}.safetensors"]["sha256"])
    model.to(device).requires_grad_(False).eval()
    return LoadedRun(folder, config, model, manifest.step, weights, fingerprint)


def _refuse_strange(manifest: Manifest, config: RunConfig, checkpoint: Path) -> None:
    """Equal shapes do not make an equal model: the number of heads, say, leaves none."""
    if not manifest.config:
        return
    changed = identity_differences(from_dict(manifest.config, where=str(checkpoint)), config)
    if changed:
        name, (theirs, ours) = next(iter(changed.items()))
        raise StorageError(
            f"the checkpoint belongs to another model: {name} is {theirs} there and {ours} in"
            " config.yaml",
            where=str(checkpoint),
            remedy="restore config.yaml or the checkpoint",
        )


def load_tensors(model: torch.nn.Module, tensors: dict[str, Tensor], *, where: str) -> None:
    """Copy tensors into a model; raises StorageError naming what is missing, extra or misshapen."""
    wanted = model.state_dict()
    missing, extra = wanted.keys() - tensors.keys(), tensors.keys() - wanted.keys()
    wrong = {n for n in wanted.keys() & tensors.keys() if wanted[n].shape != tensors[n].shape}
    for names, what in ((missing, "lacks"), (extra, "has unknown"), (wrong, "has misshapen")):
        if names:
            raise StorageError(
                f"the checkpoint {what} {len(names)} tensors, among them {sorted(names)[0]}",
                where=where,
                remedy="it belongs to another model",
            )
    model.load_state_dict(tensors)
