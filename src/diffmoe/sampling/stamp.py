"""What must stand beside every number and image: how it was made."""

from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch

from diffmoe.checkpoint import LoadedRun
from diffmoe.config import SamplingConfig

__all__ = ["stamp"]


def stamp(run: LoadedRun, settings: SamplingConfig) -> dict[str, Any]:
    """Weights, settings and versions of a sampling run."""
    evaluations = {"heun": 2 * settings.steps, "dopri5": None}.get(settings.sampler, settings.steps)
    return {
        "run": run.folder.path.name,
        "step": run.step,
        "weights": run.weights,
        "weights_sha256": run.fingerprint,
        "sampling": asdict(settings),
        "evaluations": evaluations,
        "codec": asdict(run.config.codec),
        "diffmoe": version("diffmoe"),
        "torch": torch.__version__,
    }
