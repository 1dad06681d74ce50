"""A file of vectors of captions: those of real tokens only, one caption after another.

Captions are named by the hash of their text and lie in the order of these hashes. Vectors are read
with `pread`, so a file cut short is an error and does not kill the process, and each caption's are
held against a checksum.
"""

import hashlib
import json
import os
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import BFloat16
from safetensors.torch import save_file
from torch import Tensor

from diffmoe.data.cache.caption_record import CaptionShard

__all__ = ["HASH", "CaptionTable", "OpenFiles", "caption_shard_file", "write_caption_shard"]

HASH = 32  # bytes of a caption's SHA-256
_LENGTH = 8  # bytes that say how long the header is
_SMALL = ("crc32", "hashes", "lengths")  # tensors beside the vectors
_MOST_OPEN = 128  # files: a process may have a thousand or so


def caption_shard_file(number: int) -> str:
    """The name of a shard."""
    return f"captions-{number:06d}.safetensors"


def write_caption_shard(
    path: Path, vectors: list[BFloat16[Tensor, "n W"]], hashes: np.ndarray, cut: int
) -> CaptionShard:
    """Write the vectors of captions, in the order of their hashes (N, 32), `cut` of them cut."""
    packed = torch.cat(vectors).contiguous()
    sums = np.array([zlib.crc32(_bytes(one)) for one in vectors], "<u4")
    lengths = np.array([len(one) for one in vectors], "<i4")
    content = {"crc32": sums, "hashes": np.array(hashes), "lengths": lengths}
    tensors = {name: torch.from_numpy(array) for name, array in content.items()}
    save_file({"vectors": packed, **tensors}, path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = path.stat().st_size
    files = OpenFiles(path.parent)
    table = CaptionTable.read(files, path.name, size).digest
    return CaptionShard(path.name, len(vectors), cut, size, digest, table)


def _bytes(vectors: BFloat16[Tensor, "n W"]) -> bytes:
    return vectors.contiguous().view(torch.int16).numpy().tobytes()


class CaptionTable(NamedTuple):
    """All of a shard but its vectors."""

    digest: str  # tells the shard from any other: vectors count by their checksums
    first: int  # byte of the first vector
    vectors: tuple[int, int]  # how many there are, and of what width
    sums: np.ndarray  # (N,)
    hashes: np.ndarray  # (N, 32)
    lengths: np.ndarray  # (N,)

    @classmethod
    def read(cls, files: "OpenFiles", name: str, size: int) -> "CaptionTable":
        """That of a file of `size` bytes; ValueError or the like if its header is damaged."""
        length = int.from_bytes(files.read(name, 0, _LENGTH), "little")
        if length > size:
            raise ValueError("the header is longer than the file")
        header = files.read(name, _LENGTH, length)
        entries, first = json.loads(header), _LENGTH + length
        places = [(entries[small]["data_offsets"], first) for small in _SMALL]
        parts = [files.read(name, start + at, to - at) for (at, to), start in places]
        total = hashlib.sha256(header)
        for part in parts:
            total.update(part)
        sums, hashes, lengths = (
            np.frombuffer(part, dtype)
            for part, dtype in zip(parts, ("<u4", "u1", "<i4"), strict=True)
        )
        vectors = entries["vectors"]
        if vectors["dtype"] != "BF16":
            raise ValueError("the vectors are of another dtype")
        rows, width = vectors["shape"]
        place = first + vectors["data_offsets"][0]
        return cls(total.hexdigest(), place, (rows, width), sums, hashes.reshape(-1, HASH), lengths)


class OpenFiles:
    """Files of a folder, of which the ones used last are kept open."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: OrderedDict[str, _File] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Everything but open files: a process that takes the cache over opens its own."""
        return {"_folder": self._folder, "_open": OrderedDict()}

    def read(self, name: str, first: int, length: int) -> bytes:
        """Some bytes of a file; fewer at its end."""
        if name in self._open:
            self._open.move_to_end(name)
        else:
            self._open[name] = _File(self._folder / name)
            if len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)
        return os.pread(self._open[name].number, length, first)


class _File:
    """An open file that is closed with the last reference to it."""

    def __init__(self, path: Path) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)
