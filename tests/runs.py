"""Runs small enough to train in a test."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
from torch import Tensor

from diffmoe.checkpoint import RunFolder, newest_checkpoint
from diffmoe.config import DDPMConfig, FolderData, RunConfig
from diffmoe.data import Batch
from diffmoe.presets import preset
from tiny import ROUTERS

ROUTER_KINDS = tuple(ROUTERS)
OBJECTIVES = ("flow", "ddpm")


def changed(record: Any, changes: dict[str, Any]) -> Any:
    """A record with fields replaced all at once; names are dotted."""
    own: dict[str, Any] = {}
    below: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        head, _, rest = name.partition(".")
        if rest:
            below.setdefault(head, {})[rest] = value
        else:
            own[head] = value
    for head, inner in below.items():
        own[head] = changed(own.get(head, getattr(record, head)), inner)
    return replace(record, **own)


def run_config(router: str = "batch_pool", objective: str = "flow", **changes: Any) -> RunConfig:
    """A tiny run on digits; `changes` are named `group__field`."""
    small: dict[str, Any] = {
        "model.width": 16,
        "model.depth": 2,
        "model.heads": 2,
        "model.router": ROUTERS[router],
        "model.pool_images": 8,
        "training.global_batch": 16,
        "training.warmup_steps": 2,
        "training.decay_steps": 40,
        "loop.steps": 4,
        "loop.log_every": 2,
        "loop.checkpoint_every": 2,
        "sampling.steps": 3,
        "sampling.batch": 4,
    }
    if objective == "ddpm":
        small |= {"objective": DDPMConfig(timesteps=50), "model.out_channels": 2}
        small["sampling.sampler"] = "ancestral"
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return changed(preset("digits-diffmoe"), small | named)


def stored_latents(folder: Path, count: int) -> FolderData:
    """So many random latents of the size of digits, in a new folder."""
    folder.mkdir()
    values = np.random.default_rng(0).normal(size=(count, 1, 8, 8)).astype(np.float32)
    np.save(folder / "latents.npy", values)
    np.save(folder / "labels.npy", np.arange(count) % 10)
    return FolderData(path=folder, flip=False)


def poisoned(
    honest: Callable[..., Iterator[Batch]], *samples: int, value: float = math.nan
) -> Callable[..., Iterator[Batch]]:
    """A stream in which the micro-batches that hold some samples are multiplied by a value."""

    def stream(*others: Any, **more: Any) -> Iterator[Batch]:
        for batch in honest(*others, **more):
            hit = any(batch.first <= n < batch.first + len(batch.x) for n in samples)
            yield batch._replace(x=batch.x * value) if hit else batch

    return stream


def newest_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of the newest checkpoint of a run."""
    found = newest_checkpoint(RunFolder(path).checkpoints)
    assert found is not None
    files = sorted(found[0].glob("*.safetensors"))
    return {f"{f.stem}/{name}": t for f in files for name, t in load_file(f).items()}
