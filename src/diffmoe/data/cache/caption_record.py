"""What a cache of encoded captions says of itself: `captions.json`, which ends with its digest."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import cattrs

from diffmoe.errors import DataError

__all__ = [
    "CAPTIONS",
    "ENCODE_AGAIN",
    "CaptionRecord",
    "CaptionShard",
    "EncodedBy",
    "read_caption_record",
    "write_caption_record",
]

CAPTIONS = "captions.json"
FORMAT, VERSION = "diffmoe caption cache", 1
ENCODE_AGAIN = "run the `diffmoe prepare` that made it again: it makes anew what is damaged"


@dataclass(frozen=True)
class EncodedBy:
    """The encoder that made the vectors, and where it was read from."""

    identity: str
    path: str
    kind: str  # t5 or clip
    tokens: int  # of a caption at most
    width: int  # of a vector
    precision: str  # of the network's own numbers


@dataclass(frozen=True)
class CaptionShard:
    """A file of vectors."""

    file: str
    captions: int
    cut: int  # of these, those whose end the encoder did not read
    bytes: int
    sha256: str  # of the file
    table: str  # sha256 of all but the vectors, which is quick to verify


@dataclass(frozen=True)
class CaptionRecord:
    """All facts about a cache of captions."""

    encoder: EncodedBy
    captions: str  # sha256 of the hashes of all of them, in their order
    shard_captions: int  # that a shard is made of
    shards: tuple[CaptionShard, ...]
    dtype: Literal["bfloat16"] = "bfloat16"  # of the vectors

    @property
    def count(self) -> int:
        """Captions in the cache, each once."""
        return sum(shard.captions for shard in self.shards)

    @property
    def cut(self) -> int:
        """Captions that were too long: what was cut off has no vectors."""
        return sum(shard.cut for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of each file."""
        return {shard.file: shard.sha256 for shard in self.shards}


def write_caption_record(folder: Path, record: CaptionRecord) -> None:
    """Write the facts of a cache into its folder, with the list of its files."""
    told = {"count": record.count, "files": list(record.digests)}
    content = {"format": FORMAT, "version": VERSION, **asdict(record), **told}
    text = json.dumps({**content, "sha256": _digest(content)}, indent=1)
    (folder / CAPTIONS).write_text(f"{text}\n")


def read_caption_record(folder: Path) -> CaptionRecord:
    """The facts of a cache; raises DataError if they are damaged or not those of a cache."""
    place = folder / CAPTIONS
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(
            "this folder is no cache of captions",
            where=str(folder),
            remedy="make one with `diffmoe prepare DATA --text-encoder PATH`",
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "it is no JSON"
        raise _damage(place, f"cannot be read ({reason})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise _damage(place, "is not that of a cache of captions")
    if content.get("version") != VERSION:
        raise DataError(
            f"{CAPTIONS} is of version {content.get('version')!r:.20}, this diffmoe reads"
            f" {VERSION}",
            where=str(place),
            remedy="use the diffmoe that wrote it, or remove it and prepare the captions again",
        )
    return _structured(content, place)


def _structured(content: dict[str, Any], place: Path) -> CaptionRecord:
    own = content.pop("sha256", None)
    if own != _digest(content):
        raise _damage(place, "is damaged")
    try:
        return cattrs.structure(content, CaptionRecord)
    except Exception as error:  # of a hand that also corrected the digest: nearly anything
        raise _damage(place, "does not list what a cache has") from error


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _damage(place: Path, what: str) -> DataError:
    return DataError(
        f"{CAPTIONS} {what}",
        where=str(place),
        remedy="restore the file, or remove the folder and run `diffmoe prepare` again",
    )
