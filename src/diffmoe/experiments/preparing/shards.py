"""One shard of a cache: its images encoded in chunks that are always the same."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffmoe.codec import ENCODED_AT_ONCE
from diffmoe.data import Chunk, ChunkReader, Shard, Skipped, shard_file, write_shard
from diffmoe.errors import DataError
from diffmoe.experiments.preparing.work import Work

__all__ = ["Made", "keep_made", "make_shard", "read_made"]

_FACTS = "shard.json"


@dataclass(frozen=True)
class Made:
    """A shard, and what was left out of it."""

    shard: Shard
    skipped: tuple[Skipped, ...]


def make_shard(
    work: Work, reader: ChunkReader, number: int, aside: Path, tell: Callable[[int], object]
) -> Made:
    """Write shard `number` and its facts into a folder, telling how many images were read.

    Raises DataError naming an image that cannot be read or is encoded to no numbers.
    """
    moments: list[np.ndarray] = []
    indices, skipped = list[int](), list[Skipped]()
    for chunk in reader.read(work.images(number)):
        moments.append(_encoded(work, chunk))
        indices += chunk.indices
        skipped += [Skipped(index, str(error)) for index, error in chunk.damaged]
        tell(len(chunk.indices) + len(chunk.damaged))
    index = np.array(indices, dtype=np.int64)
    labels = work.source.labels.numpy()[index]
    shard = write_shard(aside / shard_file(number), np.concatenate(moments), labels, index)
    made = Made(shard, tuple(skipped))
    keep_made(aside, made)
    return made


def keep_made(aside: Path, made: Made) -> None:
    """Write the facts of a shard beside it."""
    (aside / _FACTS).write_text(json.dumps(asdict(made), indent=1))


def read_made(part: Path) -> Made:
    """The facts of a shard that lies in a part."""
    content = json.loads((part / _FACTS).read_text())
    skipped = tuple(Skipped(**one) for one in content["skipped"])
    return Made(Shard(**content["shard"]), skipped)


@torch.inference_mode()
def _encoded(work: Work, chunk: Chunk) -> np.ndarray:
    """Posteriors (B, mirrors, 2, C, h, w) of a chunk, as they are stored."""
    if not chunk.indices:
        latent = work.side // work.autoencoder.config.factor
        shape = (0, 1 + work.flip, 2, work.autoencoder.channels, latent, latent)
        return np.zeros(shape, work.dtype)
    images = _padded(chunk.images).to(work.device)
    views = [images, images.flip(-1)] if work.flip else [images]
    moments = torch.stack([work.autoencoder.moments(view) for view in views], dim=1)
    stored = moments[: len(chunk.indices)].to(getattr(torch, work.dtype)).cpu()
    _refuse_no_number(work, chunk, stored)
    return stored.numpy()


def _padded(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "n 3 H W"]:
    """As many images as training encodes at once, the last ones grey: rounding depends on it."""
    missing = ENCODED_AT_ONCE - len(images)
    return torch.cat([images, images.new_zeros(missing, *images.shape[1:])])


def _refuse_no_number(work: Work, chunk: Chunk, stored: Float[Tensor, "B M 2 C h w"]) -> None:
    finite = stored.isfinite().flatten(1).all(dim=1).tolist()
    if not all(finite):
        index = chunk.indices[finite.index(False)]
        raise DataError(
            f"the posterior of image {index} holds NaN or infinity as {work.dtype}",
            where=work.source.pictures.name(index),
            remedy="use another --autoencoder, or --dtype float32",
        )
