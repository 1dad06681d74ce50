"""Sweep the compute dial of a run: draw under every setting, search, score and write it down."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from diffmoe.analysis import SweepPoint
from diffmoe.checkpoint import LoadedRun, RunFolder, load
from diffmoe.codec import Codec, build_codec
from diffmoe.config import Level, PixelCodec, RunConfig, SamplingConfig
from diffmoe.device import machine_of, resolve_device
from diffmoe.errors import ConfigError
from diffmoe.experiments.draw import config_of
from diffmoe.experiments.loss import DenoisingLoss, denoising_loss
from diffmoe.experiments.pareto.interval import Found, search_gamma
from diffmoe.experiments.pareto.page import RECORD, Qualities, point_lines, write_sweep
from diffmoe.experiments.pareto.points import (
    GAMMAS,
    Point,
    asked_points,
    at_threshold,
    calibrated,
    refuse_unready,
)
from diffmoe.experiments.pareto.rounds import Drawn, Taken, draw_in_rounds
from diffmoe.experiments.place import refuse_results
from diffmoe.experiments.report import refuse_report
from diffmoe.experiments.requests import trained_classes
from diffmoe.experiments.scoring import Reference, score_samples
from diffmoe.experiments.speed.measure import clock_of
from diffmoe.randomness import permutation
from diffmoe.sampling import (
    Conditions,
    balanced_labels,
    check_request,
    generate,
    stamp,
    usual_conditions,
)

__all__ = ["Sweep", "sweep"]

_LOG = logging.getLogger(__name__)

_MOST_BYTES = 2**31  # of pictures, which are held until they are scored
_SEARCHED = 128  # images that tell the capacity of a threshold
_FIRST_SEED = 3 << 61  # of these, far from the seeds of pictures and of calibrations
_TIMED = "batches of all settings in turn, their capacity counted on the device meanwhile"
_CLOCKS = {"wall": "the clock on the wall", "CPU time": "the CPU time of one thread"}


@dataclass(frozen=True)
class Sweep:
    """Where the page is and what it says."""

    page: Path
    points: list[SweepPoint]
    found: float | None  # the threshold that the interval search chose; None without a search

    def lines(self) -> list[str]:
        """The points as a table, and where the page is."""
        return [*point_lines(self.points), f"sweep: {self.page}"]


def sweep(
    path: Path | str,
    *,
    capacities: Sequence[float] | None = None,
    gammas: Sequence[float] = GAMMAS,
    level: Level | None = None,
    search: bool = True,
    count: int = 500,
    first_seed: int = 0,
    settings: SamplingConfig | None = None,
    device: str = "auto",
    out: Path | None = None,
    command: str = "",
    progress: bool = True,
) -> Sweep:
    """Draw `count` balanced samples of a run under each setting of its dial, and write a page.

    The settings are the tracked thresholds, each of `capacities` (without any, the usual ones that
    the model can have), each of `gammas`, and the gamma that the interval search chooses (Eq. 16).
    Capacities are averages of the model, each layer or each expert, by `level`, or else as the
    settings say. Everything else is as in `settings`, None being the run's. Raises ConfigError for
    a run without a dial, a setting that there is not, a capacity, gamma or policy in `settings`
    that the run's own lack, and more pictures to score than memory is made for; StorageError if
    `out` holds anything but an older sweep; all before anything is drawn.
    """
    refuse_report(count)
    config, folder = config_of(path), out or Path(path) / "sweep"
    settings = settings or config.sampling
    points = asked_points(config, settings, capacities, gammas, level)
    labels = balanced_labels(count, _conditions(path, config))
    seeds = range(first_seed, first_seed + count)
    check_request(config, labels, seeds, max(labels) + 1 if config.model.reads_text else None)
    refuse_results(folder, RECORD)
    run = load(path, weights=settings.weights, device=resolve_device(device))
    conditions = usual_conditions(run, settings)
    refuse_unready(run, points)
    reference = _reference(config, run)
    if not reference.unscored:
        _refuse_heavy(config, count, len(points) + search)
    loss, unknown = denoising_loss(run, reference)
    points = calibrated(run, points, progress)
    found = _searched(run, settings, conditions, loss, progress) if search else None
    points = points if found is None else _with_search(points, settings, found)
    codec = None if reference.unscored else build_codec(config.codec, run.model.positions.device)
    drawn = draw_in_rounds(
        run, points, labels, seeds, conditions=conditions, codec=codec, progress=progress
    )
    measured, unscored = _measured(points, drawn, loss, reference, torch.tensor(labels))
    measured = measured if found is None else _marked(measured, found)
    told = f"not known: {unknown}" if loss is None else loss.describe(settings)
    facts = {
        "command": command or f"diffmoe.sweep({str(path)!r}, count={count})",
        "stamp": _stamp(run, points[0].settings, seeds, codec),
        "timed": f"{_TIMED}, by {_CLOCKS[clock_of(run.model.positions.device)]}",
        "level": level or settings.capacity_level,
        "thresholds": _thresholds(points),
    }
    page = write_sweep(folder, run, measured, found, Qualities(told, unscored), facts)
    return Sweep(page, measured, None if found is None else found.gamma)


def _reference(config: RunConfig, run: LoadedRun) -> Reference:
    """The training data, which score nothing that is no picture."""
    reference = Reference.at_hand(config, run.trained_on.get("data"))
    if config.model.reads_text:
        why = "the images are drawn from captions, which no class agrees with"
        return replace(reference, unscored=reference.unscored or why)
    if isinstance(config.codec, PixelCodec) and config.model.channels not in (1, 3):
        why = f"model.channels {config.model.channels} make no picture with codec pixels"
        return replace(reference, unscored=reference.unscored or why)
    return reference


def _conditions(path: Path | str, config: RunConfig) -> int:
    """How many classes, or captions kept of the training, there are to draw."""
    if config.model.reads_text:
        return max(1, len(RunFolder(Path(path)).captions))
    return trained_classes(path, config.model.num_classes)


def _refuse_heavy(config: RunConfig, count: int, points: int) -> None:
    """Raise ConfigError if the pictures of all points are more than memory is made for."""
    picture = config.model.channels * config.model.input_size**2
    most = _MOST_BYTES // (points * picture)
    if count > most:
        raise ConfigError(
            f"count {count} is too many: the pictures of {points} settings, which are held until"
            f" they are scored, are {count * points * picture / 2**30:.2g} GiB",
            remedy=f"use {most} or fewer, or fewer capacities and gammas",
        )


def _with_search(points: Sequence[Point], settings: SamplingConfig, found: Found) -> list[Point]:
    """The points and the threshold that the search chose, once where it was asked for, too."""
    chosen = at_threshold(settings, found.gamma, "search")
    known = any(point.settings == chosen.settings for point in points)
    return [*points] if known else [*points, chosen]


def _marked(points: list[SweepPoint], found: Found) -> list[SweepPoint]:
    """The points with one of the search, which has the numbers of its like where that was asked."""
    if any(point.kind == "search" for point in points):
        return points
    like = next(p for p in points if p.kind == "constant" and p.setting == found.gamma)
    return [*points, replace(like, kind="search")]


def _searched(
    run: LoadedRun,
    settings: SamplingConfig,
    conditions: Conditions | None,
    loss: DenoisingLoss | None,
    progress: bool,
) -> Found:
    """The interval search, on images that no point of the sweep draws."""
    classes = run.trained_classes if conditions is None else conditions.count
    order = permutation(0, "interval search", classes).tolist()
    labels = [order[image % len(order)] for image in range(_SEARCHED)]
    seeds = range(_FIRST_SEED, _FIRST_SEED + _SEARCHED)
    with tqdm(desc="interval search", unit="threshold", disable=not progress, leave=False) as bar:

        def capacity_of(gamma: float) -> float:
            taken, way = Taken(), at_threshold(settings, gamma).settings
            generate(
                run.model,
                run.config,
                labels,
                seeds,
                settings=way,
                conditions=conditions,
                callback=taken,
            )
            bar.update()
            return taken.capacity

        def loss_of(gamma: float) -> float:
            assert loss is not None
            bar.update()
            return loss.under(settings.at(gamma=gamma))

        found = search_gamma(capacity_of, None if loss is None else loss_of)
    _LOG.info("interval search: gamma %g (%s)", found.gamma, found.reason)
    return found


def _measured(
    points: Sequence[Point],
    drawn: Sequence[Drawn],
    loss: DenoisingLoss | None,
    reference: Reference,
    labels: Tensor,
) -> tuple[list[SweepPoint], str]:
    """What each point costs and gives, and why nothing is scored, empty where it is."""
    found, unscored = [], reference.unscored
    for point, batches in zip(points, drawn, strict=True):
        scores, images = None, batches.images
        if images is not None:
            scores, unscored = score_samples(reference, images, labels)
        found.append(
            SweepPoint(
                name=point.name,
                kind=point.kind,
                setting=point.setting,
                capacity=batches.taken.capacity,
                seconds=batches.times.median,
                spread=batches.spread,
                loss=None if loss is None else loss.under(point.settings, point.thresholds),
                frechet=None if scores is None else scores.frechet_distance,
                agreement=None if scores is None else scores.agreement,
            )
        )
    return found, unscored


def _stamp(
    run: LoadedRun, settings: SamplingConfig, seeds: range, codec: Codec | None
) -> dict[str, Any]:
    """How the images were made; the policy is that of the tracked thresholds."""
    place, decoder = run.model.positions.device, codec.identity if codec else None
    return {
        **stamp(run, settings, images=len(seeds), decoder=decoder, machine=machine_of(place)),
        "seeds": [seeds[0], seeds[-1]],
        "threads": torch.get_num_threads(),
    }


def _thresholds(points: Sequence[Point]) -> dict[str, Any]:
    """The calibrated thresholds, by the point that has them."""
    return {p.name: p.thresholds.tolist() for p in points if p.thresholds is not None}
