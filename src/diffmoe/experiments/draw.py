"""A run made ready to draw from, and drawn from: what sampling and reporting have in common."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffmoe.checkpoint import LoadedRun, RunFolder, load
from diffmoe.codec import Codec, build_codec
from diffmoe.config import PixelCodec, RunConfig, SamplingConfig
from diffmoe.device import resolve_device
from diffmoe.errors import ConfigError
from diffmoe.sampling import (
    Calibration,
    Moment,
    calibrate,
    check_request,
    decode,
    generate,
    refuse_capture,
    stamp,
)

__all__ = ["Drawing", "config_of"]


def config_of(path: Path | str) -> RunConfig:
    """The config of the run at `path`; raises NoRunError if there is no run."""
    return RunFolder(Path(path)).read_config()


@dataclass(frozen=True)
class Drawing:
    """Images that a run is to draw, with all that can be refused refused beforehand."""

    run: LoadedRun
    codec: Codec
    settings: SamplingConfig
    labels: list[int]
    seeds: list[int]
    device: torch.device
    capture: bool = False  # record the network and replay it
    calibration: Calibration | None = None  # the thresholds of policy `target`

    @classmethod
    def prepare(
        cls,
        path: Path | str,
        labels: Sequence[int],
        seeds: Sequence[int],
        settings: SamplingConfig,
        device: str,
        progress: bool = False,
        capture: bool = False,
    ) -> "Drawing":
        """The run at `path`, its codec and the request, checked before the weights are read.

        Where a capacity is asked for, its thresholds are found, or read from the run's folder.
        """
        config = replace(config_of(path), sampling=settings)  # checks them together
        check_request(config, labels, seeds)
        _refuse_pictures(config)
        place = resolve_device(device)
        if capture:
            refuse_capture(place)
        run = load(path, weights=settings.weights, device=place)
        numbers = [int(label) for label in labels], [int(seed) for seed in seeds]
        codec = build_codec(run.config.codec, place)
        found = calibrate(run, settings, progress=progress) if settings.capacity else None
        return cls(run, codec, settings, *numbers, place, capture, found)

    @property
    def stamp(self) -> dict[str, Any]:
        """How the images are made."""
        facts = {"images": len(self.labels), "decoder": self.codec.identity}
        made = stamp(self.run, self.settings, **facts)  # type: ignore[arg-type]
        if self.calibration is not None:
            made["calibration"] = {
                "realised": self.calibration.realised,
                "error": self.calibration.error,
                "images": self.calibration.images,
                "thresholds": self.calibration.thresholds.tolist(),
            }
        return made

    def images(self, *, callback: Callable[[Moment], None] | None = None, progress: bool) -> Tensor:
        """The images, uint8 (N, C, H, W)."""
        latents = generate(
            self.run.model,
            self.run.config,
            self.labels,
            self.seeds,
            settings=self.settings,
            thresholds=self.calibration and self.calibration.thresholds,
            callback=callback,
            capture=self.capture,
            progress=progress,
        )
        return torch.cat(list(decode(self.codec, latents, self.device)))


def _refuse_pictures(config: RunConfig) -> None:
    if isinstance(config.codec, PixelCodec) and config.model.channels not in (1, 3):
        raise ConfigError(
            f"model.channels {config.model.channels} make no picture with codec pixels",
            remedy="set the codec that made the latents, or draw with diffmoe.generate",
        )
