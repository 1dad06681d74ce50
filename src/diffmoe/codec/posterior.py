"""Latents drawn from an autoencoder's posterior, and the codec of posteriors stored before."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from diffmoe.errors import ConfigError

__all__ = ["StoredPosterior", "draw_latents"]


def draw_latents(
    moments: Float[Tensor, "B 2 C h w"],
    noise: Float[Tensor, "B C h w"] | None,
    *,
    scale: float,
    shift: float,
) -> Float[Tensor, "B C h w"]:
    """Scaled latents: (mean + deviation * noise - shift) * scale, without noise those of the mean.

    `moments` are mean and deviation as the autoencoder has them, neither shifted nor scaled.
    """
    mean, deviation = moments.unbind(1)
    latents = mean if noise is None else mean + deviation * noise
    return (latents - shift) * scale


@dataclass(frozen=True)
class StoredPosterior:
    """The codec of samples that are the moments of posteriors: it encodes without the network."""

    channels: int
    scale: float
    shift: float
    identity: str  # of the autoencoder that made the moments

    def encode(
        self, pixels: Float[Tensor, "B 2 C h w"], noise: Float[Tensor, "B C h w"] | None
    ) -> Float[Tensor, "B C h w"]:
        """Latents of moments, which stand where other codecs take images."""
        return draw_latents(pixels, noise, scale=self.scale, shift=self.shift)

    def decode(self, latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        """Nothing: raises ConfigError, as images need the autoencoder."""
        raise ConfigError(
            "stored posteriors cannot be decoded: the autoencoder is not among them",
            remedy="decode with the codec of the run's config",
        )
