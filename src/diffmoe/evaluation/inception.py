"""The Inception network behind the field's published numbers, and what it says of images."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from diffmoe.errors import DataError
from diffmoe.evaluation.inception_blocks import MIXED, STEM, Convolution, Mixed

__all__ = ["Inception", "InceptionFeatures", "resize_like_tensorflow"]

_SIZE = 299  # height and width of the images the network sees
_OUTPUTS = 1008  # 1,000 of them are classes
_SPATIAL_CHANNELS = 7  # of Mixed_6d.branch1x1: 17 * 17 * 7 = 2,023 spatial features


@dataclass(frozen=True)
class InceptionFeatures:
    """What the network says of images."""

    pooled: Float[Tensor, "N 2048"]  # of FID, KID, precision and recall
    spatial: Float[Tensor, "N 2023"]  # of sFID: rows, columns, then channels
    logits: Float[Tensor, "N 1008"]
    unbiased_logits: Float[Tensor, "N 1008"]  # without the last layer's bias

    @property
    def probabilities(self) -> Float[Tensor, "N 1008"]:
        """Of the Inception score, which has always been taken without the last layer's bias."""
        return self.unbiased_logits.double().softmax(dim=1)


class Inception(nn.Module):
    """The network, frozen; features depend on an image alone, to rounding."""

    def __init__(self) -> None:
        super().__init__()
        width = 3
        for step in (step for steps in STEM for step in steps):
            self.add_module(step.name, Convolution(width, step))
            width = step.channels
        for name, block in MIXED.items():
            self.add_module(name, mixed := Mixed(width, block))
            width = mixed.channels
        self.fc = nn.Linear(width, _OUTPUTS)
        self.fingerprint = ""  # SHA-256 of the weight file, set when it is loaded
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: UInt8[Tensor, "N 3 H W"]) -> InceptionFeatures:
        """Features of 8-bit RGB images; raises DataError for anything else.

        Reduced precision is switched off: TensorFloat-32 would move the published numbers.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise DataError(
                f"images of {images.dtype} and shape {tuple(images.shape)} cannot be evaluated",
                remedy="give 8-bit RGB images of shape (N, 3, H, W)",
            )
        exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
        with torch.autocast(images.device.type, enabled=False), exact:
            return self._features(images.to(self.fc.weight.dtype))

    def _features(self, images: Float[Tensor, "N 3 H W"]) -> InceptionFeatures:
        x = (resize_like_tensorflow(images, _SIZE) - 128) / 128
        for steps in STEM:
            for step in steps:
                x = self.get_submodule(step.name)(x)
            x = functional.max_pool2d(x, 3, stride=2)
        for name in MIXED:
            if name == "Mixed_6d":
                spatial = self.Mixed_6d.branch1x1(x)[:, :_SPATIAL_CHANNELS].permute(0, 2, 3, 1)
            x = self.get_submodule(name)(x)
        pooled = x.mean(dim=(2, 3))
        unbiased = (pooled.double() @ self.fc.weight.double().t()).to(pooled.dtype)
        return InceptionFeatures(pooled, spatial.flatten(1), unbiased + self.fc.bias, unbiased)


def resize_like_tensorflow(
    images: Float[Tensor, "N C H W"], size: int
) -> Float[Tensor, "N C size size"]:
    """Square images as TensorFlow 1 resizes them: pixel i of the result lies at i * H / size.

    Later rules lay pixel centres on pixel centres; by this one the result is shifted up and left.
    """
    top, bottom, down = _taps(images.shape[2], size, images)
    left, right, across = _taps(images.shape[3], size, images)

    def row(index: Tensor) -> Tensor:
        lines = images[:, :, index]
        start = lines[..., left]
        return start + (lines[..., right] - start) * across

    upper = row(top)
    return upper + (row(bottom) - upper) * down[:, None]


def _taps(length: int, size: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The two pixels of each place and how far it lies between them, in float32 as there."""
    step = torch.tensor(length, dtype=torch.float32, device=like.device) / size
    place = torch.arange(size, dtype=torch.float32, device=like.device) * step
    first = place.long()
    return first, (first + 1).clamp_max(length - 1), (place - first).to(like.dtype)
