"""Many names held as one block of bytes: cheap to keep, to search and to hand to a process."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from diffmoe.errors import DataError

__all__ = ["Names", "class_names_of", "printable"]


class Names:
    """Texts by number; those that are no Unicode survive, as in the names of files."""

    def __init__(self, names: Iterable[str]) -> None:
        parts = [os.fsencode(name) for name in names]
        self._block = b"".join(parts)
        self._ends = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"name {index} of {len(self)}")
        return os.fsdecode(self._block[self._ends[index] : self._ends[index + 1]])

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))


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
