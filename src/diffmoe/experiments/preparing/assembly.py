"""The shards of a cache put together, and those of a finished cache verified."""

import glob
import hashlib
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from safetensors import safe_open

from diffmoe.checkpoint import Parts, new_folder
from diffmoe.data import CACHE, CacheRecord, Encoder, write_captions, write_labels, write_record
from diffmoe.errors import DataError
from diffmoe.experiments.place import refuse_results
from diffmoe.experiments.preparing.shards import Made, drop_changed, keep_made, read_made
from diffmoe.experiments.preparing.work import Work

__all__ = ["assemble", "keep_sound", "link", "refuse_damaged", "sound_files", "sweep"]

_ASIDE = re.compile(r"[a-z0-9_]{8}")  # what ends the name of a temporary folder


def assemble(work: Work, parts: Parts) -> None:
    """Turn the parts into a cache: files linked into a folder that appears by one rename.

    Raises DataError if images changed since they were encoded.
    """
    _refuse_changed(work, parts)
    made = [read_made(parts.path(number)) for number in range(parts.count)]
    refuse_damaged(work, sum(len(one.skipped) for one in made))
    sweep(work.out)
    with new_folder(work.out, replace=True) as aside:
        for number, one in enumerate(made):
            link(parts.path(number) / one.shard.file, aside / one.shard.file)
        digest = write_labels(aside, np.concatenate([_kept(aside, one, "labels") for one in made]))
        texts = _write_captions(work, made, aside)
        write_record(aside, _record(work, made, digest, texts))
        refuse_results(work.out, CACHE)  # hours may have passed


def _kept(aside: Path, made: Made, name: str) -> np.ndarray:
    """What a shard holds beside its posteriors."""
    with safe_open(aside / made.shard.file, framework="np") as file:
        kept: np.ndarray = file.get_tensor(name)
    return kept


def _write_captions(work: Work, made: list[Made], aside: Path) -> str | None:
    """Write the captions of the images that are kept; the digest of their file, None of none."""
    captions = work.source.captions
    if captions is None:
        return None
    kept = (int(index) for one in made for index in _kept(aside, one, "index"))
    return write_captions(aside, (captions[index] for index in kept))


def _refuse_changed(work: Work, parts: Parts) -> None:
    dropped = drop_changed(work, parts)
    if dropped:
        raise DataError(
            f"images of {dropped} of {parts.count} shards changed after they were encoded",
            where=str(work.data),
            remedy="the same command encodes these shards again and keeps the others",
        )


def sweep(out: Path) -> None:
    """Remove what a process left that was killed here: its links would keep shards on the disk."""
    for left in out.parent.glob(f".tmp-{glob.escape(out.name)}-*"):
        if _ASIDE.fullmatch(left.name.removeprefix(f".tmp-{out.name}-")):
            shutil.rmtree(left, ignore_errors=True)


def _record(work: Work, made: list[Made], labels: str, captions: str | None) -> CacheRecord:
    own, source = work.autoencoder.config, work.source
    return CacheRecord(
        autoencoder=Encoder(
            work.autoencoder.identity,
            own.path,
            work.autoencoder.channels,
            own.factor,
            own.scale,
            own.shift,
        ),
        source=work.origin,
        side=work.side,
        dtype=work.dtype,
        flip=work.flip,
        shard_images=work.shard_images,
        shards=tuple(one.shard for one in made),
        labels=labels,
        class_names=source.pictures.class_names,
        skipped=tuple(skipped for one in made for skipped in one.skipped),
        captions=captions,
    )


def refuse_damaged(work: Work, skipped: int) -> None:
    """Raise DataError if more images are damaged than may be left out.

    That is one in a hundred, but always one.
    """
    most = max(1, len(work.source) // 100) if work.skip_damaged else 0
    if skipped > most:
        mend = "mend them or take them out of the data"
        raise DataError(
            f"{skipped} of {len(work.source)} images are damaged, and {most} may be left out",
            where=str(work.data),
            remedy=mend if work.skip_damaged else f"{mend}, or give --skip-damaged",
        )


def sound_files(folder: Path, digests: Iterable[tuple[str, str]]) -> set[str]:
    """The names of the files that have their digests."""
    return {name for name, digest in digests if _digest(folder / name) == digest}


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def keep_sound(work: Work, record: CacheRecord, number: int, aside: Path) -> None:
    """Make a part of a shard that is as it was written, from the cache it lies in."""
    shard, wanted = record.shards[number], work.images(number)
    link(work.out / shard.file, aside / shard.file)
    skipped = tuple(one for one in record.skipped if one.index in wanted)
    keep_made(aside, Made(shard, skipped, work.state(number), work.state_of(skipped)))


def link(there: Path, here: Path) -> None:
    """The same file under another name, or a copy where a file has one name only."""
    try:
        os.link(there, here)
    except OSError:
        shutil.copyfile(there, here)
