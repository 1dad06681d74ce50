"""The same images under several settings, a batch of each in turn, counted and timed."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from tqdm import tqdm

from diffmoe.checkpoint import LoadedRun
from diffmoe.codec import Codec
from diffmoe.experiments.pareto.points import Point
from diffmoe.experiments.speed.measure import Times, clock_of
from diffmoe.sampling import Conditions, Moment, decode, generate

__all__ = ["Drawn", "Taken", "draw_in_rounds"]

_WARM_UP = 2  # solver steps: allocations and kernels of a first call are the same in any of them


@dataclass
class Taken:
    """A callback of `generate` that counts what experts take, C_avg of it (Eq. 15).

    It adds up on the device, so that what is timed does not wait for it.
    """

    pairs: Int[Tensor, "L"] | None = None
    rows: int = 0  # of each layer

    def __call__(self, moment: Moment) -> None:
        """Take in one evaluation, all branches."""
        routing = moment.evaluation.output.routing
        now = torch.stack([record.count.sum() for record in routing])
        self.pairs = now if self.pairs is None else self.pairs + now
        self.rows += routing[0].rows

    @property
    def capacity(self) -> float:
        """Pairs per row, mean over layers."""
        assert self.pairs is not None
        return float(self.pairs.double().mean()) / self.rows


@dataclass
class Drawn:
    """What one setting drew."""

    taken: Taken = field(default_factory=Taken)
    parts: list[UInt8[Tensor, "B C H W"]] = field(default_factory=list)
    seconds: dict[int, list[float]] = field(default_factory=dict)  # per image, by batch size

    @property
    def images(self) -> UInt8[Tensor, "N C H W"] | None:
        """All images in the order of their seeds; None where they are not kept."""
        return torch.cat(self.parts) if self.parts else None

    @property
    def times(self) -> Times:
        """Seconds per image of each batch of the largest size there was."""
        return Times(tuple(self.seconds[max(self.seconds)]))

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles of the times; NaN of a single batch."""
        return self.times.spread if len(self.times.rounds) > 1 else math.nan


def draw_in_rounds(
    run: LoadedRun,
    points: Sequence[Point],
    labels: Sequence[int],
    seeds: Sequence[int],
    *,
    conditions: Conditions | None = None,
    codec: Codec | None,
    progress: bool,
) -> list[Drawn]:
    """What each point drew of the same labels and seeds; images are kept if there is a `codec`.

    Every round draws one batch of each point, so what slows the machine down slows all of them;
    the order changes from round to round. A few steps of each go before and count for nothing.
    """
    found = [Drawn() for _ in points]
    size = points[0].settings.batch
    parts = [slice(first, first + size) for first in range(0, len(labels), size)]
    with tqdm(
        total=len(points) * (len(parts) + 1), desc="sweep", unit="batch", disable=not progress
    ) as bar:
        for point in points:
            _warm_up(run, point, labels[parts[0]], seeds[parts[0]], conditions)
            bar.update()
        for number, part in enumerate(parts):
            for index in _order(len(points), number, len(parts)):
                batch = (labels[part], seeds[part])
                _draw(run, points[index], *batch, conditions, found[index], codec)
                bar.update()
    return found


def _order(points: int, number: int, rounds: int) -> Iterator[int]:
    """Every point once, each round beginning elsewhere, every other one backwards."""
    first, way = number * points // rounds, 1 if number % 2 == 0 else -1
    return ((first + way * place) % points for place in range(points))


def _warm_up(
    run: LoadedRun,
    point: Point,
    labels: Sequence[int],
    seeds: Sequence[int],
    conditions: Conditions | None,
) -> None:
    short = replace(point.settings, steps=min(_WARM_UP, point.settings.steps))
    generate(
        run.model,
        run.config,
        labels,
        seeds,
        settings=short,
        conditions=conditions,
        thresholds=point.thresholds,
    )


def _draw(
    run: LoadedRun,
    point: Point,
    labels: Sequence[int],
    seeds: Sequence[int],
    conditions: Conditions | None,
    drawn: Drawn,
    codec: Codec | None,
) -> None:
    """One batch; it ends in the memory of the host, so no device is still at work."""
    clock = _clock(run)
    began = clock()
    latents = generate(
        run.model,
        run.config,
        labels,
        seeds,
        settings=point.settings,
        conditions=conditions,
        thresholds=point.thresholds,
        callback=drawn.taken,
    )
    drawn.seconds.setdefault(len(labels), []).append((clock() - began) / len(labels))
    if codec is not None:
        drawn.parts += decode(codec, latents, run.model.positions.device)


def _clock(run: LoadedRun) -> Callable[[], float]:
    """The clock that `clock_of` names."""
    of_the_process = clock_of(run.model.positions.device) == "CPU time"
    return time.process_time if of_the_process else time.perf_counter
