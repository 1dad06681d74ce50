"""A file of posteriors: written with a checksum for each, read one by one and checked.

The checksums lie in the file, and a digest of them in the record of the cache: a file of another
cache, or one in the place of another, is noticed when the cache is opened.
"""

import hashlib
import zlib
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from safetensors.numpy import save_file
from torch import Tensor

from diffmoe.data.cache.open_files import OpenFiles, SmallTensors
from diffmoe.data.cache.record import AGAIN, CACHE, CacheRecord, Shard
from diffmoe.errors import DataError

__all__ = ["Shards", "write_shard"]

_DTYPES = {"float32": "F32", "float16": "F16"}  # numpy's names to those in a file
_SMALL = ("crc32", "index", "labels")  # tensors beside the posteriors


def write_shard(path: Path, moments: np.ndarray, labels: np.ndarray, index: np.ndarray) -> Shard:
    """Write posteriors (n, mirrors, 2, C, h, w) of images with these labels and source indices."""
    moments = np.ascontiguousarray(moments)
    blocks = moments.reshape(-1, *moments.shape[2:])
    sums = np.array([zlib.crc32(block.data) for block in blocks], dtype="<u4")
    content = {
        "moments": moments,
        "labels": labels.astype("<i8"),
        "crc32": sums.reshape(moments.shape[:2]),
        "index": index.astype("<i8"),
    }
    save_file(content, path)
    path.chmod(0o644)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = path.stat().st_size
    table = _read(OpenFiles(path.parent), path.name, size).digest
    return Shard(path.name, len(moments), size, digest, table)


class _Layout(NamedTuple):
    """Where the posteriors of a shard begin, and what each of them sums up to."""

    first: int  # byte
    sums: np.ndarray  # (n, mirrors)


def _read(files: OpenFiles, name: str, size: int) -> SmallTensors:
    """All of a shard but its posteriors."""
    return SmallTensors.read(files, name, size, _SMALL)


class Shards:
    """Every posterior of a cache by the number of its image."""

    def __init__(self, folder: Path, record: CacheRecord) -> None:
        self._folder, self._record = folder, record
        self._ends = list(accumulate(shard.images for shard in record.shards))
        self._bytes = int(np.prod(record.block)) * np.dtype(record.dtype).itemsize
        self._layouts: dict[int, _Layout] = {}
        self._files = OpenFiles(folder)

    def refuse_incomplete(self) -> None:
        """Raise DataError for a shard that is missing or has another size than once."""
        for shard in self._record.shards:
            place = self._folder / shard.file
            size = place.stat().st_size if place.is_file() else None
            if size != shard.bytes:
                what = "is missing" if size is None else f"has {size} bytes, not {shard.bytes}"
                raise DataError(f"{shard.file} {what}", where=str(place), remedy=AGAIN)

    def refuse_foreign(self) -> None:
        """Raise DataError for a shard that is not the one which was written in its place."""
        for number in range(len(self._record.shards)):
            try:
                self._layout(number, OpenFiles(self._folder))  # none stays open
            except OSError as error:
                raise self._damage(number, None, error.strerror or str(error)) from error

    def read(self, index: int, mirror: bool) -> Float[Tensor, "2 C h w"]:
        """The posterior of an image or of its mirror image; raises DataError if it is damaged."""
        number = bisect_right(self._ends, index)
        row = index - (self._ends[number - 1] if number else 0)
        try:
            layout = self._layout(number, self._files)
            place = row * self._record.mirrors + mirror
            first = layout.first + place * self._bytes
            content = self._files.read(self._record.shards[number].file, first, self._bytes)
        except OSError as error:
            raise self._damage(number, index, error.strerror or str(error)) from error
        if len(content) != self._bytes or zlib.crc32(content) != layout.sums[row, int(mirror)]:
            raise self._damage(number, index, "its checksum is another")
        values = np.frombuffer(content, self._record.dtype).astype(np.float32)
        if not np.isfinite(values).all():
            raise self._damage(number, index, "it holds NaN or infinity")
        return torch.from_numpy(values).view(self._record.block)

    def _layout(self, number: int, files: OpenFiles) -> _Layout:
        if number not in self._layouts:
            try:
                self._layouts[number] = self._read_layout(number, files)
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
                raise self._damage(number, None, "its header is damaged") from error
        return self._layouts[number]

    def _read_layout(self, number: int, files: OpenFiles) -> _Layout:
        shard, record = self._record.shards[number], self._record
        table = _read(files, shard.file, shard.bytes)
        expected = [shard.images, record.mirrors, *record.block]
        moments = table.entries["moments"]
        if (moments["shape"], moments["dtype"]) != (expected, _DTYPES[record.dtype]):
            raise ValueError("the posteriors have another shape")
        if table.digest != shard.table:
            raise DataError(
                f"{shard.file} is damaged, or another shard lies in its place: its checksums are"
                f" not those that {CACHE} names",
                where=str(self._folder / shard.file),
                remedy=AGAIN,
            )
        sums = np.frombuffer(table.parts[0], "<u4")
        return _Layout(table.first + moments["data_offsets"][0], sums.reshape(expected[:2]))

    def _damage(self, number: int, index: int | None, why: str) -> DataError:
        file = self._record.shards[number].file
        which = "" if index is None else f"image {index} of the cache, in "
        return DataError(
            f"{which}{file} is damaged ({why})", where=str(self._folder / file), remedy=AGAIN
        )
