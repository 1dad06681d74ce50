"""Latent caches to read from, made as `diffmoe prepare` makes them."""

from pathlib import Path
from typing import Any

import numpy as np

from diffmoe.config import AutoencoderCodec
from diffmoe.data import (
    CacheRecord,
    Encoder,
    Origin,
    shard_file,
    write_labels,
    write_record,
    write_shard,
)

IDENTITY = "AutoencoderKL sha256:0123456789abcdef scale 0.5 shift 0.25"
CODEC = AutoencoderCodec(path="some-one/not-at-hand", factor=2, scale=0.5, shift=0.25)
SIZES = (4, 0, 3)  # images of each shard; all of the second were left out
MOMENTS = np.random.default_rng(0).normal(size=(7, 2, 2, 5, 4, 4)).astype(np.float32)
LABELS = np.array([0, 2, 1, 1, 0, 2, 2])


def write_cache(
    folder: Path,
    *,
    dtype: Any = "float32",
    flip: bool = True,
    sizes: tuple[int, ...] = SIZES,
    moments: np.ndarray = MOMENTS,
    labels: np.ndarray = LABELS,
    **changes: Any,
) -> Path:
    """A cache of 7 images in the classes bird, cat and dog."""
    folder.mkdir(parents=True)
    shards, first = [], 0
    for number, size in enumerate(sizes):
        part = slice(first, first + size)
        stored = moments[part, : 1 + flip].astype(dtype)
        index = np.arange(7)[part]
        shards.append(write_shard(folder / shard_file(number), stored, LABELS[part], index))
        first += size
    facts: dict[str, Any] = {
        "autoencoder": Encoder(IDENTITY, "some/place", 5, 2, 0.5, 0.25),
        "source": Origin("7 images sha256:00", "images", 7),
        "side": 8,
        "dtype": dtype,
        "flip": flip,
        "shard_images": 4,
        "shards": tuple(shards),
        "labels": write_labels(folder, labels),
        "class_names": ("bird", "cat", "dog"),
        "skipped": (),
    }
    write_record(folder, CacheRecord(**(facts | changes)))
    return folder
