"""One shard of a cache: its images encoded in chunks that are always the same."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffmoe.checkpoint import Parts
from diffmoe.codec import ENCODED_AT_ONCE
from diffmoe.data import Chunk, ChunkReader, Shard, Skipped, shard_file, write_shard
from diffmoe.errors import DataError
from diffmoe.experiments.preparing.work import Work

__all__ = ["Made", "changed", "drop_changed", "keep_made", "make_shard", "read_made"]

_FACTS = "shard.json"


@dataclass(frozen=True)
class Made:
    """A shard, what was left out of it, and the images it is of."""

    shard: Shard
    skipped: tuple[Skipped, ...]
    state: str  # of all its images, taken before the first of them was read
    damaged: str  # the same of those left out

    def is_of(self, work: Work, number: int) -> bool:
        """Whether the images are still those that the shard was made of."""
        return (self.state, self.damaged) == (work.state(number), work.state_of(self.skipped))


def make_shard(
    work: Work, reader: ChunkReader, number: int, aside: Path, tell: Callable[[int], object]
) -> Made:
    """Write shard `number` and its facts into a folder, telling how many images were read.

    Raises DataError naming an image that cannot be read or is encoded to no numbers.
    """
    moments, state = list[np.ndarray](), work.state(number)
    indices, skipped = list[int](), list[Skipped]()
    for chunk in reader.read(work.images(number)):
        moments.append(_encoded(work, chunk))
        indices += chunk.indices
        skipped += [Skipped(index, str(error)) for index, error in chunk.damaged]
        tell(len(chunk.indices) + len(chunk.damaged))
    index = np.array(indices, dtype=np.int64)
    labels = work.source.labels.numpy()[index]
    shard = write_shard(aside / shard_file(number), np.concatenate(moments), labels, index)
    made = Made(shard, tuple(skipped), state, work.state_of(skipped))
    keep_made(aside, made)
    return made


def keep_made(aside: Path, made: Made) -> None:
    """Write the facts of a shard beside it."""
    (aside / _FACTS).write_text(json.dumps(asdict(made), indent=1))


def read_made(part: Path) -> Made:
    """The facts of a shard that lies in a part."""
    content = json.loads((part / _FACTS).read_text())
    skipped = tuple(Skipped(**one) for one in content["skipped"])
    return Made(Shard(**content["shard"]), skipped, content["state"], content["damaged"])


def changed(work: Work, parts: Parts, number: int) -> bool:
    """Whether the images of a part that is done are others now; a part that is gone is none."""
    try:
        return not read_made(parts.path(number)).is_of(work, number)
    except FileNotFoundError:  # another process dropped it, or ended the work
        return False


def drop_changed(work: Work, parts: Parts) -> int:
    """Remove the parts whose own images changed since; how many they were."""
    count = 0
    for number in parts.done:
        if changed(work, parts, number):
            _drop(parts, parts.path(number))
            count += 1
    return count


def _drop(parts: Parts, part: Path) -> None:
    """Remove a part so that a kill in between leaves nothing that looks like one."""
    aside = parts.scratch(f"{part.name}-{os.urandom(4).hex()}")
    try:
        part.rename(aside)
    except FileNotFoundError:  # another process was faster
        return
    shutil.rmtree(aside, ignore_errors=True)


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
