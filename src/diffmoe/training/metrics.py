"""What a run tells of itself: sums on the device, lines of JSON and TensorBoard now and then."""

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffmoe.checkpoint import append_text, forget_later
from diffmoe.device import peak_memory
from diffmoe.training.state import TrainingState
from diffmoe.training.step import Step

__all__ = ["MetricsFile", "Window"]

Sums = dict[str, Tensor]


class Window:
    """Sums over the sound steps since the last line; read from the device once a line.

    They lie in the state of the run, so that a run that was stopped tells the same.
    """

    def __init__(self, state: TrainingState) -> None:
        self._state = state
        self._layers = range(len(state.model.moe_layers))
        self._restart()

    def _restart(self) -> None:
        self._steps, self._began = 0, time.perf_counter()

    def clear(self) -> None:
        """Begin anew."""
        self._state.window.clear()
        self._restart()

    def add(self, step: Step) -> None:
        """Take in one step; of one that was skipped only that it was, and its poisoned rows."""
        self._steps += 1
        self._sum("sound", step.sound.double())
        for name, value in step.terms.items():
            self._sum(f"terms/{name}", torch.where(step.sound, value, torch.zeros_like(value)))
        for layer, statistics in zip(self._layers, step.statistics, strict=True):
            for name, value in statistics.items():
                skipped = torch.zeros_like(value) if name != "poisoned" else value
                self._sum(f"layer{layer}/{name}", torch.where(step.sound, value, skipped))

    def _sum(self, name: str, value: Tensor) -> None:
        sums = self._state.window
        sums[name] = sums[name] + value if name in sums else value

    def _named(self, prefix: str) -> Sums:
        sums = self._state.window
        return {n.removeprefix(prefix): v for n, v in sums.items() if n.startswith(prefix)}

    def shares(self) -> list[list[float]]:
        """The share of all tokens that each expert of each layer took; of no token NaN."""
        layers = [self._named(f"layer{layer}/") for layer in self._layers]
        return [
            (sums.get("above", sums["pairs"]) / sums.get("judged", sums["rows"])).tolist()
            for sums in layers
            if "pairs" in sums
        ]

    def read(self, images: int) -> dict[str, float]:
        """The window's means, layer by layer where they are, and its speed."""
        model, sound = self._state.model, self._state.window["sound"]
        means = {name: value / sound for name, value in self._named("terms/").items()}
        summaries = [
            layer.router.summary(self._named(f"layer{i}/"))
            for i, layer in enumerate(model.moe_layers)
        ]
        for name in summaries[0] if summaries else ():
            means[name] = torch.stack([summary[name] for summary in summaries]).mean()
            means |= {f"{name}/layer{i}": s[name] for i, s in enumerate(summaries)}
        values = torch.stack([mean.double() for mean in means.values()]).tolist()
        seconds = time.perf_counter() - self._began
        speed = {
            "images_per_second": self._steps * images / seconds,
            "peak_memory_gib": peak_memory(next(model.parameters()).device),
        }
        return {**dict(zip(means, values, strict=True)), **speed}


class MetricsFile:
    """`metrics.jsonl`, one line a call, and TensorBoard where it is installed.

    A line is the mean over the steps since the last one of a step that is a multiple of `every`:
    that of a stop in between is for the time being. What a resumed run will write again is dropped
    first.
    """

    def __init__(self, path: Path, step: int, every: int) -> None:
        self._path, self._every = path, every
        self._board: Any = None
        append_text(path, "")
        self.go_back(step)

    def go_back(self, step: int) -> None:
        """Forget what was written of steps after `step`, and of itself if that was in between."""
        last = step if step % self._every == 0 else step - 1
        self.close()
        forget_later(self._path, last)
        self._board = _tensorboard(self._path.parent / "tensorboard", last)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append the values of a step; NaN and infinity are written as null."""
        known = {name: value for name, value in values.items() if math.isfinite(value)}
        line = {"step": step, **{name: known.get(name) for name in values}}
        append_text(self._path, json.dumps(line) + "\n")
        if self._board is not None:
            for name, value in known.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Write out what TensorBoard still holds."""
        if self._board is not None:
            self._board.close()


def _tensorboard(path: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(path), purge_step=step + 1)
