"""What must stand beside every number and image: how it was made."""

from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, Protocol

import torch

from diffmoe.checkpoint import RunFolder
from diffmoe.config import AutoencoderCodec, RunConfig, SamplingConfig
from diffmoe.sampling.solvers import evaluations
from diffmoe.sampling.strict import strict_facts

__all__ = ["MACHINE", "Origin", "stamp"]

# Of a stamp: what computed the images. Elsewhere their last bits may be others.
MACHINE = ("device", "device_name", "numpy", "pillow", "diffusers")


class Origin(Protocol):
    """Which weights of which run: a loaded run, or what is known of it before it is loaded."""

    @property
    def folder(self) -> RunFolder:
        """Where the run lies."""

    @property
    def config(self) -> RunConfig:
        """Its config."""

    @property
    def step(self) -> int:
        """The step of the checkpoint."""

    @property
    def weights(self) -> str:
        """Which of its weights."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of their file."""

    @property
    def trained_on(self) -> dict[str, str]:
        """Codec and data of the training, where known."""


def stamp(
    run: Origin,
    settings: SamplingConfig,
    *,
    images: int | None = None,
    decoder: str | None = None,
    machine: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Weights, settings and versions of a sampling run of `images` images.

    `pool_images` is how many images competed, None where none did: what the settings leave open
    depends on the batch and on how many images were asked for. The last pool holds what is left.
    `trained_on` names codec and data of the training, `decoder` the codec that made the pixels,
    `machine` the device, see `machine_of`.
    """
    return {
        "run": run.folder.path.resolve().name,
        "step": run.step,
        "weights": run.weights,
        "weights_sha256": run.fingerprint,
        "trained_on": dict(run.trained_on),
        "sampling": asdict(settings),
        "thresholds": _thresholds(run.config, settings),
        "evaluations": evaluations(settings),
        "count": images,
        "pool_images": _pool_images(settings, images),
        "codec": asdict(run.config.codec),
        "decoder": decoder,
        "diffmoe": version("diffmoe"),
        "torch": torch.__version__,
        **strict_facts(),
        **_libraries(run.config),
        **(machine or {}),
    }


def _libraries(config: RunConfig) -> dict[str, str]:
    """Versions of the other libraries that pixels pass through."""
    decoding = ["diffusers"] if isinstance(config.codec, AutoencoderCodec) else []
    return {name: version(name) for name in ("numpy", "pillow", *decoding)}


def _thresholds(config: RunConfig, settings: SamplingConfig) -> str | float | None:
    """Which thresholds decide how many an expert takes; None where none do.

    Those of policy `target` stand beside, with what they realise.
    """
    if not config.model.router.selections or settings.selection == "image":
        return None
    tracked = "tracked in training, part of the weights"
    named = {"ema": tracked, "constant": settings.gamma, "target": "calibrated"}
    return named.get(settings.policy or "ema")


def _pool_images(settings: SamplingConfig, images: int | None) -> int | None:
    if settings.selection != "pool":
        return None
    size = settings.pool_images or settings.batch
    return size if images is None else min(size, images)
