"""Calibrations of a run, made once and kept in its folder."""

import hashlib
import json
import logging
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from diffmoe.checkpoint import LoadedRun, write_text
from diffmoe.config import SamplingConfig
from diffmoe.errors import StorageError
from diffmoe.sampling.policy import decisive_settings
from diffmoe.sampling.prompts import usual_conditions
from diffmoe.sampling.thresholds import Calibration, asked_capacity, find_thresholds

__all__ = ["calibrate"]

_LOG = logging.getLogger(__name__)
_VERSION = 2  # of the file, and of how thresholds are found


def calibrate(run: LoadedRun, settings: SamplingConfig, *, progress: bool = False) -> Calibration:
    """The thresholds that give `settings` the capacity they ask for, from the run's folder.

    They are found by sampling where the folder has none for these weights and settings, and kept
    there. Raises ConfigError where no capacity is asked for, or thresholds were never measured.
    """
    key = _key(run, settings)
    place = run.folder.calibrations / _name(settings, key)
    kept = _read(place, key, (len(run.model.moe_layers), run.config.model.router.num_experts))
    if kept is not None:
        return kept
    conditions = usual_conditions(run, settings)
    classes = run.trained_classes if conditions is None else None
    found = find_thresholds(
        run.model, run.config, settings, classes=classes, conditions=conditions, progress=progress
    )
    _keep(place, key, found)
    return found


def _key(run: LoadedRun, settings: SamplingConfig) -> dict[str, Any]:
    """What thresholds depend on: the weights, and all settings that change an image."""
    decisive = decisive_settings(settings)
    key = {"weights_sha256": run.fingerprint, "step": run.step, "sampling": decisive}
    if run.config.model.reads_text:
        captions = "\n".join(run.folder.captions).encode("utf-8", "surrogatepass")
        return key | {"captions_sha256": hashlib.sha256(captions).hexdigest()}
    is_partly_trained = run.trained_classes < run.config.model.num_classes
    return key | ({"classes": run.trained_classes} if is_partly_trained else {})


def _name(settings: SamplingConfig, key: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:8]
    return (
        f"capacity-{asked_capacity(settings):g}-{settings.sampler}-{settings.steps}"
        f"-guidance-{settings.guidance:g}-{digest}.json"
    )


def _read(place: Path, key: dict[str, Any], shape: tuple[int, int]) -> Calibration | None:
    """The calibration in a file, None if there is none or it is damaged."""
    try:
        content = json.loads(place.read_text())
        if content["version"] != _VERSION or content["for"] != key:
            raise ValueError("it is of other weights or settings")
        thresholds = torch.tensor(content["thresholds"], dtype=torch.float64)
        if thresholds.shape != shape or not thresholds.isfinite().all():
            raise ValueError("its thresholds are no table of numbers for this model")
        return Calibration(
            thresholds=thresholds,
            asked=float(content["asked"]),
            realised=float(content["realised"]),
            error=float(content["error"]),
            layers=tuple(map(float, content["layers"])),
            images=int(content["images"]),
            passes=int(content["passes"]),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        _LOG.warning("%s is not used (%s): calibrating anew", place, error)
        return None


def _keep(place: Path, key: dict[str, Any], found: Calibration) -> None:
    """Write a calibration; a run that cannot be written to can be sampled all the same."""
    content = {
        "version": _VERSION,
        **asdict(found),
        "thresholds": found.thresholds.tolist(),
        "for": key,
        "diffmoe": version("diffmoe"),
    }
    try:
        write_text(place, json.dumps(content, indent=1))
    except StorageError as error:
        _LOG.warning("the calibration is not kept: %s", error)
