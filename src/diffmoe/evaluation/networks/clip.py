"""CLIP score: how well images fit their captions (Hessel et al. 2021)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from diffmoe.codec import (
    CONFIG,
    WEIGHTS,
    Wanted,
    blocks,
    exact_arithmetic,
    fingerprint_of,
    load_model,
    load_tokenizer,
    locate,
)
from diffmoe.errors import ConfigError
from diffmoe.evaluation.networks.features import BLOCK, check_images
from diffmoe.evaluation.networks.resize import SIDE, normalized, resize_and_crop

__all__ = ["CLIP", "ClipNetwork", "ClipScores", "clip_scores", "load_clip"]

CLIP = Wanted(
    title="CLIP",
    kinds=("clip",),
    model="CLIPModel",
    example="openai/clip-vit-large-patch14",
    licence="MIT",
    files=(
        (CONFIG, WEIGHTS, "tokenizer.json"),
        (CONFIG, WEIGHTS, "vocab.json", "merges.txt"),
    ),
)
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ClipScores:
    """100 max(cos(image, caption), 0) of each pair: without the paper's factor 2.5, as usual."""

    scores: Float[Tensor, "N"]  # float64
    cut: int  # captions longer than what the network reads; their ends did not count

    @property
    def mean(self) -> float:
        """The score of the set."""
        return float(self.scores.mean())


class ClipNetwork:
    """Directions of images and of captions in one space; each in blocks, like all features."""

    name = "clip"

    def __init__(self, model: Any, tokenizer: Any, fingerprint: str) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._length = model.config.text_config.max_position_embeddings
        self.fingerprint = fingerprint

    def of_images(self, images: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B F"]:
        """Unit vectors of 8-bit RGB images: short side to 224 pixels, middle square."""
        check_images(images)
        with exact_arithmetic(self._model.device):
            return torch.cat(
                [self._of_images(block)[:count] for block, count in blocks(images, BLOCK)]
            )

    def of_captions(self, captions: list[str]) -> tuple[Float[Tensor, "B F"], int]:
        """Unit vectors of captions, and how many captions were cut at the network's length."""
        tokens, cut = self._tokens(captions)
        with exact_arithmetic(self._model.device):
            parts = [self._of_tokens(block)[:count] for block, count in blocks(tokens, BLOCK)]
        return torch.cat(parts), cut

    def _tokens(self, captions: list[str]) -> tuple[Int[Tensor, "B 2 T"], int]:
        """Tokens and mask of captions, all of the network's length, and how many were longer."""
        whole = self._tokenizer(captions, verbose=False)["input_ids"]
        cut = sum(len(row) > self._length for row in whole)
        rows = self._tokenizer(
            captions,
            padding="max_length",
            truncation=True,
            max_length=self._length,
            return_tensors="pt",
        )
        return torch.stack([rows["input_ids"], rows["attention_mask"]], dim=1), cut

    def _of_images(self, images: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B F"]:
        pixels = normalized(resize_and_crop(images).to(self._model.device), _MEAN, _DEVIATION)
        return _directions(self._model.get_image_features(pixel_values=pixels))

    def _of_tokens(self, tokens: Int[Tensor, "B 2 T"]) -> Float[Tensor, "B F"]:
        ids, mask = tokens.to(self._model.device).unbind(dim=1)
        return _directions(self._model.get_text_features(input_ids=ids, attention_mask=mask))


def _directions(found: Any) -> Float[Tensor, "B F"]:
    """Unit vectors in float64, on the CPU; some versions of transformers wrap them in a record."""
    return functional.normalize(getattr(found, "pooler_output", found).double(), dim=1).cpu()


def clip_scores(
    images: UInt8[Tensor, "N 3 H W"], captions: list[str], network: ClipNetwork
) -> ClipScores:
    """The score of each image with the caption of the same place; ConfigError if some lack one."""
    if len(images) != len(captions):
        raise ConfigError(
            f"{len(images)} images and {len(captions)} captions make no pairs",
            remedy="give one caption for each image",
        )
    seen = network.of_images(images)
    read, cut = network.of_captions(captions)
    return ClipScores(100 * (seen * read).sum(dim=1).clamp_min(0), cut)


def load_clip(
    place: str | Path = CLIP.example, *, device: torch.device | str = "cpu"
) -> ClipNetwork:
    """The network of a folder or of a hub name whose files are in the cache."""
    folder = locate(place, CLIP)
    model = load_model(folder, CLIP, device)
    if (side := model.config.vision_config.image_size) != SIDE:
        raise ConfigError(
            f"the network sees images of {side} pixels, and only {SIDE} are prepared",
            where=str(folder.absolute()),
            remedy=f"name a network of {SIDE} pixels, {CLIP.example} for one",
        )
    return ClipNetwork(model, load_tokenizer(folder, CLIP), fingerprint_of(folder, CLIP))
