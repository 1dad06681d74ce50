"""A run made ready to draw from, and drawn from: what sampling and reporting have in common."""

import logging
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from diffmoe.checkpoint import LoadedRun, RunFolder, claimed_manifest, load
from diffmoe.codec import Codec, build_codec
from diffmoe.config import PixelCodec, RunConfig, SamplingConfig
from diffmoe.device import machine_of, resolve_device
from diffmoe.errors import ConfigError
from diffmoe.sampling import (
    Calibration,
    Conditions,
    Moment,
    Origin,
    Prepared,
    calibrate,
    check_request,
    decode,
    encode_prompts,
    refuse_capture,
    refuse_prompts,
    refuse_strict,
    stamp,
)
from diffmoe.training import STORED

__all__ = ["Drawing", "Wanted", "config_of"]

_LOG = logging.getLogger(__name__)


def config_of(path: Path | str) -> RunConfig:
    """The config of the run at `path`; raises NoRunError if there is no run."""
    return RunFolder(Path(path)).read_config()


@dataclass(frozen=True)
class Wanted:
    """Images asked of a run, with all refused that can be before its weights are read."""

    path: Path
    config: RunConfig  # its sampling settings are those to draw with
    labels: list[int]  # classes, or numbers of `prompts`
    seeds: list[int]
    device: torch.device
    capture: bool  # record the network and replay it
    codec: Codec
    prompts: tuple[str, ...] = ()  # of a run that reads captions

    @classmethod
    def checked(
        cls,
        path: Path | str,
        labels: Sequence[int],
        seeds: Sequence[int],
        settings: SamplingConfig,
        device: str,
        capture: bool = False,
        prompts: Sequence[str] = (),
    ) -> "Wanted":
        """The request, and the codec that is to make pictures of what the run at `path` draws."""
        config = replace(config_of(path), sampling=settings)  # checks them together
        _refuse_prompts(config, prompts)
        check_request(config, labels, seeds, len(prompts) if prompts else None)
        _refuse_pictures(config)
        place = resolve_device(device)
        refuse_strict(settings, place)
        if capture:
            refuse_capture(place)
        numbers = [int(label) for label in labels], [int(seed) for seed in seeds]
        noting = f"note with `diffmoe train {shlex.quote(str(path))} --codec.path NEW` where it is:"
        codec = build_codec(config.codec, place, setting=noting)
        return cls(Path(path), config, *numbers, place, capture, codec, tuple(prompts))

    @property
    def claimed_stamp(self) -> dict[str, Any] | None:
        """How the images would be made, by what the newest checkpoint claims; None without one."""
        origin = self._claimed
        return None if origin is None else self.stamp(origin)

    @property
    def _claimed(self) -> "_Claimed | None":
        folder, weights = RunFolder(self.path), self.config.sampling.weights
        manifest = claimed_manifest(folder.checkpoints)
        if manifest is None:
            return None
        sha = manifest.fingerprint("ema" if weights == "ema" else "model")
        return _Claimed(folder, self.config, manifest.step, weights, sha, manifest.trained_on)

    def stamp(self, origin: Origin) -> dict[str, Any]:
        """How images of these weights are made, but for their calibration."""
        count, decoder = len(self.labels), self.codec.identity
        settings, machine = self.config.sampling, machine_of(self.device)
        return stamp(origin, settings, images=count, decoder=decoder, machine=machine)

    def ready(self, progress: bool = False) -> "Drawing":
        """The same with the weights read.

        Where a capacity is asked for, its thresholds are found, or read from the run's folder.
        """
        settings, origin = self.config.sampling, self._claimed
        asked = None
        if self.prompts and origin is not None:  # before the weights: they may be refused
            asked = encode_prompts(origin, self.prompts, self.device)
        run = load(self.path, weights=settings.weights, device=self.device)
        _tell_another_codec(run, self.codec)
        found = calibrate(run, settings, progress=progress) if settings.capacity else None
        return Drawing(run, self, found, asked)


