"""Images to a latent cache, by any number of processes, and again after any of them was killed."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from diffmoe.checkpoint import Parts
from diffmoe.codec import ENCODED_AT_ONCE
from diffmoe.data import CACHE, CacheRecord, ChunkReader, read_record
from diffmoe.device import is_first_process
from diffmoe.errors import StoppedError
from diffmoe.experiments.preparing.assembly import (
    assemble,
    keep_sound,
    refuse_damaged,
    sound_files,
)
from diffmoe.experiments.preparing.shards import drop_changed, make_shard
from diffmoe.experiments.preparing.work import Dtype, Work, size_of

__all__ = ["PreparedCache", "prepare"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedCache:
    """A cache, and what this process did for it."""

    path: Path
    record: CacheRecord
    made: int  # images that this process encoded
    seconds: float  # that took
    verified: bool  # it was finished before, and every file was found as it was written

    def lines(self) -> list[str]:
        """What the cache holds, and what was done for it."""
        record, mirrored = self.record, " and their mirror images" if self.record.flip else ""
        found = [
            f"{record.count:,} images{self._conditions()}{mirrored}, {size_of(record.bytes)}:"
            f" {self.path}",
            self._share(),
        ]
        if record.skipped:
            place, number = self.path / CACHE, len(record.skipped)
            found.append(f"left out, as they cannot be read: {number} images, listed in {place}")
        return found

    def _conditions(self) -> str:
        classes, captions = len(self.record.class_names), self.record.captions is not None
        said = "of 1 class" if classes == 1 else f"of {classes} classes"
        named = [said] * (classes > 0) + ["with captions"] * captions
        return "".join(f" {what}" for what in named)

    def _share(self) -> str:
        if self.verified:
            return "nothing left to do: every file is as it was written"
        if not self.made:
            return "all of them encoded by other processes"
        return f"{self.made:,} of them encoded here, {self.made / self.seconds:.1f} images/s"


def prepare(
    data: Path | str,
    autoencoder: str,
    *,
    out: Path | str | None = None,
    side: int = 256,
    dtype: Dtype = "float32",
    shard: int = 1024,
    flip: bool = True,
    skip_damaged: bool = False,
    caption_field: str | None = None,
    workers: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> PreparedCache:
    """Encode images once, into a folder to train from; without `out` it lies beside them.

    Any number of processes that call this share the work, and all return when it is done; what
    they make is the same byte for byte. A finished cache is verified, and what is damaged in it
    made anew. A stopped work goes on; shards whose images changed since are made again. Raises
    ConfigError for what does not fit, DataError for an image that cannot be read, StorageError if
    the result has no place, StoppedError if it is interrupted.
    """
    data = Path(data).expanduser()
    work = Work.begin(
        data,
        autoencoder,
        out=Path(f"{data}-latents") if out is None else Path(out).expanduser(),
        side=side,
        dtype=dtype,
        flip=flip,
        shard_images=shard,
        skip_damaged=skip_damaged,
        device=device,
        caption_field=caption_field,
    )
    made, seconds, verified = _done(work, workers, progress and is_first_process())
    return PreparedCache(work.out, read_record(work.out), made, seconds, verified)


def _done(work: Work, workers: int, progress: bool) -> tuple[int, float, bool]:
    """Do the work; images that this process encoded, seconds, and whether nothing was to do."""
    work.finished()  # a cache of other images is refused before anything is made
    work.refuse_other_images()
    there = _Finished(work, progress)
    with Parts.opened(work.parts, work.count, work.key, there.is_sound) as parts:
        if parts is None:
            return 0, 0.0, True
        dropped = drop_changed(work, parts)
        if dropped:
            _LOG.info("%d shards are encoded again, as their images changed", dropped)
        if there.record is None:
            work.refuse_full(parts)
        with closing(_Shift(work, parts, there, workers, progress)) as shift, _stopping(shift):
            shift.work()
        return shift.made, shift.seconds, False


@contextmanager
def _stopping(shift: "_Shift") -> Iterator[None]:
    """Tell what is kept if the block is interrupted."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if shift.parts.is_over:
            raise
        raise StoppedError(
            f"interrupted: {shift.images_done()} of {shift.images} images are encoded",
            where=str(shift.parts.folder),
            remedy="the same command goes on from there",
        ) from stop


class _Finished:
    """The cache that may be there already, verified once."""

    def __init__(self, work: Work, progress: bool) -> None:
        self._work, self._progress = work, progress
        self.record: CacheRecord | None = None
        self.sound: set[str] = set()

    def is_sound(self) -> bool:
        """Whether the cache is there and each of its files is as it was written."""
        self.record = record = self._work.finished()
        if record is None:
            return False
        digests = record.digests.items()
        bar = tqdm(digests, desc="verify", unit="file", disable=not self._progress, leave=False)
        self.sound = sound_files(self._work.out, bar)
        return len(self.sound) == len(digests)

    def holding(self, number: int) -> CacheRecord | None:
        """The facts of the cache if a shard can be taken from it."""
        record = self.record
        return record if record and record.shards[number].file in self.sound else None


class _Shift:
    """What one process does of the work, until all of it is done."""

    def __init__(
        self, work: Work, parts: Parts, there: _Finished, workers: int, progress: bool
    ) -> None:
        self._work, self.parts, self._there = work, parts, there
        self.images = len(work.source)
        self.made, self.seconds, self._skipped = 0, 0.0, 0
        self._reader = ChunkReader(
            work.source,
            ENCODED_AT_ONCE,
            workers=workers,
            pin=work.device.type == "cuda",
            skip_damaged=work.skip_damaged,
        )
        self._bar = _bar(work, self.images_done(), progress)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._bar.close()

    def work(self) -> None:
        """Make what is missing together with other processes, until the cache is finished."""
        self.parts.fill(self._do, lambda done: self._tell())
        self.parts.end(lambda: assemble(self._work, self.parts), lambda: self.parts.is_over)
        self._tell()

    def _tell(self) -> None:
        """Show what all processes have done."""
        self._bar.update(max(0, self.images_done() - self._bar.n))

    def _do(self, number: int, aside: Path) -> None:
        record = self._there.holding(number)
        if record is None:
            self._make(number, aside)
        else:
            keep_sound(self._work, record, number, aside)

    def _make(self, number: int, aside: Path) -> None:
        began = time.perf_counter()
        made = make_shard(self._work, self._reader, number, aside, self._bar.update)
        self.made += made.shard.images
        self.seconds += time.perf_counter() - began
        self._skipped += len(made.skipped)
        if self._work.skip_damaged:
            refuse_damaged(self._work, self._skipped)  # early: it may take hours to the end

    def images_done(self) -> int:
        """Images whose parts are there, whoever made them."""
        return sum(len(self._work.images(number)) for number in self.parts.done)


def _bar(work: Work, done: int, progress: bool) -> Any:
    return tqdm(
        total=len(work.source),
        initial=done,
        desc=f"prepare {work.out.name}",
        unit="image",
        disable=not progress,
        mininterval=1.0 if sys.stderr.isatty() else 30.0,
        maxinterval=60.0,
    )
