"""Tiny runs on one or several processes, and what is left of them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint
import torch.distributed.fsdp  # before processes are forked: each would import it by itself
from torch import Tensor

from diffmoe.checkpoint import newest_checkpoint, read_part
from diffmoe.config import RunConfig
from diffmoe.training import material, train
from runs import run_config
from texts import text_run
from together import together

__all__ = ["Run", "losses", "shared_run", "tensors", "train_all", "trained"]


@dataclass
class Run:
    """A config, where it runs, and whether all of it is in float64."""

    config: RunConfig
    path: Path
    wide: bool = False


def shared_run(router: str = "batch_pool", **changes: Any) -> RunConfig:
    """A tiny run whose batch of 32 can be shared by 1, 2 and 4 processes; `captions` are scenes."""
    small = {"training__global_batch": 32, "loop__log_every": 1, "loop__checkpoint_every": 1000}
    small |= changes
    return text_run(**small) if router == "captions" else run_config(router, **small)


def train_all(runs: Sequence[Run]) -> None:
    """Train one after the other, with the processes that were started beside this one."""
    honest = material.stream
    for run in runs:
        torch.set_default_dtype(torch.float64 if run.wide else torch.float32)
        material.stream = _widened if run.wide else honest
        try:
            train(run.config, run.path, progress=False)
        finally:
            material.stream = honest
            torch.set_default_dtype(torch.float32)


def _widened(*arguments: Any, **named: Any) -> Iterator[Any]:
    from diffmoe.data import stream

    for batch in stream(*arguments, **named):
        yield batch._replace(x=batch.x.double())


def trained(size: int, runs: Sequence[Run], place: Path) -> None:
    """Train runs on `size` processes; fails if one of these does."""
    answers = together(size, train_all, runs, place=place)
    assert [answer.error + answer.text for answer in answers] == [""] * size


def losses(path: Path) -> list[float]:
    """The loss of each step."""
    return [json.loads(line)["loss"] for line in (path / "metrics.jsonl").read_text().splitlines()]


def tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a run's newest checkpoint, put together."""
    found = newest_checkpoint(path / "checkpoints")
    assert found is not None
    checkpoint, manifest = found
    return {
        f"{part}/{name}": value
        for part in manifest.tensors
        for name, value in read_part(checkpoint, part).items()
    }
