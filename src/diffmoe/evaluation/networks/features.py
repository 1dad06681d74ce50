"""What every network says of images, and how many of them it sees at once."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from diffmoe.errors import DataError

__all__ = ["BLOCK", "FeatureNetwork", "Features", "check_images"]

BLOCK = 32  # images a network sees at once: always as many


@dataclass(frozen=True)
class Features:
    """What a network says of images, on the CPU."""

    pooled: Float[Tensor, "B F"]  # float32; of Frechet distance, KID, precision and recall
    spatial: Float[Tensor, "B S"] | None = None  # float32; of sFID
    probabilities: Float[Tensor, "B K"] | None = None  # float64; of the inception score, agreement

    @classmethod
    def joined(cls, parts: Iterable["Features"]) -> "Features":
        """The features of several parts, in their order."""
        columns = zip(*((p.pooled, p.spatial, p.probabilities) for p in parts), strict=True)
        return cls(*(None if column[0] is None else torch.cat(column) for column in columns))

    def first(self, count: int) -> "Features":
        """The features of the first images."""
        parts = (self.pooled, self.spatial, self.probabilities)
        return Features(*(None if part is None else part[:count] for part in parts))

    def on_cpu(self) -> "Features":
        """The same features on the CPU."""
        parts = (self.pooled, self.spatial, self.probabilities)
        return Features(*(None if part is None else part.cpu() for part in parts))


class FeatureNetwork(Protocol):
    """A frozen network that turns 8-bit RGB images into features.

    It works on blocks of exactly `BLOCK` images, the last one filled up, because the last digits of
    float32 features depend on a batch's size. So an image has the same features, bit by bit, in
    any company, as long as it has its place in its block: give whole blocks that start at images
    0, `BLOCK`, 2 `BLOCK`, ... of the set, and the number of processes changes nothing.
    """

    @property
    def name(self) -> str:
        """Short name for tables: inception, dinov2 or small."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights, hexadecimal: only equal ones give comparable numbers."""

    @property
    def side(self) -> int | None:
        """The only height and width of images it takes; None = any."""

    def features(self, images: UInt8[Tensor, "B 3 H W"]) -> Features:
        """Features of 8-bit RGB images; raises DataError for anything else."""


def check_images(images: Tensor, side: int | None = None) -> None:
    """Raise DataError unless these are 8-bit RGB images, of the side if one is given."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise DataError(
            f"images of {images.dtype} and shape {tuple(images.shape)} cannot be evaluated",
            remedy="give 8-bit RGB images of shape (N, 3, H, W)",
        )
    if 0 in images.shape:
        raise DataError(
            f"images of shape {tuple(images.shape)} hold nothing to evaluate",
            remedy="give one image or more",
        )
    if side is not None and images.shape[2:] != (side, side):
        raise DataError(
            f"images of {images.shape[2]} x {images.shape[3]} pixels do not fit the small network,"
            f" which was trained on {side} x {side}",
            remedy=f"give images of {side} x {side} pixels",
        )
