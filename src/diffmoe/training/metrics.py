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
from diffmoe.model import DiT
from diffmoe.training.step import Step

__all__ = ["MetricsFile", "Window"]

Sums = dict[str, Tensor]


class Window:
    """Sums over the sound steps since the last line; read from the device once a line."""

    def __init__(self, layers: int) -> None:
        self._layers = layers
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self._steps = 0
        self._sound: Tensor | float = 0.0
        self._terms: Sums = {}
        self._statistics: list[Sums] = [{} for _ in range(self._layers)]
        self._began = time.perf_counter()

    def add(self, step: Step) -> None:
        """Take in one step; of one that was skipped only that it was, and its poisoned rows."""
        self._steps += 1
        self._sound = self._sound + step.sound.double()
        pairs = [(self._terms, step.terms), *zip(self._statistics, step.statistics, strict=True)]
        for sums, new in pairs:
            for name, value in new.items():
                skipped = torch.zeros_like(value) if name != "poisoned" else value
                known = torch.where(step.sound, value, skipped)
                sums[name] = sums[name] + known if name in sums else known

    def shares(self) -> list[list[float]]:
        """The share of all tokens that each expert of each layer took; of no token NaN."""
        return [
            (sums.get("above", sums["pairs"]) / sums.get("judged", sums["rows"])).tolist()
            for sums in self._statistics
            if "pairs" in sums
        ]

    def read(self, model: DiT, images: int) -> dict[str, float]:
        """The window's means, layer by layer where they are, and its speed; starts a new window."""
        means = {name: value / self._sound for name, value in self._terms.items()}
        summaries = [
            layer.router.summary(statistics)
            for layer, statistics in zip(model.moe_layers, self._statistics, strict=True)
        ]
        for name in summaries[0] if summaries else ():
            means[name] = torch.stack([summary[name] for summary in summaries]).mean()
            means |= {f"{name}/layer{i}": s[name] for i, s in enumerate(summaries)}
        values = torch.stack([mean.double() for mean in means.values()]).tolist()
        seconds = time.perf_counter() - self._began
        device = next(model.parameters()).device
        speed = {
            "images_per_second": self._steps * images / seconds,
            "peak_memory_gib": peak_memory(device),
        }
        self.clear()
        return {**dict(zip(means, values, strict=True)), **speed}


class MetricsFile:
    """`metrics.jsonl`, one line a call, and TensorBoard where it is installed.

    Lines of steps after `step` are dropped first: a resumed run writes them again. A line is the
    mean over the steps since the line before it or, where it is the first, since the run went on.
    """

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        self._board: Any = None
        append_text(path, "")
        self.go_back(step)

    def go_back(self, step: int) -> None:
        """Forget what was written of steps after `step`."""
        self.close()
        forget_later(self._path, step)
        self._board = _tensorboard(self._path.parent / "tensorboard", step)

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
