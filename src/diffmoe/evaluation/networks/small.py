"""A small convolutional classifier whose last stage is the feature of small images."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from diffmoe.codec import blocks, exact_arithmetic
from diffmoe.errors import ConfigError
from diffmoe.evaluation.networks.features import BLOCK, Features, check_images

__all__ = ["SIDES", "SmallClassifier", "SmallNetwork", "check_side", "hash_of", "made_of"]

SIDES = (8, 64)  # smallest and largest height and width of images
_STEM = 16  # channels while the image is halved to the side of the first stage
_WIDTHS = (32, 48, 64)  # channels of the three stages
_FIRST_SIDE = 16  # no stage works on a larger grid
_LAST_SIDE = 4  # no stage halves to a smaller one


class SmallClassifier(nn.Module):
    """Three stages of two convolutions, their mean over places, one linear layer."""

    def __init__(self, side: int, classes: int) -> None:
        super().__init__()
        layers, width = [], 3
        while side > _FIRST_SIDE:
            layers.append(_convolution(width, _STEM, stride=2))
            width, side = _STEM, -(-side // 2)
        for stage, channels in enumerate(_WIDTHS):
            stride = 2 if stage and side >= 2 * _LAST_SIDE else 1
            layers += [_convolution(width, channels, stride), _convolution(channels, channels, 1)]
            width, side = channels, -(-side // stride)
        self.stages = nn.Sequential(*layers)
        self.head = nn.Linear(width, classes)

    def forward(
        self, images: Float[Tensor, "B 3 H W"]
    ) -> tuple[Float[Tensor, "B F"], Float[Tensor, "B K"]]:
        """Features and logits of images in [-1, 1]."""
        pooled = self.stages(images).mean(dim=(2, 3))
        return pooled, self.head(pooled)


def _convolution(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


@dataclass(frozen=True)
class SmallNetwork:
    """The trained classifier: 64 features and the probabilities of the classes."""

    classifier: SmallClassifier
    side: int
    classes: int
    held_out_accuracy: float  # on a tenth of each class, which it has not seen
    fingerprint: str
    name: str = "small"

    def features(self, images: UInt8[Tensor, "B 3 H W"]) -> Features:
        """Features of 8-bit RGB images of the side it was trained on; DataError for others."""
        check_images(images, self.side)
        with exact_arithmetic(self._device):
            parts = [self._of_block(block).first(count) for block, count in blocks(images, BLOCK)]
        return Features.joined(parts)

    def to(self, device: torch.device | str) -> "SmallNetwork":
        """The same network on a device; its weights, and so its fingerprint, stay."""
        state = {name: tensor.to(device) for name, tensor in self.classifier.state_dict().items()}
        return made_of(state, self.side, self.classes, self.held_out_accuracy)

    @property
    def _device(self) -> torch.device:
        return self.classifier.head.weight.device

    def _of_block(self, images: UInt8[Tensor, "B 3 H W"]) -> Features:
        pooled, logits = self.classifier(images.to(self._device).float() / 127.5 - 1)
        return Features(pooled, None, logits.double().softmax(dim=1)).on_cpu()


def made_of(
    state: Mapping[str, Tensor], side: int, classes: int, held_out_accuracy: float
) -> SmallNetwork:
    """The frozen network of its tensors; RuntimeError if they are not those of its shape."""
    with torch.device("meta"):  # initial values would draw from the global generator
        classifier = SmallClassifier(side, classes)
    classifier.load_state_dict(dict(state), assign=True)
    classifier.requires_grad_(False).eval()
    return SmallNetwork(classifier, side, classes, held_out_accuracy, hash_of(state))


def hash_of(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors and their names, hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_side(images: Tensor) -> None:
    """Raise ConfigError unless the images are square and of a size the network is made for."""
    height, width = images.shape[2:]
    if height != width or not SIDES[0] <= height <= SIDES[1]:
        raise ConfigError(
            f"images of {height} x {width} pixels are none for the small network",
            remedy=f"give square images of {SIDES[0]} to {SIDES[1]} pixels or take another network",
        )
