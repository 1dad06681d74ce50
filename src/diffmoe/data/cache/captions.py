"""Vectors of captions that were encoded once, read by the text of the caption.

Only the table of hashes is in memory, 48 bytes a caption; vectors are read one by one.
"""

import hashlib
import zlib
from collections.abc import Iterable, Sequence
from itertools import accumulate, islice
from pathlib import Path

import numpy as np
import torch

from diffmoe.captions import Captions
from diffmoe.codec import quoted, utf8
from diffmoe.config import FeatureText
from diffmoe.data.cache.caption_record import (
    CAPTIONS,
    ENCODE_AGAIN,
    CaptionRecord,
    CaptionShard,
    read_caption_record,
)
from diffmoe.data.cache.caption_shard import HASH, CaptionTable
from diffmoe.data.cache.open_files import OpenFiles
from diffmoe.errors import ConfigError, DataError

__all__ = ["CaptionCache", "caption_hashes", "open_caption_cache"]

_AT_ONCE = 4096  # captions that are looked for together


def caption_hashes(captions: Iterable[str]) -> np.ndarray:
    """SHA-256 of the UTF-8 text of captions, as bytes (N, 32)."""
    digests = b"".join(hashlib.sha256(utf8(caption)).digest() for caption in captions)
    return np.frombuffer(digests, np.uint8).reshape(-1, HASH)


class CaptionCache:
    """What an encoder gave for many captions, as it would give it now; may go to other processes.

    A caption of blanks only says nothing and is in every cache.
    """

    def __init__(self, folder: Path, record: CaptionRecord) -> None:
        self.folder, self.record = folder, record
        made = record.encoder
        self.identity, self.kind, self.tokens, self.width = (
            *(made.identity, made.kind, made.tokens, made.width),
        )
        self._files = OpenFiles(folder)
        tables = [self._table(shard) for shard in record.shards]
        hashes = np.concatenate([np.zeros((0, HASH), np.uint8), *(one.hashes for one in tables)])
        self._hashes = _words(hashes)
        self._ends = list(accumulate(len(one.hashes) for one in tables))
        self._firsts, self._lengths, self._sums = _places(tables, self.width)
        self._refuse_disorder()

    def __len__(self) -> int:
        return len(self._hashes)

    def refuse_missing(self, captions: Sequence[str]) -> None:
        """Raise ConfigError if a caption is not in the cache."""
        number = self.missing(captions)
        if number is not None:
            raise ConfigError(
                f"caption {number} is not in the captions' cache: {quoted(captions[number])}",
                where=str(self.folder),
                remedy="set --text.cache to one that `diffmoe prepare` made of these captions, or"
                " leave it out to encode them while training",
            )

    def missing(self, captions: Iterable[str]) -> int | None:
        """The number of the first caption that is not in the cache, None if all are."""
        left, first = iter(captions), 0
        while some := list(islice(left, _AT_ONCE)):
            for place in np.flatnonzero(self._find(some) < 0).tolist():
                if some[place].strip():
                    return first + place
            first += len(some)
        return None

    def read(self, captions: Sequence[str]) -> Captions:
        """The vectors of captions; raises DataError if one is not there or damaged."""
        tokens = torch.zeros(len(captions), self.tokens, self.width, dtype=torch.bfloat16)
        mask = torch.zeros(len(captions), self.tokens, dtype=torch.bool)
        bits = tokens.view(torch.int16).numpy()  # NumPy has no bfloat16
        for row, (caption, place) in enumerate(zip(captions, self._find(captions), strict=True)):
            if caption.strip():
                vectors = self._vectors(caption, int(place))
                bits[row, : len(vectors)] = vectors
                mask[row, : len(vectors)] = True
        return Captions(tokens, mask)

    def _find(self, captions: Sequence[str]) -> np.ndarray:
        """The numbers of captions in the order of the cache, -1 of those that are not there."""
        wanted = _words(caption_hashes(captions))
        places = np.asarray(np.searchsorted(self._hashes, wanted))
        there = places < len(self._hashes)
        there[there] = self._hashes[places[there]] == wanted[there]
        return np.where(there, places, -1)

    def _vectors(self, caption: str, place: int) -> np.ndarray:
        """The bits of the vectors of a caption, (n, W)."""
        if place < 0:
            raise DataError(
                f"the caption {quoted(caption)} is not in the captions' cache",
                where=str(self.folder),
                remedy="prepare a cache of the captions that are trained on",
            )
        shard = self.record.shards[int(np.searchsorted(self._ends, place, side="right"))]
        length = int(self._lengths[place])
        try:
            size = 2 * length * self.width
            content = self._files.read(shard.file, int(self._firsts[place]), size)
        except OSError as error:
            raise self._damage(shard, error.strerror or str(error)) from error
        if zlib.crc32(content) != self._sums[place]:
            raise self._damage(shard, f"the vectors of {quoted(caption)} have another checksum")
        return np.frombuffer(content, "<i2").reshape(length, self.width)

    def _table(self, shard: CaptionShard) -> CaptionTable:
        """The table of a shard, held against the record."""
        place = self.folder / shard.file
        try:
            size = place.stat().st_size if place.is_file() else None
            if size != shard.bytes:
                what = "it is missing" if size is None else f"{size} bytes, not {shard.bytes}"
                raise self._damage(shard, what)
            table = CaptionTable.read(self._files, shard.file, shard.bytes)
        except OSError as error:
            raise self._damage(shard, error.strerror or str(error)) from error
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise self._damage(shard, "its header") from error
        if table.digest != shard.table:
            raise self._damage(shard, f"its checksums are not those that {CAPTIONS} names")
        return table

    def _refuse_disorder(self) -> None:
        """Raise DataError for captions out of order, which no search would notice."""
        if (self._hashes[1:] <= self._hashes[:-1]).any():
            raise DataError(
                f"the captions of {CAPTIONS} are not in order",
                where=str(self.folder),
                remedy=ENCODE_AGAIN,
            )

    def _damage(self, shard: CaptionShard, why: str) -> DataError:
        return DataError(
            f"{shard.file} is damaged ({why})",
            where=str(self.folder / shard.file),
            remedy=ENCODE_AGAIN,
        )


