"""What is wrong with a run: steps that were skipped, losses that jumped, experts that starve."""

import json
import logging
import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from diffmoe.checkpoint import RunFolder, append_text, forget_later
from diffmoe.config import RunConfig
from diffmoe.data import Batch
from diffmoe.training.state import TrainingState
from diffmoe.training.step import Step

__all__ = ["ExpertWatch", "StepWatch"]

_LOG = logging.getLogger(__name__)
_LAG = 2  # steps that a device may be ahead of the host
_DECAY = 0.99  # of the usual loss: that of about the last hundred steps
_ENOUGH = 50  # losses before one of them can be called unusual


class _Verdict(NamedTuple):
    """Soundness, loss, norm, and soundness of each image of a step, on their way to the host."""

    step: int
    samples: tuple[int, int]  # the first and the last
    here: list[tuple[int, int]]  # sample and place in the data of each image of this process
    values: Tensor
    arrived: torch.cuda.Event | None


class StepWatch:
    """Reads what each step met and notes bad steps and spikes in files of the run folder.

    A device is never waited for: its verdicts are read up to `_LAG` steps later. What follows from
    them does not depend on when: steps after one bad step too many count for nothing.
    """

    def __init__(self, config: RunConfig, folder: RunFolder, state: TrainingState) -> None:
        self._config, self._folder, self._state = config, folder, state
        self._group = state.network.group
        self._waiting: deque[_Verdict] = deque()
        self.past: int | None = None  # the sample after one bad step too many
        for path in (folder.bad_steps, folder.spikes) if self._group.first else ():
            forget_later(path, state.counters.position - 1, "last_sample")

    @property
    def ahead(self) -> int:
        """Steps that were done after the one that was read last."""
        return len(self._waiting)

    def forget(self) -> None:
        """Leave what is on its way: the run goes back."""
        self._waiting.clear()
        self.past = None

    def add(self, batches: Sequence[Batch], step: Step) -> None:
        """Take in the step that was just done."""
        scalars = (step.sound, step.terms["loss"], step.terms["gradient_norm"])
        values = torch.cat([torch.stack([x.double() for x in scalars]), step.image_sound.double()])
        end = self._state.counters.position
        samples = end - self._config.training.global_batch, end - 1
        here = [
            (batch.first + row, place) for batch in batches for row, place in enumerate(batch.index)
        ]
        verdict = _sent(self._state.step, samples, here, values)
        self._waiting.append(verdict)
        lag = _LAG if verdict.arrived is not None else 0
        while len(self._waiting) > lag and self.past is None:
            self._read(self._waiting.popleft())

    def settle(self) -> None:
        """Read what is still on its way, and counts."""
        while self._waiting and self.past is None:
            self._read(self._waiting.popleft())

    def _read(self, verdict: _Verdict) -> None:
        if verdict.arrived is not None:
            verdict.arrived.synchronize()
        sound, loss, norm, *images = verdict.values.tolist()
        counters = self._state.counters
        if sound:
            counters.bad_in_a_row = 0
            self._weigh(verdict, loss)
            return
        counters.bad_steps += 1
        counters.bad_in_a_row += 1
        if _is_round(counters.bad_steps):
            _LOG.warning(
                "step %d was skipped: its loss or gradient is not finite (%d so far, see %s)",
                *(verdict.step, counters.bad_steps, self._folder.bad_steps),
            )
        broken = [at for at, good in zip(verdict.here, images, strict=False) if not good]
        terms = {"loss": loss, "gradient_norm": norm}
        self._note(self._folder.bad_steps, verdict, terms, {"broken": self._of_all(broken)})
        if counters.bad_in_a_row >= self._config.loop.max_bad_in_a_row:
            self.past = verdict.samples[1] + 1

    def _weigh(self, verdict: _Verdict, loss: float) -> None:
        """Note a loss far above the usual, then let it count as part of the usual."""
        counters = self._state.counters
        mean, deviation = counters.loss_mean, math.sqrt(counters.loss_variance)
        highest = mean + self._config.loop.spike_sigma * deviation
        if counters.losses >= _ENOUGH and loss > highest:
            counters.spikes += 1
            if _is_round(counters.spikes):
                _LOG.warning(
                    "the loss of step %d is %.3g, usual are %.3g +- %.2g (%d such so far, see %s)",
                    *(verdict.step, loss, mean, deviation, counters.spikes, self._folder.spikes),
                )
            usual = {"loss": loss, "usual": mean, "deviation": deviation}
            self._note(self._folder.spikes, verdict, usual, {})
            loss = highest  # as it is, it would hide the next one
        counters.losses += 1
        share = max(1 - _DECAY, 1 / counters.losses)
        counters.loss_mean = mean + share * (loss - mean)
        counters.loss_variance = (1 - share) * (counters.loss_variance + share * (loss - mean) ** 2)

    def _note(
        self, path: Path, verdict: _Verdict, values: dict[str, float], more: dict[str, list[int]]
    ) -> None:
        """Write a line: `places` of all images in the data, `broken` of those that did it."""
        places = self._of_all(verdict.here)
        if not self._group.first:
            return
        known = {key: value if math.isfinite(value) else None for key, value in values.items()}
        first, last = verdict.samples
        where = {"step": verdict.step, "first_sample": first, "last_sample": last}
        line = {**where, **known, **more, "places": places}
        append_text(path, json.dumps(line) + "\n")

    def _of_all(self, here: list[tuple[int, int]]) -> list[int]:
        """Places of all processes, in the order of samples."""
        return [place for _, place in sorted(at for own in self._group.gather(here) for at in own)]


def _sent(
    step: int, samples: tuple[int, int], here: list[tuple[int, int]], values: Tensor
) -> _Verdict:
    """A verdict whose values are on their way to the host."""
    if values.device.type != "cuda":
        return _Verdict(step, samples, here, values, None)
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return _Verdict(step, samples, here, host, arrived)


def _is_round(count: int) -> bool:
    """Whether a count is a power of two: what happens often is told ever more seldom."""
    return count & (count - 1) == 0


class ExpertWatch:
    """Tells of experts that take no token, or every one; of each once, until it recovers."""

    def __init__(self) -> None:
        self._known: set[tuple[int, int, str]] = set()

    def look(self, shares: Sequence[Sequence[float]], step: int) -> None:
        """Warn of what is new in the share of all tokens that each expert of each layer took."""
        found = {
            (layer, expert, _fault(share, experts))
            for layer, experts in enumerate(shares)
            for expert, share in enumerate(experts)
        }
        found = {fault for fault in found if fault[2]}
        for layer, expert, fault in sorted(found - self._known):
            _LOG.warning("MoE layer %d, expert %d %s up to step %d", layer, expert, fault, step)
        self._known = found


def _fault(share: float, experts: Sequence[float]) -> str:
    """What is wrong with an expert's share; empty if nothing is, or it is not known."""
    if share <= 0.01 * sum(experts) / len(experts):
        return "took next to no token"
    return "took nearly every token" if share >= 0.99 and len(experts) > 1 else ""
