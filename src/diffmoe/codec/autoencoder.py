"""Latents of a diffusers `AutoencoderKL`, read from a folder or from the Hugging Face hub.

diffusers is imported when an autoencoder is loaded and not before: its import takes seconds.
"""

import hashlib
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffmoe.config import AutoencoderCodec
from diffmoe.errors import ConfigError, StorageError

__all__ = ["Autoencoder", "load_autoencoder"]

LOGGER = logging.getLogger(__name__)
CHUNK = 16  # images the autoencoder takes at once: its activations are far larger than an image
IMAGE_CHANNELS = 3
CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")


class Autoencoder:
    """A frozen autoencoder: latent = (mean + deviation * noise - shift) * scale."""

    def __init__(self, network: nn.Module, config: AutoencoderCodec) -> None:
        self._network = network.requires_grad_(False).eval()
        self._scale, self._shift = config.scale, config.shift
        self.channels: int = network.config.latent_channels

    @cached_property
    def identity(self) -> str:
        """Hash of the weights, and the scale and shift; where they were read from is left out."""
        digest = _hash(self._network)
        return f"AutoencoderKL sha256:{digest[:16]} scale {self._scale:g} shift {self._shift:g}"

    def encode(
        self, pixels: Float[Tensor, "B 3 H W"], noise: Float[Tensor, "B C h w"] | None
    ) -> Float[Tensor, "B C h w"]:
        """Latents of images in [-1, 1]: drawn from the posterior with `noise`, else its mean."""
        posteriors = [self._posterior(chunk) for chunk in pixels.split(CHUNK)]
        latents = torch.cat([posterior.mean for posterior in posteriors])
        if noise is not None:
            latents = latents + torch.cat([posterior.std for posterior in posteriors]) * noise
        return (latents - self._shift) * self._scale

    def decode(self, latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        """Images in [-1, 1] of latents; raises ConfigError if their channels do not fit."""
        if latents.shape[1] != self.channels:
            raise ConfigError(
                f"latents of {latents.shape[1]} channels cannot be decoded: the autoencoder has"
                f" {self.channels}",
                remedy="set codec.path to the autoencoder that the model was trained with",
            )
        unscaled = latents.float() / self._scale + self._shift
        return torch.cat([self._pixels(chunk) for chunk in unscaled.split(CHUNK)])

    @torch.no_grad()
    def _posterior(self, pixels: Tensor) -> Any:
        with torch.autocast(pixels.device.type, enabled=False):
            return self._network.encode(pixels.float()).latent_dist

    @torch.no_grad()
    def _pixels(self, latents: Tensor) -> Tensor:
        with torch.autocast(latents.device.type, enabled=False):
            return self._network.decode(latents).sample.clamp(-1, 1)


def load_autoencoder(config: AutoencoderCodec, device: torch.device | str) -> Autoencoder:
    """The autoencoder that a config names, checked against it."""
    folder = Path(config.path).expanduser()
    if folder.is_dir():
        _check_files(folder)
        network = _load_folder(folder)
    elif HUB_NAME.fullmatch(config.path):
        network = _load_hub(config.path)
    else:
        raise ConfigError(
            f"codec.path {config.path!r} does not exist",
            where=f"looked for the folder {folder.absolute()}",
            remedy="set --codec.path to the folder of an AutoencoderKL or to its hub name",
        )
    _check_fit(network, config)
    return Autoencoder(network.to(device), config)


def _check_files(folder: Path) -> None:
    """Raise ConfigError for a missing file before the slow import."""
    weights = [folder / WEIGHTS, folder / f"{WEIGHTS}.index.json"]
    lacks = [] if (folder / CONFIG).is_file() else [CONFIG]
    lacks += [] if any(path.is_file() for path in weights) else [WEIGHTS]
    if lacks:
        raise ConfigError(
            f"the autoencoder lacks {' and '.join(lacks)}",
            where=str(folder.absolute()),
            remedy="set --codec.path to a folder that AutoencoderKL.save_pretrained wrote",
        )


def _load_folder(folder: Path) -> Any:
    try:
        return _from_pretrained(str(folder))
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise StorageError(
            f"the autoencoder cannot be loaded ({_first_line(error)})",
            where=str(folder.absolute()),
            remedy="restore its config.json and weights",
        ) from error


def _load_hub(name: str) -> Any:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE

    cached = [try_to_load_from_cache(name, file) for file in (CONFIG, WEIGHTS)]
    try:
        if all(isinstance(path, str) for path in cached):  # as a folder: it needs no network
            return _from_pretrained(str(Path(str(cached[0])).parent))
        _reach_hub()
        return _from_pretrained(name)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise ConfigError(
            f"codec.path {name} cannot be loaded ({_first_line(error)})",
            where=f"looked for a folder of that name, in {HF_HUB_CACHE} and on huggingface.co",
            remedy=f"run `hf download {name}` where there is a network, or set --codec.path to a"
            f" folder with config.json and {WEIGHTS}",
        ) from error


def _reach_hub() -> None:
    """Raise ConnectionError if the hub does not answer: its own client tries for half a minute."""
    from huggingface_hub import get_session
    from huggingface_hub.constants import ENDPOINT

    try:
        get_session().head(ENDPOINT, timeout=10)
    except Exception as error:  # of whichever client the library uses, or its offline mode
        raise ConnectionError(
            f"it is not in the cache, and {ENDPOINT} cannot be reached: {_first_line(error)}"
        ) from error


@contextmanager
def _silence(*names: str) -> Iterator[None]:
    """Hold back what libraries say of an attempt: what is left of it is told in one sentence."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _from_pretrained(name: str) -> Any:
    """The autoencoder; ValueError if it is another network or some weights are missing.

    Only safetensors are read; a pickle could run code.
    """
    with warnings.catch_warnings(), _silence("huggingface_hub", "diffusers"):
        warnings.simplefilter("ignore")  # the library speaks of its own deprecations
        from diffusers import AutoencoderKL

        kind = AutoencoderKL.load_config(name).get("_class_name", "AutoencoderKL")
        if kind != "AutoencoderKL":
            raise ValueError(f"it is a {kind}, not an AutoencoderKL")
        network, report = AutoencoderKL.from_pretrained(
            name, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    if missing := report["missing_keys"]:
        raise ValueError(f"its weights lack {len(missing)} tensors, {sorted(missing)[0]} for one")
    return network


def _first_line(error: Exception) -> str:
    return " ".join(str(error).strip().splitlines()[:1]).rstrip(" .:")


def _check_fit(network: Any, config: AutoencoderCodec) -> None:
    """Raise ConfigError unless the network has the config's factor and works on RGB images."""
    factor = 2 ** (len(network.config.block_out_channels) - 1)
    if factor != config.factor:
        raise ConfigError(
            f"codec.factor {config.factor} is not that of the autoencoder, {factor}",
            where=config.path,
            remedy=f"set --codec.factor {factor} or another --codec.path",
        )
    if network.config.in_channels != IMAGE_CHANNELS:
        raise ConfigError(
            f"the autoencoder encodes images of {network.config.in_channels} channels",
            where=config.path,
            remedy="set --codec.path to an autoencoder of RGB images",
        )
    own = (network.config.scaling_factor, network.config.shift_factor or 0.0)
    if own != (config.scale, config.shift):
        LOGGER.warning(
            "codec.scale %g and codec.shift %g are not those in the config of %s: %g and %g",
            *(config.scale, config.shift, config.path, *own),
        )


def _hash(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()
