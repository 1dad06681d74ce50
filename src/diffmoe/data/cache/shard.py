"""A file of posteriors: written with a checksum for each, read one by one and checked.

The checksums lie in the file, and a digest of them in the record of the cache: a file of another
cache, or one in the place of another, is noticed when the cache is opened.

Posteriors are read with `pread` and not through a mapping: a file cut short or a disk that fails
is an error then, while a mapping would kill the process.
"""

import hashlib
import json
import os
import zlib
from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from safetensors.numpy import save_file
from torch import Tensor

from diffmoe.data.cache.record import AGAIN, CACHE, CacheRecord, Shard
from diffmoe.errors import DataError

__all__ = ["Shards", "write_shard"]

_DTYPES = {"float32": "F32", "float16": "F16"}  # numpy's names to those in a file
_LENGTH = 8  # bytes that say how long the header is
_SMALL = ("crc32", "index", "labels")  # tensors beside the posteriors
_MOST_OPEN = 128  # files: a process may have a thousand or so


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
    return Shard(path.name, len(moments), size, digest, _Table.read(_File(path), size).digest)


class _Layout(NamedTuple):
    """Where the posteriors of a shard begin, and what each of them sums up to."""

    first: int  # byte
    sums: np.ndarray  # (n, mirrors)


class _Table(NamedTuple):
    """All of a shard but its posteriors."""

    header: bytes
    entries: dict[str, dict[str, Any]]  # of the header: dtype, shape and place of each tensor
    first: int  # byte of the file from which places count
    parts: dict[str, bytes]  # contents by the names in `_SMALL`

    @classmethod
    def read(cls, file: "_File", size: int) -> "_Table":
        """That of a file; raises ValueError or the like if its header is damaged."""
        length = int.from_bytes(file.read(0, _LENGTH), "little")
        if length > size:
            raise ValueError("the header is longer than the file")
        header = file.read(_LENGTH, length)
        entries, first = json.loads(header), _LENGTH + length
        places = [(name, *entries[name]["data_offsets"]) for name in _SMALL]
        parts = {name: file.read(first + begin, end - begin) for name, begin, end in places}
        return cls(header, entries, first, parts)

    @property
    def digest(self) -> str:
        """What tells the shard from any other: its posteriors count by their checksums."""
        total = hashlib.sha256(self.header)
        for part in self.parts.values():
            total.update(part)
        return total.hexdigest()


class _File:
    """An open file that is closed with the last reference to it."""

    def __init__(self, path: Path) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)

    def read(self, first: int, length: int) -> bytes:
        """Some bytes; fewer at the end of the file."""
        return os.pread(self.number, length, first)


class Shards:
    """Every posterior of a cache by the number of its image."""

    def __init__(self, folder: Path, record: CacheRecord) -> None:
        self._folder, self._record = folder, record
        self._ends = list(accumulate(shard.images for shard in record.shards))
        self._bytes = int(np.prod(record.block)) * np.dtype(record.dtype).itemsize
        self._layouts: dict[int, _Layout] = {}
        self._files: OrderedDict[int, _File] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Everything but open files: a process that takes the shards over opens its own."""
        return {**vars(self), "_files": OrderedDict()}

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
        for number, shard in enumerate(self._record.shards):
            try:
                self._layout(number, _File(self._folder / shard.file))
            except OSError as error:
                raise self._damage(number, None, error.strerror or str(error)) from error

    def read(self, index: int, mirror: bool) -> Float[Tensor, "2 C h w"]:
        """The posterior of an image or of its mirror image; raises DataError if it is damaged."""
        number = bisect_right(self._ends, index)
        row = index - (self._ends[number - 1] if number else 0)
        try:
            file = self._open(number)
            layout = self._layout(number, file)
            place = row * self._record.mirrors + mirror
            content = file.read(layout.first + place * self._bytes, self._bytes)
        except OSError as error:
            raise self._damage(number, index, error.strerror or str(error)) from error
        if len(content) != self._bytes or zlib.crc32(content) != layout.sums[row, int(mirror)]:
            raise self._damage(number, index, "its checksum is another")
        values = np.frombuffer(content, self._record.dtype).astype(np.float32)
        if not np.isfinite(values).all():
            raise self._damage(number, index, "it holds NaN or infinity")
        return torch.from_numpy(values).view(self._record.block)

    def _open(self, number: int) -> _File:
        if number in self._files:
            self._files.move_to_end(number)
        else:
            self._files[number] = _File(self._folder / self._record.shards[number].file)
            if len(self._files) > _MOST_OPEN:
                self._files.popitem(last=False)
        return self._files[number]

    def _layout(self, number: int, file: _File) -> _Layout:
        if number not in self._layouts:
            try:
                self._layouts[number] = self._read_layout(number, file)
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
                raise self._damage(number, None, "its header is damaged") from error
        return self._layouts[number]

    def _read_layout(self, number: int, file: _File) -> _Layout:
        shard, record = self._record.shards[number], self._record
        table = _Table.read(file, shard.bytes)
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
        sums = np.frombuffer(table.parts["crc32"], "<u4")
        return _Layout(table.first + moments["data_offsets"][0], sums.reshape(expected[:2]))

    def _damage(self, number: int, index: int | None, why: str) -> DataError:
        file = self._record.shards[number].file
        which = "" if index is None else f"image {index} of the cache, in "
        return DataError(
            f"{which}{file} is damaged ({why})", where=str(self._folder / file), remedy=AGAIN
        )
