"""The damaged samples that a run has met: listed once each, and no more of them than allowed."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from diffmoe.checkpoint import append_text, content_of
from diffmoe.data import Replaced
from diffmoe.errors import DataError

__all__ = ["BadSamples"]

_LOG = logging.getLogger(__name__)
_LIST = "the list of damaged samples"


class BadSamples:
    """`bad_samples.jsonl`: a line for each place in the data whose sample was replaced.

    Places that an earlier part of the run listed count, if it read the same `data`, by fingerprint.
    Of `total` samples at most the share `max_share` may be damaged: beyond it, here or in `note`,
    DataError.
    """

    def __init__(self, path: Path, total: int, max_share: float, data: str = "") -> None:
        self._path, self._total, self._max_share, self._data = path, total, max_share, data
        self._places = _listed(path, total, data)
        self._refuse_too_many()

    @property
    def count(self) -> int:
        """Damaged places known."""
        return len(self._places)

    def note(self, replaced: Iterable[Replaced]) -> None:
        """List what was replaced, where it is new; StorageError if the disk is full."""
        new: dict[int, Replaced] = {}
        for one in replaced:
            if one.place not in self._places:
                new.setdefault(one.place, one)
        if not new:
            return
        text = "".join(json.dumps(_line(one, self._data)) + "\n" for one in new.values())
        append_text(self._path, "\n" + text if _is_cut(self._path) else text)
        before = self.count
        self._places |= new.keys()
        self._tell(before, next(reversed(new.values())))
        self._refuse_too_many()

    def _tell(self, before: int, newest: Replaced) -> None:
        """Warn of the first one and each time that their number has doubled: they may be many."""
        if self.count.bit_length() > before.bit_length():
            _LOG.warning(
                "%d of %d samples are damaged and replaced by others: %s (all are listed in %s)",
                *(self.count, self._total, newest.reason, self._path),
            )

    def _refuse_too_many(self) -> None:
        if self.count / self._total > self._max_share:
            raise DataError(
                f"{self.count} of {self._total} samples are damaged, a larger share than"
                f" data.max_bad_share {self._max_share:g} allows",
                where=str(self._path),
                remedy="mend the files listed there, remove the list and go on with"
                " --accept-new-data, or set a larger --data.max-bad-share",
            )


def _line(one: Replaced, data: str) -> dict[str, int | str]:
    numbers: dict[str, int | str] = {"place": one.place, "sample": one.sample, "used": one.used}
    return numbers | {"reason": one.reason, "data": data}


def _is_cut(path: Path) -> bool:
    """Whether a kill or a full disk left the last line without its end."""
    content = content_of(path, _LIST)
    return bool(content) and not content.endswith(b"\n")


def _listed(path: Path, total: int, data: str) -> set[int]:
    """The places that lines of the file name for these data; damaged lines name none."""
    lines = [_line_of(text, total) for text in content_of(path, _LIST).split(b"\n") if text]
    if None in lines:
        _LOG.warning("%d of the %d lines of %s are damaged", lines.count(None), len(lines), path)
    return {line["place"] for line in lines if line is not None and line.get("data", "") == data}


def _line_of(text: bytes, total: int) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    place = line.get("place") if isinstance(line, dict) else None
    return line if type(place) is int and 0 <= place < total else None
