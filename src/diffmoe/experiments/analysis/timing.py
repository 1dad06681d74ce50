"""Seconds an image takes, at several batch sizes measured side by side."""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from diffmoe.checkpoint import LoadedRun
from diffmoe.config import SamplingConfig
from diffmoe.experiments.analysis.pools import has_room
from diffmoe.sampling import Conditions, balanced_labels, generate

__all__ = ["seconds_per_image"]

_WARM_UP = 2  # solver steps: allocations and kernels of a first call are the same in any of them


def seconds_per_image(
    run: LoadedRun,
    settings: SamplingConfig,
    sizes: Sequence[int],
    rounds: int,
    *,
    budget: float = math.inf,
    conditions: Conditions | None = None,
    thresholds: Tensor | None = None,
) -> dict[int, float]:
    """The median over rounds of seconds per image in batches of each size, decoding left out.

    Every round draws one batch of each size, in turn from either end. No round begins after
    `budget` seconds, but one is always measured. A size whose pools leave an expert no row is
    left out. `conditions` are the prompts of a model that reads captions, `thresholds` those of
    policy `target`.
    """
    began = time.perf_counter()
    every = {size: _of_batches(settings, size) for size in sizes}
    ways = {size: way for size, way in every.items() if has_room(run.config, way)}
    told = {"conditions": conditions, "thresholds": thresholds}
    for way in ways.values():
        _seconds(run, replace(way, steps=min(_WARM_UP, settings.steps)), told)
    seconds: dict[int, list[float]] = {size: [] for size in ways}
    for number in range(max(1, rounds)):
        if number and time.perf_counter() - began > budget:
            break
        for size in list(ways)[:: 1 if number % 2 == 0 else -1]:
            seconds[size].append(_seconds(run, ways[size], told) / size)
    return {size: statistics.median(values) for size, values in seconds.items()}


def _of_batches(settings: SamplingConfig, size: int) -> SamplingConfig:
    """The settings with batches of `size`, each one pool where pools of theirs do not fill it."""
    pool = settings.pool_images
    fits = pool is not None and size % pool == 0
    return replace(settings, batch=size, pool_images=pool if fits else None)


def _seconds(run: LoadedRun, settings: SamplingConfig, told: dict[str, Any]) -> float:
    """Seconds of one batch; it ends in the memory of the host, so no device is still at work."""
    conditions = told["conditions"]
    classes = run.trained_classes if conditions is None else conditions.count
    labels = balanced_labels(settings.batch, classes)
    seeds = range(settings.batch)
    began = time.perf_counter()
    generate(run.model, run.config, labels, seeds, settings=settings, **told)
    return time.perf_counter() - began
