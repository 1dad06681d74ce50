"""The Inception network as one of the feature networks."""

from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from diffmoe.codec import blocks, exact_arithmetic
from diffmoe.evaluation.inception import Inception
from diffmoe.evaluation.inception_weights import load_inception
from diffmoe.evaluation.networks.features import BLOCK, Features, check_images

__all__ = ["InceptionNetwork", "load_inception_network"]


class InceptionNetwork:
    """Pooled and spatial features and the probabilities of the inception score."""

    name = "inception"
    side = None

    def __init__(self, network: Inception) -> None:
        self._network = network
        self.fingerprint = network.fingerprint

    def features(self, images: UInt8[Tensor, "B 3 H W"]) -> Features:
        """Features of 8-bit RGB images of any size, resized as TensorFlow 1 does."""
        check_images(images)
        with exact_arithmetic(self._network.fc.weight.device):
            parts = [self._of_block(block).first(count) for block, count in blocks(images, BLOCK)]
        return Features.joined(parts)

    def _of_block(self, images: UInt8[Tensor, "B 3 H W"]) -> Features:
        found = self._network(images.to(self._network.fc.weight.device))
        return Features(found.pooled.float(), found.spatial.float(), found.probabilities).on_cpu()


def load_inception_network(
    path: str | Path | None = None, *, device: torch.device | str = "cpu"
) -> InceptionNetwork:
    """The network of a weight file, found as `load_inception` finds it."""
    return InceptionNetwork(load_inception(path, device=device))
