"""DINOv2 features, of the distance that agrees best with people (Stein et al. 2023)."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from diffmoe.codec import (
    CONFIG,
    WEIGHTS,
    Wanted,
    blocks,
    exact_arithmetic,
    fingerprint_of,
    load_model,
    locate,
)
from diffmoe.errors import ConfigError
from diffmoe.evaluation.networks.features import BLOCK, Features, check_images
from diffmoe.evaluation.networks.resize import SIDE, normalized, resize_whole

__all__ = ["DINO", "DinoNetwork", "load_dino"]

DINO = Wanted(
    title="DINOv2",
    kinds=("dinov2",),
    model="Dinov2Model",
    example="facebook/dinov2-large",
    licence="Apache-2.0",
    files=((CONFIG, WEIGHTS),),
)
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


class DinoNetwork:
    """The class token after the last normalization; the field's numbers are of ViT-L/14.

    transformers spreads the grid of positions over 224 pixels a little differently than the
    network's first code did: compare distances whose two sides were both computed here.
    """

    name = "dinov2"
    side = None

    def __init__(self, model: Any, fingerprint: str) -> None:
        self._model = model
        self.fingerprint = fingerprint

    def features(self, images: UInt8[Tensor, "B 3 H W"]) -> Features:
        """Features of 8-bit RGB images of any size, resized to 224 x 224 by Pillow."""
        check_images(images)
        with exact_arithmetic(self._model.device):
            parts = [self._of_block(block).first(count) for block, count in blocks(images, BLOCK)]
        return Features.joined(parts)

    def _of_block(self, images: UInt8[Tensor, "B 3 H W"]) -> Features:
        pixels = normalized(resize_whole(images).to(self._model.device), _MEAN, _DEVIATION)
        return Features(self._model(pixel_values=pixels).last_hidden_state[:, 0]).on_cpu()


def load_dino(
    place: str | Path = DINO.example, *, device: torch.device | str = "cpu"
) -> DinoNetwork:
    """The network of a folder or of a hub name whose files are in the cache."""
    folder = locate(place, DINO)
    model = load_model(folder, DINO, device)
    if SIDE % (patch := model.config.patch_size):
        raise ConfigError(
            f"patches of {patch} pixels do not fill {SIDE} pixels",
            where=str(folder.absolute()),
            remedy=f"name a network with patches of 14 pixels, {DINO.example} for one",
        )
    return DinoNetwork(model, fingerprint_of(folder, DINO))
