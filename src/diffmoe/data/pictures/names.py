"""Many names held as one block of bytes: cheap to keep, to search and to hand to a process."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from diffmoe.errors import DataError

__all__ = ["Names", "class_names_of", "printable"]


class Names(Sequence[str]):
    """Texts by number; those that are no Unicode survive, as in the names of files."""

    def __init__(self, names: Iterable[str]) -> None:
        parts = [name.encode("utf-8", "surrogateescape") for name in names]
        self._block = b"".join(parts)
        self._ends = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        places = range(len(self))[index]
        if isinstance(places, range):
            return [self[place] for place in places]
        text = self._block[self._ends[places] : self._ends[places + 1]]
        return text.decode("utf-8", "surrogateescape")

    def digest(self, some: range) -> str:
        """SHA-256 of texts that follow one another, in 16 signs; where one ends is part of it."""
        first, end = self._ends[some.start], self._ends[some.stop]
        lengths = np.diff(self._ends[some.start : some.stop + 1]).astype("<i8").tobytes()
        return hashlib.sha256(lengths + self._block[first:end]).hexdigest()[:16]


def printable(name: str) -> str:
    """A name that any page and terminal can show; bytes that are no text become escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def class_names_of(path: Path, used: int, classes: int | None = None) -> tuple[str, ...]:
    """The lines of a file, at least `used`; the numbers of all classes where there is none."""
    if not path.exists():
        return tuple(str(label) for label in range(used if classes is None else classes))
    try:
        names = tuple(path.read_text(encoding="utf-8").splitlines())
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is no text", where=str(path)) from error
    if len(names) < used:
        raise DataError(
            f"{path.name} names {len(names)} classes, the labels use {used}",
            where=str(path),
            remedy="write one name a line",
        )
    return names
