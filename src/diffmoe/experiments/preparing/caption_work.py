"""Which captions are to be encoded, by what, and the parts that the work is done in."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import BFloat16
from torch import Tensor

from diffmoe.checkpoint import Parts, new_folder
from diffmoe.codec import OutsideEncoder, open_text_encoder
from diffmoe.data import (
    CAPTIONS,
    CaptionRecord,
    CaptionShard,
    EncodedBy,
    caption_hashes,
    caption_shard_file,
    read_caption_record,
    write_caption_record,
    write_caption_shard,
)
from diffmoe.device import resolve_device
from diffmoe.errors import ConfigError, DataError
from diffmoe.experiments.place import refuse_cache_place, refuse_results
from diffmoe.experiments.preparing.assembly import link, sweep
from diffmoe.experiments.preparing.caption_data import read_captions

__all__ = ["CaptionWork"]

_FORMAT = "diffmoe caption cache 1"
_FACTS = "shard.json"
_AT_ONCE = 64  # captions between two looks at the bar; what is encoded does not depend on it


@dataclass(frozen=True)
class CaptionWork:
    """Captions, each once and in the order of their hashes, and the encoder that reads them."""

    data: Path
    captions: Sequence[str]  # all of them
    numbers: np.ndarray  # of those to be encoded
    hashes: np.ndarray  # (N, 32) of these
    encoder: OutsideEncoder
    path: str  # that the encoder was named by
    out: Path
    shard_captions: int

    @classmethod
    def begin(
        cls,
        data: Path,
        encoder: str,
        *,
        field: str | None,
        out: Path,
        tokens: int,
        shard: int,
        device: str,
    ) -> "CaptionWork":
        """The work, once everything is there that it needs, and nothing that it would destroy."""
        for name, value, most in (("shard", shard, 10**6), ("text-tokens", tokens, 4096)):
            if not 1 <= value <= most:
                raise ConfigError(f"{name} {value} is not in 1..{most}")
        refuse_cache_place(data, out, CAPTIONS, read_caption_record)
        captions = read_captions(data, field)
        numbers, hashes = _each_once(captions, data)
        own = open_text_encoder(encoder, tokens, resolve_device(device))
        return cls(data, captions, numbers, hashes, own, encoder, out, shard)

    @property
    def parts(self) -> Path:
        """Where shards lie until all are there."""
        return self.out.with_name(f"{self.out.name}.parts")

    @property
    def count(self) -> int:
        """Shards."""
        return -(-len(self.numbers) // self.shard_captions)

    def block(self, shard: int) -> slice:
        """The captions that a shard is made of."""
        return slice(*(self.shard_captions * n for n in (shard, shard + 1)))

    def size(self, shard: int) -> int:
        """How many they are."""
        return len(self.numbers[self.block(shard)])

    @property
    def digest(self) -> str:
        """Names the captions."""
        return hashlib.sha256(self.hashes.tobytes()).hexdigest()

    @property
    def key(self) -> dict[str, Any]:
        """All that shards depend on."""
        return {"format": _FORMAT, **self._settings}

    @property
    def _settings(self) -> dict[str, Any]:
        own = self.encoder
        made_by = {"encoder": own.identity, "precision": own.precision}
        return {"captions": self.digest, **made_by, "shard": self.shard_captions}

    def finished(self) -> CaptionRecord | None:
        """The facts of the cache that is there already; raises ConfigError if it is another's."""
        if not (self.out / CAPTIONS).exists():
            return None
        record = read_caption_record(self.out)
        made = record.encoder
        made_by = {"encoder": made.identity, "precision": made.precision}
        found = {"captions": record.captions, **made_by, "shard": record.shard_captions}
        for name, value in self._settings.items():
            if found[name] != value:
                raise ConfigError(
                    f"a cache of another {name} lies here: {found[name]}, not {value}",
                    where=str(self.out),
                    remedy="choose another --out, or remove it",
                )
        return record

    def make(self, shard: int, aside: Path, tell: Callable[[int], object]) -> None:
        """Write a shard and its facts into a folder, telling how many captions were encoded.

        Raises DataError if captions changed since the work began or are encoded to no numbers.
        """
        block = self.block(shard)
        captions = [self.captions[int(number)] for number in self.numbers[block]]
        if not np.array_equal(caption_hashes(captions), self.hashes[block]):
            raise DataError(
                "captions changed while they were encoded",
                where=str(self.data),
                remedy="give the same command again",
            )
        vectors = list[BFloat16[Tensor, "n W"]]()
        for first in range(0, len(captions), _AT_ONCE):
            some = captions[first : first + _AT_ONCE]
            vectors += self._encoded(some)
            tell(len(some))
        cut = sum(bool(self.encoder.cut(caption)) for caption in captions)
        place = aside / caption_shard_file(shard)
        keep_facts(aside, write_caption_shard(place, vectors, self.hashes[block], cut))

    def _encoded(self, captions: list[str]) -> list[BFloat16[Tensor, "n W"]]:
        """The vectors of the real tokens of each caption."""
        found = self.encoder.encode(captions).to("cpu")
        if not found.tokens.isfinite().all():
            wrong = int((~found.tokens.isfinite()).flatten(1).any(dim=1).long().argmax())
            raise DataError(
                f"the vectors of the caption {captions[wrong]!r:.60} hold NaN or infinity",
                where=str(self.data),
                remedy="use another --text-encoder, or take the caption out of the data",
            )
        both = zip(found.tokens, found.mask, strict=True)
        return [vectors[mask] for vectors, mask in both]

    def keep_sound(self, shard: CaptionShard, aside: Path) -> None:
        """Make a part of a shard that is as it was written, from the cache it lies in."""
        link(self.out / shard.file, aside / shard.file)
        keep_facts(aside, shard)

    def assemble(self, parts: Parts) -> None:
        """Turn the parts into a cache: files linked into a folder that appears by one rename."""
        shards = [read_facts(parts.path(number)) for number in range(parts.count)]
        own = self.encoder
        who = (own.identity, self.path, own.kind, own.tokens, own.width, own.precision)
        record = CaptionRecord(EncodedBy(*who), self.digest, self.shard_captions, tuple(shards))
        sweep(self.out)
        with new_folder(self.out, replace=True) as aside:
            for number, shard in enumerate(shards):
                link(parts.path(number) / shard.file, aside / shard.file)
            write_caption_record(aside, record)
            refuse_results(self.out, CAPTIONS)  # hours may have passed


def keep_facts(aside: Path, shard: CaptionShard) -> None:
    """Write the facts of a shard beside it."""
    (aside / _FACTS).write_text(json.dumps(asdict(shard), indent=1))


def read_facts(part: Path) -> CaptionShard:
    """The facts of the shard that lies in a part."""
    return CaptionShard(**json.loads((part / _FACTS).read_text()))


def _each_once(captions: Sequence[str], data: Path) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of captions that say something, each text once, by hash; and their hashes."""
    said = np.array([n for n, caption in enumerate(captions) if caption.strip()], np.int64)
    if not len(said):
        raise DataError("no caption says anything", where=str(data), remedy="give some that do")
    hashes = caption_hashes(captions[int(number)] for number in said)
    values = np.ascontiguousarray(hashes).view(f"S{hashes.shape[1]}").reshape(-1)
    _, places = np.unique(values, return_index=True)
    return said[places], hashes[places]
