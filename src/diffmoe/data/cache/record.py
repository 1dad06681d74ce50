"""What a latent cache says of itself: `cache.json`, which ends with its own digest."""

import hashlib
import io
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import cattrs
import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from diffmoe.data.labels import refuse_outside
from diffmoe.data.pictures import Names, captioned_name, listed_captions
from diffmoe.errors import DataError

__all__ = [
    "AGAIN",
    "CACHE",
    "CacheRecord",
    "Encoder",
    "Origin",
    "Shard",
    "Skipped",
    "read_captions",
    "read_labels",
    "read_record",
    "refuse_unfinished",
    "shard_file",
    "write_captions",
    "write_labels",
    "write_record",
]

CACHE, LABELS, TEXTS = "cache.json", "labels.npy", "captions.jsonl"
FORMAT, VERSION = "diffmoe latent cache", 2
CROP = "ADM centre crop"  # the only one there is; a reader of the file may want to know
AGAIN = "run the `diffmoe prepare` that made it again: it makes anew what is damaged"
_UNFINISHED = ".parts"  # ends the name of the folder in which a cache is made


@dataclass(frozen=True)
class Encoder:
    """The autoencoder that made the posteriors, and where it was read from."""

    identity: str
    path: str
    channels: int  # of a latent
    factor: int  # image side / latent side
    scale: float
    shift: float


@dataclass(frozen=True)
class Origin:
    """The images that were encoded, and where they were read from."""

    fingerprint: str
    path: str
    images: int
    captions: str | None = None  # digest of all their captions, if they have some

    @property
    def name(self) -> str:
        """The fingerprint of the images with their captions."""
        if self.captions is None:
            return self.fingerprint
        return captioned_name(self.fingerprint, self.captions)


@dataclass(frozen=True)
class Shard:
    """A file of posteriors."""

    file: str
    images: int
    bytes: int
    sha256: str  # of the file
    table: str  # sha256 of all but the posteriors, which is quick to verify


@dataclass(frozen=True)
class Skipped:
    """An image that was left out because it could not be read."""

    index: int  # in the source
    error: str


