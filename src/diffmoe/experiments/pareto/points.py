"""The settings that a sweep compares, refused before anything is drawn where they cannot be."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from diffmoe.checkpoint import LoadedRun
from diffmoe.config import LEGAL_POLICIES, RunConfig, SamplingConfig
from diffmoe.errors import ConfigError
from diffmoe.sampling import Demand, calibrate, sampling_plan

__all__ = [
    "CAPACITIES",
    "GAMMAS",
    "Point",
    "asked_points",
    "at_threshold",
    "calibrated",
    "refuse_unready",
]

CAPACITIES = (0.25, 0.5, 0.7, 0.85, 1.0, 1.25, 1.5, 2.0)
GAMMAS = (0.9, 0.7, 0.5, 0.3, 0.1, 0.01)


@dataclass(frozen=True)
class Point:
    """One setting of the dial: all that its images depend on, but for labels and seeds."""

    name: str
    kind: str  # target, constant, ema or search
    setting: float | None
    settings: SamplingConfig
    thresholds: Tensor | None = None  # of policy `target`


def asked_points(
    config: RunConfig,
    settings: SamplingConfig,
    capacities: Sequence[float] | None,
    gammas: Sequence[float],
) -> list[Point]:
    """The tracked thresholds, then each capacity and each gamma once, `settings` otherwise.

    Without `capacities` those of `CAPACITIES` that the model can have. Raises ConfigError for a
    router or a selection without thresholds, and for a capacity or a gamma that there is not.
    """
    _refuse_fixed(config, settings)
    chosen = _possible(config, settings) if capacities is None else capacities
    points = [
        Point("tracked", "ema", None, _with_policy(settings, "ema")),
        *(_at_capacity(settings, capacity) for capacity in dict.fromkeys(map(float, chosen))),
        *(at_threshold(settings, gamma) for gamma in dict.fromkeys(map(float, gammas))),
    ]
    for point in points:
        replace(config, sampling=point.settings)  # checks them together
    return points


def _refuse_fixed(config: RunConfig, settings: SamplingConfig) -> None:
    """Raise ConfigError where nothing says how much compute to spend."""
    router = config.model.router
    if not router.selections:
        raise ConfigError(
            f"router {router.kind} selects by no thresholds: it has one capacity and no dial",
            remedy="sweep a run whose router has thresholds, such as batch_pool",
        )
    if None in LEGAL_POLICIES[settings.selection]:
        dials = [name for name in router.selections if None not in LEGAL_POLICIES[name]]
        raise ConfigError(
            f"sampling.selection {settings.selection} has a fixed capacity and no dial",
            remedy=f"use one of {', '.join(dials)}",
        )


def _possible(config: RunConfig, settings: SamplingConfig) -> list[float]:
    most = min(config.model.router.num_experts, settings.max_capacity or float("inf"))
    return [capacity for capacity in CAPACITIES if capacity <= most]


def _with_policy(
    settings: SamplingConfig,
    policy: str,
    *,
    gamma: float | None = None,
    capacity: float | None = None,
) -> SamplingConfig:
    """The settings under another policy, whatever theirs is; only a target has a level."""
    return replace(
        settings,
        policy=policy,  # type: ignore[arg-type]
        gamma=gamma,
        capacity=capacity,
        capacity_level=settings.capacity_level if policy == "target" else "global",
    )


def _at_capacity(settings: SamplingConfig, capacity: float) -> Point:
    way = _with_policy(settings, "target", capacity=capacity)
    return Point(f"capacity {capacity:g}", "target", capacity, way)


def at_threshold(settings: SamplingConfig, gamma: float, kind: str = "constant") -> Point:
    """One threshold for all, as asked for or as found by a search."""
    way = _with_policy(settings, "constant", gamma=gamma)
    return Point(f"gamma {gamma:g}", kind, gamma, way)


def refuse_unready(run: LoadedRun, points: Sequence[Point]) -> None:
    """Raise ConfigError if the model has no thresholds, or has never measured them."""
    Demand(run.model, points[0].settings.selection)
    for point in points:
        if point.kind == "ema":
            sampling_plan(run.model, point.settings, 1)


def calibrated(run: LoadedRun, point: Point, progress: bool) -> Point:
    """The point with the thresholds that realise its capacity, if it asks for one."""
    if point.kind != "target":
        return point
    found = calibrate(run, point.settings, progress=progress)
    return replace(point, thresholds=found.thresholds)
