"""Features of a set of images, part by part, and the parts added up to what metrics need."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffmoe.checkpoint import storage_errors
from diffmoe.data import Notes
from diffmoe.errors import DataError
from diffmoe.evaluation.metrics import Estimate, InceptionScoreSums
from diffmoe.evaluation.moments import Moments
from diffmoe.evaluation.networks import BLOCK, FeatureNetwork
from diffmoe.evaluation.sets import ImageSet, some

__all__ = ["PART", "Described", "describe", "extract", "part_of"]

PART = 16 * BLOCK  # images of a part: whole blocks, so that no feature depends on where it is cut
_FEATURES = "features.safetensors"
_READERS = 4  # threads: decoders work while the network does
_DIGEST = 16  # bytes of an image's hash


def part_of(number: int, count: int) -> range:
    """The images of a part of a set of `count`."""
    return range(number * PART, min((number + 1) * PART, count))


def extract(images: ImageSet, network: FeatureNetwork, numbers: range, folder: Path) -> None:
    """Write the features of images `numbers` of a set, with their hashes, into a folder.

    Raises DataError for an image that cannot be read or has another size than the first.
    """
    pixels, notes = read_images(images, numbers)
    features = network.features(pixels)
    found = {
        "pooled": features.pooled,
        "digests": _digests(pixels),
        "notes": torch.cat([_grey(pixels), _stored(notes)], dim=1),
        "size": torch.tensor(pixels.shape[2:]),
    }
    if features.spatial is not None:
        found["spatial"] = features.spatial
    if features.probabilities is not None:
        found["probabilities"] = features.probabilities
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, folder / _FEATURES)


def read_images(
    images: ImageSet, numbers: Iterable[int]
) -> tuple[UInt8[Tensor, "n 3 H W"], list[Notes]]:
    """Images of a set as one tensor, and what each was before."""
    numbers = list(numbers)
    first = images.read(0)[0].shape
    with ThreadPoolExecutor(_READERS) as pool:
        found = list(pool.map(images.read, numbers))
    for number, (pixels, _) in zip(numbers, found, strict=True):
        if pixels.shape != first:
            raise DataError(
                f"image {number} is {pixels.shape[1]} x {pixels.shape[2]} pixels, the first one"
                f" {first[1]} x {first[2]}",
                where=images.name(number),
                remedy="give images of one size; a reference may be cropped with --crop",
            )
    return torch.stack([pixels for pixels, _ in found]), [notes for _, notes in found]


def _grey(pixels: UInt8[Tensor, "n 3 H W"]) -> Bool[Tensor, "n 1"]:
    """Which images hold no colour, however they are stored."""
    return (pixels == pixels[:, :1]).flatten(1).all(dim=1, keepdim=True)


def _stored(notes: list[Notes]) -> Bool[Tensor, "n 2"]:
    return torch.tensor([[one.alpha, one.converted] for one in notes])


def _digests(pixels: UInt8[Tensor, "n 3 H W"]) -> UInt8[Tensor, "n B"]:
    rows = [blake2b(image.numpy().tobytes(), digest_size=_DIGEST).digest() for image in pixels]
    return torch.from_numpy(np.frombuffer(b"".join(rows), np.uint8).copy().reshape(-1, _DIGEST))


@dataclass(frozen=True)
class Described:
    """A set of images as metrics see it; its size is that of the statistics, not of the set."""

    count: int
    side: tuple[int, int]  # height and width
    sha256: str  # of all pixels
    pooled: Moments
    spatial: Moments | None
    features: Float[Tensor, "K F"]  # float32, of all images or of some
    inception_score: Estimate | None
    read_as: Int[Tensor, " N"] | None  # the likeliest class of each image
    duplicates: int  # images that an earlier one equals
    grey: int  # images without colour
    alpha: int  # that had transparency, laid on white
    converted: int  # that were stored as 16-bit, CMYK or palette


class _Places(Protocol):
    """Where parts lie."""

    def path(self, number: int) -> Path: ...


def describe(
    parts: _Places, numbers: range, count: int, *, keep: int, score: bool, scratch: Path
) -> Described:
    """The parts `numbers` of a work, which hold the features of `count` images, added up in order.

    Features of at most `keep` images are kept, in a file at `scratch` that is mapped: memory does
    not grow with the number of images. `score` adds up the Inception score.
    """
    kept = np.array(some(count, keep), np.int64)
    sums = _Sums(count, kept, score, scratch)
    for start, part in zip(range(0, count, PART), _loaded(parts, numbers), strict=True):
        sums.add(start, part)
    return sums.described()


def _loaded(parts: _Places, numbers: range) -> Iterator[dict[str, Tensor]]:
    for number in numbers:
        yield load_file(parts.path(number) / _FEATURES)


class _Sums:
    """What grows part by part; of each image only its hash and likeliest class stay in memory."""

    def __init__(self, count: int, kept: np.ndarray, score: bool, scratch: Path) -> None:
        self._count, self._kept, self._scratch = count, kept, scratch
        self._pooled: Moments | None = None
        self._spatial: Moments | None = None
        self._features: np.ndarray | None = None
        splits = max(1, min(10, count // 2))
        self._score = InceptionScoreSums(count, splits=splits) if score else None
        self._digests: list[bytes] = []
        self._read_as: list[Tensor] = []
        self._notes = torch.zeros(3, dtype=torch.int64)
        self._side = (0, 0)

    def add(self, start: int, part: dict[str, Tensor]) -> None:
        """Take in the features of images `start`, `start + 1`, ..."""
        side = tuple(int(n) for n in part["size"])
        self._side = (side[0], side[1])
        pooled = part["pooled"]
        self._pooled = _merged(self._pooled, pooled)
        if "spatial" in part:
            self._spatial = _merged(self._spatial, part["spatial"])
        self._keep(start, pooled)
        if "probabilities" in part:
            self._read_as.append(part["probabilities"].argmax(dim=1))
            if self._score is not None:
                self._score.add(start, part["probabilities"])
        self._digests += [row.tobytes() for row in part["digests"].numpy()]
        self._notes += part["notes"].sum(dim=0)

    def _keep(self, start: int, pooled: Tensor) -> None:
        if self._features is None:
            self._features = _new_file(self._scratch, (len(self._kept), pooled.shape[1]))
        within = (self._kept >= start) & (self._kept < start + len(pooled))
        self._features[within] = pooled.numpy()[self._kept[within] - start]

    def described(self) -> Described:
        """The sums as what metrics take."""
        assert self._pooled is not None and self._features is not None  # a set has a part
        grey, alpha, converted = self._notes.tolist()
        return Described(
            count=self._count,
            side=self._side,
            sha256=sha256(b"".join(self._digests)).hexdigest(),
            pooled=self._pooled,
            spatial=self._spatial,
            features=torch.from_numpy(self._features),
            inception_score=None if self._score is None else self._score.estimate(),
            read_as=torch.cat(self._read_as) if self._read_as else None,
            duplicates=len(self._digests) - len(set(self._digests)),
            grey=grey,
            alpha=alpha,
            converted=converted,
        )


def _new_file(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """A mapped file for features, with room on the disk: a hole in it would end the process."""
    mapped = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    with storage_errors("features", path), path.open("r+b") as file:
        if hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return mapped


def _merged(so_far: Moments | None, features: Tensor) -> Moments:
    return (so_far or Moments.none(features.shape[1])).update(features)