@dataclass(frozen=True)
class CacheRecord:
    """All facts about a cache."""

    autoencoder: Encoder
    source: Origin
    side: int  # of the images
    dtype: Literal["float32", "float16"]  # of the stored posteriors
    flip: bool  # each image is followed by its mirror image
    shard_images: int  # images of the source that a shard is made of
    shards: tuple[Shard, ...]
    labels: str  # sha256 of the file of labels
    class_names: tuple[str, ...]  # none if the images have nothing but captions
    skipped: tuple[Skipped, ...]
    crop: str = CROP
    captions: str | None = None  # sha256 of the file of captions, if there are some

    @property
    def count(self) -> int:
        """Images in the cache."""
        return sum(shard.images for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of each file."""
        texts = {} if self.captions is None else {TEXTS: self.captions}
        return {LABELS: self.labels} | texts | {one.file: one.sha256 for one in self.shards}

    @property
    def mirrors(self) -> int:
        """Posteriors of an image: its own and, with `flip`, that of its mirror image."""
        return 1 + self.flip

    @property
    def block(self) -> tuple[int, int, int, int]:
        """Shape of a posterior: mean and deviation of a latent."""
        latent = self.side // self.autoencoder.factor
        return 2, self.autoencoder.channels, latent, latent

    @property
    def fingerprint(self) -> str:
        """That of the images, as a run may move from them to their cache, plus what differs."""
        return self._different(self.source.fingerprint)

    @property
    def captioned_fingerprint(self) -> str:
        """The same for a run that reads the captions."""
        return self._different(self.source.name)

    def _different(self, name: str) -> str:
        if self.skipped:
            indices = " ".join(str(one.index) for one in self.skipped)
            name += f" without {len(self.skipped)}:{_digest(indices.encode())[:8]}"
        return name if self.dtype == "float32" else f"{name} as {self.dtype} posteriors"


def shard_file(number: int) -> str:
    """The name of a shard."""
    return f"shard-{number:06d}.safetensors"


def refuse_unfinished(path: Path) -> None:
    """Raise DataError if `path` is where a cache is made or will lie once it is finished."""
    own = path.name.endswith(_UNFINISHED)
    parts = path if own else path.with_name(path.name + _UNFINISHED)
    if (own or not path.exists()) and (parts / "work.json").is_file():
        raise DataError(
            "the latent cache is not finished",
            where=str(parts),
            remedy="run the `diffmoe prepare` that began it again: it goes on from there",
        )


def write_record(folder: Path, record: CacheRecord) -> None:
    """Write the facts of a cache into its folder, with the list of its files."""
    facts, files = asdict(record), {"files": list(record.digests)}
    if record.captions is None:  # then the file is that of versions which knew no captions
        del facts["captions"], facts["source"]["captions"]
    content = {"format": FORMAT, "version": VERSION, **facts, **files}
    own = _digest(json.dumps(content).encode())
    (folder / CACHE).write_text(json.dumps({**content, "sha256": own}, indent=1) + "\n")


def read_record(folder: Path) -> CacheRecord:
    """The facts of a cache; raises DataError if they are damaged or not those of a cache."""
    place = folder / CACHE
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError("this folder is no latent cache", where=str(folder)) from error
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "it is no JSON"
        raise _damage(place, f"cannot be read ({reason})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise _damage(place, "is not that of a latent cache")
    if content.get("version") != VERSION:
        raise DataError(
            f"{CACHE} is of version {content.get('version')!r:.20}, this diffmoe reads {VERSION}",
            where=str(place),
            remedy="use the diffmoe that wrote it, or remove it and prepare the images again",
        )
    return _structured(content, place)


def _structured(content: dict[str, Any], place: Path) -> CacheRecord:
    own = content.pop("sha256", None)
    if own != _digest(json.dumps(content).encode()):
        raise _damage(place, "is damaged")
    try:
        return cattrs.structure(content, CacheRecord)
    except Exception as error:  # of a hand that also corrected the digest: nearly anything
        raise _damage(place, "does not list what a cache has") from error


def _damage(place: Path, what: str) -> DataError:
    return DataError(
        f"{CACHE} {what}",
        where=str(place),
        remedy="restore the file, or remove the folder and run `diffmoe prepare` again",
    )


def write_labels(folder: Path, labels: np.ndarray) -> str:
    """Write the labels of all images; returns the digest of their file."""
    file = io.BytesIO()
    np.save(file, labels.astype("<i8"), allow_pickle=False)
    (folder / LABELS).write_bytes(file.getvalue())
    return _digest(file.getvalue())


def read_labels(folder: Path, record: CacheRecord) -> Int[Tensor, " N"]:
    """The labels of all images; raises DataError if they are not as they were written."""
    place, content = folder / LABELS, _sound(folder / LABELS, record.labels)
    labels = torch.from_numpy(np.load(io.BytesIO(content), allow_pickle=False).astype(np.int64))
    if tuple(labels.shape) != (record.count,):
        raise DataError(
            f"labels of shape {tuple(labels.shape)} do not fit the {record.count} images of"
            f" {CACHE}",
            where=str(place),
            remedy=AGAIN,
        )
    classes = max(1, len(record.class_names))
    refuse_outside(labels, classes, str(place), AGAIN, null=False)
    return labels


def write_captions(folder: Path, captions: Iterable[str]) -> str:
    """Write the captions of all images, a line each; returns the digest of their file."""
    total = hashlib.sha256()
    with (folder / TEXTS).open("wb") as file:
        for caption in captions:
            line = json.dumps(caption, ensure_ascii=False).encode() + b"\n"
            total.update(line)
            file.write(line)
    return total.hexdigest()


def read_captions(folder: Path, record: CacheRecord) -> Names:
    """The captions of all images; raises DataError if they are not as they were written."""
    place = folder / TEXTS
    content = io.BytesIO(_sound(place, record.captions))
    return listed_captions(str(place), content, record.count, AGAIN)


def _sound(place: Path, digest: str | None) -> bytes:
    """The content of a file; raises DataError if it is not as it was written."""
    try:
        content = place.read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise DataError(
            f"{place.name} cannot be read ({reason})", where=str(place), remedy=AGAIN
        ) from error
    if _digest(content) != digest:
        raise DataError(f"{place.name} is damaged", where=str(place), remedy=AGAIN)
    return content


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