def _words(hashes: np.ndarray) -> np.ndarray:
    """Hashes as one value each, which can be compared."""
    return np.ascontiguousarray(hashes).view(f"S{HASH}").reshape(-1)


def _places(tables: list[CaptionTable], width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each caption the first byte of its vectors in their file, their number and checksum."""
    firsts: list[np.ndarray] = [np.zeros(0, "i8")]
    lengths: list[np.ndarray] = [np.zeros(0, "i4")]
    sums: list[np.ndarray] = [np.zeros(0, "u4")]
    for table in tables:
        before = np.cumsum(table.lengths, dtype="i8") - table.lengths
        firsts.append(table.first + 2 * width * before)
        lengths.append(table.lengths)
        sums.append(table.sums)
    return np.concatenate(firsts), np.concatenate(lengths), np.concatenate(sums)


def open_caption_cache(folder: Path, reads: FeatureText | None = None) -> CaptionCache:
    """The cache of captions in a folder, checked against what a model reads.

    Raises ConfigError if it does not fit the model, DataError if it is damaged or there is none.
    """
    folder = Path(folder).expanduser()
    record = read_caption_record(folder)
    for name in ("tokens", "width") if reads is not None else ():
        wanted, own = getattr(reads, name), getattr(record.encoder, name)
        if wanted != own:
            raise ConfigError(
                f"model.text.{name} {wanted} is not that of the captions' cache, {own}",
                where=str(folder),
                remedy=f"set --model.text.{name} {own}, or --text.cache to another one",
            )
    return CaptionCache(folder, record)
