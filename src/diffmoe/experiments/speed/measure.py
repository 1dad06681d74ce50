"""Variants timed side by side, and the ceilings of the machine they ran on."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

__all__ = ["Ceilings", "Ratio", "Times", "clock_of", "interleave", "measure_ceilings", "ratio"]

Variant = Callable[[], object]


@dataclass(frozen=True)
class Times:
    """Seconds of one variant in each round, by the clock of its device (`clock_of`)."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle round."""
        return statistics.median(self.rounds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, seconds."""
        return _half_range(self.rounds)


@dataclass(frozen=True)
class Ratio:
    """A quotient of two variants: the middle of the quotients of each round, and their spread."""

    value: float
    spread: float  # half the distance between the quartiles


def ratio(over: Times, under: Times) -> Ratio:
    """`over / under`, round by round: what slows a round down slows both."""
    quotients = [a / b for a, b in zip(over.rounds, under.rounds, strict=True)]
    return Ratio(statistics.median(quotients), _half_range(quotients))


def _half_range(values: tuple[float, ...] | list[float]) -> float:
    if len(values) < 2:
        return 0.0
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return (upper - lower) / 2


def interleave(
    variants: Mapping[str, Variant], rounds: int, device: torch.device
) -> dict[str, Times]:
    """Times of each variant, one after the other in every round, in turn from either end."""
    for run in variants.values():
        run()  # allocations, kernels and plans of the first call are not what is asked
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        order = list(variants) if number % 2 == 0 else list(variants)[::-1]
        for name in order:
            seconds[name].append(_seconds(variants[name], device))
    return {name: Times(tuple(found)) for name, found in seconds.items()}


def clock_of(device: torch.device) -> str:
    """CPU time for one thread on a CPU, as it leaves out what other programs take; else the wall's.

    Added up over several threads it would hide what only one of them works on.
    """
    return "CPU time" if device.type == "cpu" and torch.get_num_threads() == 1 else "wall"


def _seconds(run: Variant, device: torch.device) -> float:
    clock = time.process_time if clock_of(device) == "CPU time" else time.perf_counter
    _wait(device)
    began = clock()
    run()
    _wait(device)
    return clock() - began


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@dataclass(frozen=True)
class Ceilings:
    """What the machine can do at best: no variant takes less than its share of these."""

    operations: float  # floating-point operations a second, in a large matrix product
    bandwidth: float  # bytes read or written a second, in a large copy

    def floor(self, operations: float, moved: float) -> float:
        """Seconds that so many operations and so many bytes take at least."""
        return max(operations / self.operations, moved / self.bandwidth)


def measure_ceilings(device: torch.device, dtype: torch.dtype, rounds: int = 5) -> Ceilings:
    """The best of a few rounds of a large product and a large copy."""
    side = 1536 if device.type == "cpu" else 8192
    left, right = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    result = torch.empty_like(left)
    source = torch.ones(32 * 2**20 if device.type == "cpu" else 2**29, device=device)
    target = torch.empty_like(source)
    found = interleave(
        {
            "product": lambda: torch.mm(left, right, out=result),
            "copy": lambda: target.copy_(source),
        },
        rounds,
        device,
    )
    return Ceilings(
        operations=2 * side**3 / min(found["product"].rounds),
        bandwidth=2 * source.numel() * source.element_size() / min(found["copy"].rounds),
    )
