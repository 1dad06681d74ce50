"""The settings that a sweep compares, refused before anything is drawn where they cannot be."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from tqdm import tqdm

from diffmoe.checkpoint import LoadedRun
from diffmoe.config import LEGAL_POLICIES, Level, RunConfig, SamplingConfig
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
    level: Level | None = None,
) -> list[Point]:
    """The tracked thresholds, then each capacity and each gamma once, `settings` otherwise.

    Without `capacities` those of `CAPACITIES` that the model can have; without `level` they are
    averages of what the settings say. Raises ConfigError for a router or a selection without
    thresholds, for a capacity or a gamma that there is not, and for a setting without effect.
    """
    _refuse_unread(config.sampling, settings)
    _refuse_fixed(config, settings)
    chosen = _possible(config, settings) if capacities is None else capacities
    if level is not None and not len(chosen):
        raise ConfigError(
            f"level {level} would change nothing: no capacity is asked for",
            remedy="leave it out, or ask for capacities",
        )
    level = level or settings.capacity_level
    points = [
        Point("tracked", "ema", None, settings.at(policy="ema")),
        *(_at_capacity(settings, value, level) for value in dict.fromkeys(map(float, chosen))),
        *(at_threshold(settings, gamma) for gamma in dict.fromkeys(map(float, gammas))),
    ]
    for point in points:
        replace(config, sampling=point.settings)  # checks them together
    return points


def _refuse_unread(own: SamplingConfig, settings: SamplingConfig) -> None:
    """Raise ConfigError for a place on the dial that neither the run's config holds nor a sweep.

    The default policy says nothing: it is what settings have that leave the dial alone.
    """
    for name, many, remedy in (
        ("capacity", "capacities", "use --capacities {}"),
        ("gamma", "gammas", "use --gammas {}"),
        ("policy", "policies", "leave it out"),
    ):
        value = getattr(settings, name)
        if value not in (None, "ema", getattr(own, name)):
            raise ConfigError(
                f"sampling.{name} {value} would change nothing: a sweep sets {many} itself",
                remedy=remedy.format(value),
            )


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


def _at_capacity(settings: SamplingConfig, capacity: float, level: Level) -> Point:
    way = settings.at(capacity=capacity, capacity_level=level)
    return Point(f"capacity {capacity:g}", "target", capacity, way)


def at_threshold(settings: SamplingConfig, gamma: float, kind: str = "constant") -> Point:
    """One threshold for all, as asked for or as found by a search."""
    return Point(f"gamma {gamma:g}", kind, gamma, settings.at(gamma=gamma))


def refuse_unready(run: LoadedRun, points: Sequence[Point]) -> None:
    """Raise ConfigError if the model has no thresholds, or has never measured them."""
    Demand(run.model, points[0].settings.selection)
    for point in points:
        if point.kind == "ema":
            sampling_plan(run.model, point.settings, 1)


def calibrated(run: LoadedRun, points: Sequence[Point], progress: bool) -> list[Point]:
    """The points, with the thresholds that realise the capacity of those that ask for one."""
    found, targets = [], sum(point.kind == "target" for point in points)
    with tqdm(total=targets, unit="capacity", disable=not progress) as bar:
        for point in points:
            if point.kind != "target":
                found.append(point)
                continue
            bar.set_description(f"calibrate {point.name}")
            calibration = calibrate(run, point.settings, progress=progress)
            found.append(replace(point, thresholds=calibration.thresholds))
            bar.update()
    return found
