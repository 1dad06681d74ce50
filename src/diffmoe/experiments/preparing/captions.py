"""Captions to a cache of vectors, by any number of processes, and again after one was killed."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from diffmoe.checkpoint import Parts
from diffmoe.data import CaptionRecord, CaptionShard, caption_shard_file, read_caption_record
from diffmoe.device import is_first_process
from diffmoe.errors import StoppedError
from diffmoe.experiments.preparing.assembly import sound_files
from diffmoe.experiments.preparing.caption_work import CaptionWork
from diffmoe.experiments.preparing.work import size_of

__all__ = ["PreparedCaptions", "prepare_captions"]


@dataclass(frozen=True)
class PreparedCaptions:
    """A cache of captions, and what this process did for it."""

    path: Path
    record: CaptionRecord
    made: int  # captions that this process encoded
    seconds: float  # that took
    verified: bool  # it was finished before, and every file was found as it was written

    def lines(self) -> list[str]:
        """What the cache holds, and what was done for it."""
        record, size = self.record, size_of(self.record.bytes)
        found = [f"{record.count:,} captions, each once, {size}: {self.path}", self._share()]
        if record.cut:
            found.append(
                f"cut, as they have more than {record.encoder.tokens} tokens: {record.cut:,}"
                f" of them"
            )
        return found

    def _share(self) -> str:
        if self.verified:
            return "nothing left to do: every file is as it was written"
        if not self.made:
            return "all of them encoded by other processes"
        return f"{self.made:,} of them encoded here, {self.made / self.seconds:.1f} captions/s"


def prepare_captions(
    data: Path | str,
    encoder: str,
    *,
    field: str | None = None,
    out: Path | str | None = None,
    tokens: int = 120,
    shard: int = 1024,
    device: str = "auto",
    progress: bool = True,
) -> PreparedCaptions:
    """Encode captions once, into a folder to train from; without `out` it lies beside them.

    `data` are pictures with captions or a file of text, `field` is where they have them if not
    under a usual name, `encoder` is the folder or hub name of a T5
    or CLIP. Any number of processes that call this share the work, and all return when it is done;
    what they make is the same byte for byte. A stopped work goes on; a finished cache is verified,
    and what is damaged in it made anew. Raises ConfigError for what does not fit, DataError for
    captions that cannot be read, StorageError if the result has no place, StoppedError if it is
    interrupted.
    """
    data = Path(data).expanduser()
    place = Path(f"{data}-captions") if out is None else Path(out).expanduser()
    how: dict[str, Any] = {"field": field, "tokens": tokens, "shard": shard, "device": device}
    work = CaptionWork.begin(data, encoder, out=place, **how)
    made, seconds, verified = _done(work, progress and is_first_process())
    return PreparedCaptions(place, read_caption_record(place), made, seconds, verified)


def _done(work: CaptionWork, progress: bool) -> tuple[int, float, bool]:
    """Do the work; captions that this process encoded, seconds, and whether nothing was to do."""
    work.finished()  # a cache of other captions is refused before anything is made
    there = _Finished(work, progress)
    with Parts.opened(work.parts, work.count, work.key, there.is_sound) as parts:
        if parts is None:
            return 0, 0.0, True
        with _bar(work, parts, progress) as bar, _stopping(work, parts):
            shift = _Shift(work, parts, there, bar)
            shift.work()
        return shift.made, shift.seconds, False


@contextmanager
def _stopping(work: CaptionWork, parts: Parts) -> Iterator[None]:
    """Tell what is kept if the block is interrupted."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if parts.is_over:
            raise
        raise StoppedError(
            f"interrupted: {_encoded(work, parts)} of {len(work.numbers)} captions are encoded",
            where=str(parts.folder),
            remedy="the same command goes on from there",
        ) from stop


class _Finished:
    """The cache that may be there already, verified once."""

    def __init__(self, work: CaptionWork, progress: bool) -> None:
        self._work, self._progress = work, progress
        self._sound: dict[str, CaptionShard] = {}

    def is_sound(self) -> bool:
        """Whether the cache is there and each of its files is as it was written."""
        record = self._work.finished()
        if record is None:
            return False
        digests = record.digests.items()
        bar = tqdm(digests, desc="verify", unit="file", disable=not self._progress, leave=False)
        sound = sound_files(self._work.out, bar)
        self._sound = {shard.file: shard for shard in record.shards if shard.file in sound}
        return len(sound) == len(digests)

    def shard(self, file: str) -> CaptionShard | None:
        """A shard that can be taken from the cache."""
        return self._sound.get(file)


class _Shift:
    """What one process does of the work, until all of it is done."""

    def __init__(self, work: CaptionWork, parts: Parts, there: _Finished, bar: Any) -> None:
        self._work, self._parts, self._there, self._bar = work, parts, there, bar
        self.made, self.seconds = 0, 0.0

    def work(self) -> None:
        """Make what is missing together with other processes, until the cache is finished."""
        parts = self._parts
        parts.fill(self._do, lambda done: self._tell())
        parts.end(lambda: self._work.assemble(parts), lambda: parts.is_over)
        self._tell()

    def _tell(self) -> None:
        """Show what all processes have done."""
        self._bar.update(max(0, _encoded(self._work, self._parts) - self._bar.n))

    def _do(self, number: int, aside: Path) -> None:
        there = self._there.shard(caption_shard_file(number))
        if there is None:
            self._make(number, aside)
        else:
            self._work.keep_sound(there, aside)

    def _make(self, number: int, aside: Path) -> None:
        began = time.perf_counter()
        self._work.make(number, aside, self._bar.update)
        self.made += self._work.size(number)
        self.seconds += time.perf_counter() - began


def _encoded(work: CaptionWork, parts: Parts) -> int:
    """Captions whose parts are there, whoever made them."""
    return sum(work.size(number) for number in parts.done)


def _bar(work: CaptionWork, parts: Parts, progress: bool) -> Any:
    return tqdm(
        total=len(work.numbers),
        initial=_encoded(work, parts),
        desc=f"prepare {work.out.name}",
        unit="caption",
        disable=not progress,
        mininterval=1.0 if sys.stderr.isatty() else 30.0,
        maxinterval=60.0,
    )
