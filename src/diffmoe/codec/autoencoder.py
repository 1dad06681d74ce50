"""Latents of a diffusers `AutoencoderKL`."""

import hashlib
import logging
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffmoe.codec.network import is_at_hand, load_network
from diffmoe.codec.posterior import draw_latents
from diffmoe.config import AutoencoderCodec
from diffmoe.errors import ConfigError

__all__ = [
    "ENCODED_AT_ONCE",
    "Autoencoder",
    "find_autoencoder",
    "load_autoencoder",
    "open_autoencoder",
]

LOGGER = logging.getLogger(__name__)
IMAGE_CHANNELS = 3
AS_FLAG = "set --codec.path to"  # how training is given an autoencoder

# Images the autoencoder takes at once: its activations are far larger than an image. What encodes
# ahead of training takes as many, as rounding may depend on it.
ENCODED_AT_ONCE = 16


class Autoencoder:
    """A frozen autoencoder: latent = (mean + deviation * noise - shift) * scale."""

    def __init__(self, network: nn.Module, config: AutoencoderCodec) -> None:
        self._network = network.requires_grad_(False).eval()
        self.config = config
        self.channels: int = network.config.latent_channels

    @cached_property
    def identity(self) -> str:
        """Hash of the weights, and the scale and shift; where they were read from is left out."""
        digest, config = _hash(self._network), self.config
        return f"AutoencoderKL sha256:{digest[:16]} scale {config.scale:g} shift {config.shift:g}"

    def encode(
        self, pixels: Float[Tensor, "B 3 H W"], noise: Float[Tensor, "B C h w"] | None
    ) -> Float[Tensor, "B C h w"]:
        """Latents of images in [-1, 1]: drawn from the posterior with `noise`, else its mean."""
        moments = self.moments(pixels)
        return draw_latents(moments, noise, scale=self.config.scale, shift=self.config.shift)

    def moments(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 2 C h w"]:
        """Mean and deviation of the posteriors of images in [-1, 1], neither shifted nor scaled."""
        return torch.cat([self._moments(chunk) for chunk in pixels.split(ENCODED_AT_ONCE)])

    def decode(self, latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        """Images in [-1, 1] of latents; raises ConfigError if their channels do not fit."""
        if latents.shape[1] != self.channels:
            raise ConfigError(
                f"latents of {latents.shape[1]} channels cannot be decoded: the autoencoder has"
                f" {self.channels}",
                remedy="set codec.path to the autoencoder that the model was trained with",
            )
        unscaled = latents.float() / self.config.scale + self.config.shift
        return torch.cat([self._pixels(chunk) for chunk in unscaled.split(ENCODED_AT_ONCE)])

    @torch.no_grad()
    def _moments(self, pixels: Tensor) -> Tensor:
        with torch.autocast(pixels.device.type, enabled=False):
            posterior = self._network.encode(pixels.float()).latent_dist
        return torch.stack([posterior.mean, posterior.std], dim=1)

    @torch.no_grad()
    def _pixels(self, latents: Tensor) -> Tensor:
        with torch.autocast(latents.device.type, enabled=False):
            return self._network.decode(latents).sample.clamp(-1, 1)


def load_autoencoder(
    config: AutoencoderCodec, device: torch.device | str, *, setting: str = AS_FLAG
) -> Autoencoder:
    """The autoencoder that a config names, checked against it.

    `setting` begins what an error says of how to give another one.
    """
    network, own = _load(config.path, "codec.path", setting)
    _check_fit(config, own, setting)
    return Autoencoder(network.to(device), config)


def open_autoencoder(name: str, device: torch.device | str, *, flag: str) -> Autoencoder:
    """The autoencoder in a folder or of a hub name, with the factor, scale and shift it has.

    `flag` is what gave the name. Raises ConfigError if it is not found or is not one of images,
    StorageError if its files are damaged.
    """
    network, own = _load(name, flag, f"set --{flag} to")
    return Autoencoder(network.to(device), own)


def find_autoencoder(config: AutoencoderCodec) -> Autoencoder | None:
    """The autoencoder that a config names, None where it could only come from a network."""
    return load_autoencoder(config, "cpu") if is_at_hand(config.path) else None


def _load(name: str, flag: str, setting: str) -> tuple[Any, AutoencoderCodec]:
    network = load_network(name, flag, setting)
    _check_images(network, name, setting)
    return network, _own_config(network, name)


def _own_config(network: Any, name: str) -> AutoencoderCodec:
    """What an autoencoder says of itself."""
    return AutoencoderCodec(
        path=name,
        factor=2 ** (len(network.config.block_out_channels) - 1),
        scale=network.config.scaling_factor,
        shift=network.config.shift_factor or 0.0,
    )


def _check_images(network: Any, name: str, setting: str) -> None:
    """Raise ConfigError unless the network works on RGB images."""
    if network.config.in_channels != IMAGE_CHANNELS:
        raise ConfigError(
            f"the autoencoder encodes images of {network.config.in_channels} channels",
            where=name,
            remedy=f"{setting} an autoencoder of RGB images",
        )


def _check_fit(config: AutoencoderCodec, own: AutoencoderCodec, setting: str) -> None:
    """Raise ConfigError unless the network has the config's factor; warn of another scale."""
    if own.factor != config.factor:
        other = f", or --codec.factor to {own.factor}" if setting == AS_FLAG else ""
        raise ConfigError(
            f"codec.factor {config.factor} is not that of the autoencoder, {own.factor}",
            where=config.path,
            remedy=f"{setting} one of factor {config.factor}{other}",
        )
    if (own.scale, own.shift) != (config.scale, config.shift):
        LOGGER.warning(
            "codec.scale %g and codec.shift %g are not those in the config of %s: %g and %g",
            *(config.scale, config.shift, config.path, own.scale, own.shift),
        )


def _hash(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()
