"""What an answer of a benchmark is, and what all of its questions share."""

from dataclasses import dataclass, field
from typing import Any

import torch

from diffmoe.config import RunConfig
from diffmoe.experiments.speed.cost import operations
from diffmoe.experiments.speed.measure import Ceilings, interleave, ratio
from diffmoe.experiments.speed.workload import Machine, Run

__all__ = ["Bench", "Check", "Row", "Variant"]


@dataclass(frozen=True)
class Check:
    """How far what was timed is from the loops, and how far it may be."""

    difference: float  # the largest of a tensor's norm, relative
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether it computes the same function; NaN is no function."""
        return self.difference <= self.tolerance


@dataclass(frozen=True)
class Row:
    """One answer: a figure, the bar it is held against, and what stands behind it."""

    name: str
    what: str
    value: float
    spread: float = 0.0  # half the distance between the quartiles of the rounds
    bar: float | None = None  # what the figure should not exceed; None = for information
    at_least: bool = False  # the bar is what it should reach instead
    seconds: dict[str, float] = field(default_factory=dict)  # median of each variant
    over_floor: dict[str, float] = field(default_factory=dict)  # median / least possible time
    rounds: dict[str, tuple[float, ...]] = field(default_factory=dict)  # every single one
    check: Check | None = None  # None where the variants are not one function
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the figure is on the right side of its bar, and what was timed was right."""
        if self.check is not None and not self.check.passed:
            return False
        if self.bar is None:
            return None
        return self.value >= self.bar if self.at_least else self.value <= self.bar


@dataclass(frozen=True)
class Variant:
    """Something to time, the bytes it must move, and where its operations are counted."""

    run: Run
    moved: int
    plain: Run | None = None  # the same uncompiled; None = `run` is
    dtype: torch.dtype | None = None  # of its products; None = the machine's

    @property
    def operations(self) -> int:
        """Of its matrix products."""
        return operations(self.plain or self.run)


@dataclass(frozen=True)
class Bench:
    """What all rows share."""

    model: RunConfig
    dense: RunConfig
    images: tuple[int, int]  # of the large and of the small batch
    experts: tuple[int, int, int]  # few, many and very many of them, at equal activated work
    machine: Machine
    ceilings: dict[torch.dtype, Ceilings]
    rounds: int

    @property
    def tolerance(self) -> float:
        """How far products in the machine's dtype may lead from the loops."""
        return 5e-2 if self.machine.dtype == torch.bfloat16 else 1e-4

    def row(self, name: str, what: str, variants: dict[str, Variant], **more: Any) -> Row:
        """The quotient of the first two variants, with times and floors of all."""
        runs = {label: variant.run for label, variant in variants.items()}
        found = interleave(runs, self.rounds, self.machine.device)
        first, second, *_ = found.values()
        quotient = ratio(first, second)
        seconds = {label: times.median for label, times in found.items()}
        floors = {
            label: self.ceilings[variant.dtype or self.machine.dtype].floor(
                variant.operations, variant.moved
            )
            for label, variant in variants.items()
        }
        return Row(
            name,
            what,
            quotient.value,
            quotient.spread,
            seconds=seconds,
            over_floor={label: seconds[label] / floors[label] for label in variants},
            rounds={label: times.rounds for label, times in found.items()},
            **more,
        )
