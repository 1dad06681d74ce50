"""Files of a cache read piece by piece: by `pread`, so that one cut short is an error, no crash.

A mapping would kill the process where a file is cut short or a disk fails.
"""

import hashlib
import json
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["OpenFiles", "SmallTensors"]

_LENGTH = 8  # bytes that say how long the header of a safetensors file is
_MOST_OPEN = 128  # files: a process may have a thousand or so


class OpenFiles:
    """Files of a folder, of which the ones used last are kept open."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: OrderedDict[str, _File] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Everything but open files: a process that takes the cache over opens its own."""
        return {"_folder": self._folder, "_open": OrderedDict()}

    def read(self, name: str, first: int, length: int) -> bytes:
        """Some bytes of a file; fewer at its end."""
        if name in self._open:
            self._open.move_to_end(name)
        else:
            self._open[name] = _File(self._folder / name)
            if len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)
        return os.pread(self._open[name].number, length, first)


class _File:
    """An open file that is closed with the last reference to it."""

    def __init__(self, path: Path) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


class SmallTensors(NamedTuple):
    """What a safetensors file holds beside its large tensor, which counts by its checksums."""

    digest: str  # tells the file from any other
    entries: dict[str, dict[str, Any]]  # of the header: dtype, shape and place of each tensor
    first: int  # byte of the file from which places count
    parts: tuple[bytes, ...]  # contents, in the order asked for

    @classmethod
    def read(cls, files: OpenFiles, name: str, size: int, small: tuple[str, ...]) -> "SmallTensors":
        """Those of a file of `size` bytes; ValueError or the like if its header is damaged."""
        length = int.from_bytes(files.read(name, 0, _LENGTH), "little")
        if length > size:
            raise ValueError("the header is longer than the file")
        header = files.read(name, _LENGTH, length)
        entries, first = json.loads(header), _LENGTH + length
        places = [entries[each]["data_offsets"] for each in small]
        parts = tuple(files.read(name, first + begin, end - begin) for begin, end in places)
        total = hashlib.sha256(header)
        for part in parts:
            total.update(part)
        return cls(total.hexdigest(), entries, first, parts)
