"""The paper's interval search: one threshold for all, of least loss within the budget (Eq. 16)."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Found", "search_gamma"]

_LOG = logging.getLogger(__name__)

_BUDGET = 1.0  # C_avg of a dense model
_NEAR = 0.005  # of the budget that the smallest threshold within it may leave
_ENDS = (1e-4, 0.9999)  # thresholds that are looked at
_TOP = 0.95  # thresholds above leave nearly nothing to do
_HALVINGS, _GRID, _REFINEMENTS = 12, 5, 2

Measure = Callable[[float], float]


@dataclass(frozen=True)
class Found:
    """The threshold, why it is that one, and everything that was measured on the way."""

    gamma: float
    reason: str
    steps: list[dict[str, Any]]  # gamma with its capacity, its loss, or both, in turn


def search_gamma(capacity_of: Measure, loss_of: Measure | None) -> Found:
    """The constant threshold of least loss among those with C_avg <= 1 (Eq. 16).

    Capacity falls as the threshold rises: up to 12 halvings of the logit find the smallest one
    within the budget, to 0.5 % of it. Five thresholds from there to 0.95 are compared by their
    loss, then, twice, five between the neighbours of the best. The best of all whose capacity is
    measured to be within the budget is taken. `capacity_of` is asked 24 times at most, `loss_of`
    11 times. Without `loss_of` the smallest one is taken.
    """
    search = _Search(capacity_of, loss_of)
    low, high = map(_logit, _ENDS)
    if search.capacity(high) > _BUDGET:
        return search.found(high, "no threshold has C_avg <= 1: the largest one")
    note = f"C_avg <= 1 from {_ENDS[0]:g} on"
    smallest = low
    if search.capacity(low) > _BUDGET:
        smallest = search.smallest(low, high)
        note = f"C_avg <= 1 from {_gamma(smallest):.4g} on"
    if loss_of is None:
        return search.found(smallest, f"{note}; the smallest, as the loss is not known")
    best = search.best(smallest, max(smallest, _logit(_TOP)))
    edge = ", at the budget" if best == smallest else ""
    tried = "1 threshold" if len(search.losses) == 1 else f"{len(search.losses)} thresholds"
    return search.found(best, f"{note}; least loss of {tried}{edge}")


@dataclass
class _Search:
    """Everything measured, by logit of the threshold."""

    capacity_of: Measure
    loss_of: Measure | None
    capacities: dict[float, float] = field(default_factory=dict)
    losses: dict[float, float] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)

    def capacity(self, place: float) -> float:
        if place not in self.capacities:
            self.capacities[place] = self._measured("capacity", self.capacity_of, place)
        return self.capacities[place]

    def loss(self, place: float) -> float:
        if place not in self.losses:
            assert self.loss_of is not None
            value = self._measured("loss", self.loss_of, place)
            self.losses[place] = value if math.isfinite(value) else math.inf
        return self.losses[place]

    def _measured(self, what: str, measure: Measure, place: float) -> float:
        gamma = _gamma(place)
        value = measure(gamma)
        self.steps.append({"gamma": gamma, what: value})
        _LOG.info("interval search: gamma %.4g has %s %.4g", gamma, what, value)
        return value

    def smallest(self, above: float, within: float) -> float:
        """The lower end of the interval within the budget, between a place above it and one in."""
        for _ in range(_HALVINGS):
            if self.capacity(within) >= _BUDGET * (1 - _NEAR):
                break
            middle = _rounded((above + within) / 2)
            if self.capacity(middle) > _BUDGET:
                above = middle
            else:
                within = middle
        return within

    def best(self, low: float, high: float) -> float:
        """The place of least loss on lines of five, each between the neighbours of the best."""
        first, last = low, high
        for _ in range(1 + _REFINEMENTS):
            line = _line(first, last)
            place = line.index(min(line, key=self.loss))
            first, last = line[max(0, place - 1)], line[min(len(line) - 1, place + 1)]
        ranked = sorted(self.losses, key=self.losses.__getitem__)
        return next(place for place in ranked if self.capacity(place) <= _BUDGET)

    def found(self, place: float, reason: str) -> Found:
        return Found(_gamma(place), reason, self.steps)


def _line(first: float, last: float) -> list[float]:
    """Five places from the first to the last; these two as they are."""
    inner = [_rounded(first + (last - first) * i / (_GRID - 1)) for i in range(1, _GRID - 1)]
    return list(dict.fromkeys([first, *inner, last]))


def _rounded(place: float) -> float:
    """Places that differ by rounding are one."""
    return round(place, 6)


def _logit(gamma: float) -> float:
    return _rounded(math.log(gamma / (1 - gamma)))


def _gamma(place: float) -> float:
    """A threshold that can be typed again."""
    return round(1 / (1 + math.exp(-place)), 6)
