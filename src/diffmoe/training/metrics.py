"""What a run tells of itself: sums on the device, lines of JSON and TensorBoard now and then."""

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffmoe.checkpoint import append_text, read_metrics, write_text
from diffmoe.device import peak_memory
from diffmoe.model import DiT

__all__ = ["MetricsFile", "Window"]

Sums = dict[str, Tensor]


class Window:
    """Sums over the steps since the last line of metrics; read from the device once a line."""

    def __init__(self, layers: int) -> None:
        self._layers = layers
        self._clear()

    def _clear(self) -> None:
        self._steps = 0
        self._terms: Sums = {}
        self._statistics: list[Sums] = [{} for _ in range(self._layers)]
        self._began = time.perf_counter()

    def add(self, terms: Sums, statistics: list[Sums]) -> None:
        """Take in one step."""
        self._steps += 1
        pairs = [(self._terms, terms), *zip(self._statistics, statistics, strict=True)]
        for sums, new in pairs:
            for name, value in new.items():
                sums[name] = sums[name] + value if name in sums else value

    def finite(self) -> bool:
        """Whether every loss and gradient of the window is a number (waits for the device)."""
        values = [term.double() for term in self._terms.values()]
        return not values or bool(torch.stack(values).isfinite().all())

    def read(self, model: DiT, images: int) -> dict[str, float]:
        """The window's means, layer by layer where they are, and its speed; starts a new window."""
        means = {name: value / self._steps for name, value in self._terms.items()}
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
        self._clear()
        return {**dict(zip(means, values, strict=True)), **speed}


class MetricsFile:
    """`metrics.jsonl`, one line a call, and TensorBoard where it is installed.

    Lines of steps after `step` are dropped first: a resumed run writes them again. A line is the
    mean over the steps since the line before it or, where it is the first, since the run went on.
    """

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        kept = [line for line in read_metrics(path) if line["step"] <= step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._board = _tensorboard(path.parent / "tensorboard", step)

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
