"""A file of vectors of captions: those of real tokens only, one caption after another.

Captions are named by the hash of their text and lie in the order of these hashes. Each caption's
vectors are held against a checksum.
"""

import hashlib
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import BFloat16
from safetensors.torch import save_file
from torch import Tensor

from diffmoe.data.cache.caption_record import CaptionShard
from diffmoe.data.cache.open_files import OpenFiles, SmallTensors

__all__ = ["HASH", "CaptionTable", "caption_shard_file", "write_caption_shard"]

HASH = 32  # bytes of a caption's SHA-256
_SMALL = ("crc32", "hashes", "lengths")  # tensors beside the vectors


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
    def read(cls, files: OpenFiles, name: str, size: int) -> "CaptionTable":
        """That of a file of `size` bytes; ValueError or the like if its header is damaged."""
        read = SmallTensors.read(files, name, size, _SMALL)
        sums, hashes, lengths = (
            np.frombuffer(part, dtype)
            for part, dtype in zip(read.parts, ("<u4", "u1", "<i4"), strict=True)
        )
        vectors = read.entries["vectors"]
        if vectors["dtype"] != "BF16":
            raise ValueError("the vectors are of another dtype")
        rows, width = vectors["shape"]
        place = read.first + vectors["data_offsets"][0]
        return cls(read.digest, place, (rows, width), sums, hashes.reshape(-1, HASH), lengths)