@dataclass(frozen=True)
class _Claimed:
    """The weights that a run would be drawn from, by what its newest checkpoint claims."""

    folder: RunFolder
    config: RunConfig
    step: int
    weights: str
    fingerprint: str
    trained_on: dict[str, str]


@dataclass(frozen=True)
class Drawing:
    """Images that a run is to draw, and the run ready for it."""

    run: LoadedRun
    wanted: Wanted
    calibration: Calibration | None = None  # the thresholds of policy `target`
    conditions: Conditions | None = None  # the prompts, encoded

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
        prompts: Sequence[str] = (),
    ) -> "Drawing":
        """The run at `path`, its codec and the request, checked before the weights are read."""
        asked = (labels, seeds, settings, device, capture, prompts)
        return Wanted.checked(path, *asked).ready(progress)

    @property
    def settings(self) -> SamplingConfig:
        """How they are drawn."""
        return self.wanted.config.sampling

    @property
    def labels(self) -> list[int]:
        """Their classes."""
        return self.wanted.labels

    @property
    def seeds(self) -> list[int]:
        """Their seeds."""
        return self.wanted.seeds

    @property
    def device(self) -> torch.device:
        """Where they are drawn."""
        return self.wanted.device

    @property
    def codec(self) -> Codec:
        """What makes pictures of them."""
        return self.wanted.codec

    @property
    def stamp(self) -> dict[str, Any]:
        """How the images are made."""
        made = self.wanted.stamp(self.run)
        if self.calibration is not None:
            made["calibration"] = {
                "realised": self.calibration.realised,
                "error": self.calibration.error,
                "images": self.calibration.images,
                "thresholds": self.calibration.thresholds.tolist(),
            }
        return made

    def prepared(self, keep_records: bool = False) -> Prepared:
        """The network ready to draw, once for all batches."""
        return Prepared.of(
            self.run.model,
            self.run.config,
            self.settings,
            conditions=self.conditions,
            thresholds=self.calibration and self.calibration.thresholds,
            capture=self.wanted.capture,
            keep_records=keep_records,
        )

    def decoded(self, latents: Float[Tensor, "n c h w"]) -> UInt8[Tensor, "n C H W"]:
        """What the network has drawn, as 8-bit images."""
        return torch.cat(list(decode(self.codec, latents, self.device)))

    def images(
        self, *, callback: Callable[[Moment], None] | None = None, progress: bool
    ) -> UInt8[Tensor, "N C H W"]:
        """All the images, held in memory."""
        ready, count = self.prepared(callback is not None), len(self.labels)
        found = []
        with tqdm(total=count, desc="sample", unit="image", disable=not progress) as bar:
            for latents in ready.batches(self.labels, self.seeds, range(count), callback):
                found.append(self.decoded(latents))
                bar.update(len(latents))
        return torch.cat(found)


def _tell_another_codec(run: LoadedRun, codec: Codec) -> None:
    """Warn of pictures made by another codec than that of the training, where that is known."""
    known = run.trained_on.get("codec", STORED)
    if known not in (STORED, codec.identity):
        what = "codec.path is not what the run was trained with: %s, not %s"
        _LOG.warning(what, codec.identity, known)


def _refuse_prompts(config: RunConfig, prompts: Sequence[str]) -> None:
    """Raise ConfigError for prompts that the model cannot read, or for want of them."""
    if prompts:
        refuse_prompts(config)
    if config.model.reads_text and not prompts:
        raise ConfigError("the run draws from prompts, and none is given", remedy="give --prompts")


def _refuse_pictures(config: RunConfig) -> None:
    if isinstance(config.codec, PixelCodec) and config.model.channels not in (1, 3):
        raise ConfigError(
            f"model.channels {config.model.channels} make no picture with codec pixels",
            remedy="set the codec that made the latents, or draw with diffmoe.generate",
        )
