"""What every codec offers, the codec that changes nothing, and the way to 8-bit images."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from diffmoe.codec.autoencoder import AS_FLAG, load_autoencoder
from diffmoe.config import AutoencoderCodec, CodecConfig

__all__ = ["Codec", "Pixels", "build_codec", "to_uint8"]


@runtime_checkable
class Codec(Protocol):
    """Maps images in [-1, 1] to what the model sees, and back."""

    @property
    def channels(self) -> int | None:
        """Channels of what the model sees; None = those of the images."""

    @property
    def identity(self) -> str:
        """Names the mapping, weights included: equal identities give comparable numbers."""

    def encode(
        self, pixels: Float[Tensor, "B _ _ _"], noise: Float[Tensor, "B _ _ _"] | None
    ) -> Float[Tensor, "B _ _ _"]:
        """What the model sees of images in [-1, 1]; `noise` draws from a posterior if there is one.

        Without noise the result is the posterior's mean.
        """

    def decode(self, latents: Float[Tensor, "B _ _ _"]) -> Float[Tensor, "B _ _ _"]:
        """Images in [-1, 1], clamped."""


class Pixels:
    """The identity: the model sees the image."""

    channels = None
    identity = "pixels"

    def encode(
        self, pixels: Float[Tensor, "B C H W"], noise: Float[Tensor, "B C H W"] | None
    ) -> Float[Tensor, "B C H W"]:
        """The images themselves; there is no posterior to draw from."""
        return pixels

    def decode(self, latents: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The images, clamped to [-1, 1]."""
        return latents.clamp(-1, 1)


def build_codec(
    config: CodecConfig, device: torch.device | str, *, setting: str = AS_FLAG
) -> Codec:
    """The codec of a config, on a device.

    `setting` begins what an error says of how to give another autoencoder. Raises ConfigError if
    its autoencoder is not found or does not fit the config, StorageError if its files are damaged.
    """
    if isinstance(config, AutoencoderCodec):
        return load_autoencoder(config, device, setting=setting)
    return Pixels()


def to_uint8(pixels: Float[Tensor, "B C H W"]) -> UInt8[Tensor, "B C H W"]:
    """Images in [-1, 1] as 8-bit images: the only place that rounds pixels."""
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
