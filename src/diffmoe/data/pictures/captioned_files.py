"""Captions that lie beside the pictures of a folder or archive: in a table, or in a text each."""

import io
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from diffmoe.data.pictures.archive import (
    ArchivePictures,
    Found,
    refuse_twins,
    shared_folders,
    visible,
)
from diffmoe.data.pictures.caption import (
    FIELDS,
    MOST_BYTES,
    CaptionedPictures,
    NoCaptions,
    caption_of,
    decoded,
    refuse,
)
from diffmoe.data.pictures.folder import FolderPictures, Listing, files_below
from diffmoe.data.pictures.members import Member, RefusedMember, read_member
from diffmoe.data.pictures.names import printable
from diffmoe.data.pictures.pictures import Pictures, is_picture, no_pictures
from diffmoe.data.pictures.tables import TABLES, NoColumn, Row, read_rows

__all__ = ["ArchiveFiles", "FolderFiles", "captioned_files", "table_of"]

_LOG = logging.getLogger(__name__)
_NOTE = ".txt"


class _Order(NamedTuple):
    """Names in their order, without the folders that all have in common, and their classes."""

    root: str
    names: list[str]
    labels: Int[Tensor, " N"] | None
    class_names: tuple[str, ...]


class _Files(ABC):
    """The pictures of a place and what may hold their captions, by their paths in it."""

    place: Path
    names: set[str]

    @abstractmethod
    def where(self, name: str) -> str:
        """What a file is called in messages."""

    @abstractmethod
    def lines(self, name: str) -> Iterable[bytes]:
        """The lines of a file, none much longer than MOST_BYTES."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The content of a text; raises DataError if it is long or cannot be read."""

    @abstractmethod
    def pictures(self, order: _Order) -> Pictures:
        """Those that are named, in that order."""


class FolderFiles(_Files):
    """The files of a folder."""

    def __init__(self, folder: Path) -> None:
        self.place = folder
        below = files_below(folder, lambda name: is_picture(name) or name.endswith(_NOTE))
        prefix = os.path.join(folder, "")  # noqa: PTH118 - ends with the one slash that counts
        self.names = {path.removeprefix(prefix) for path in below}
        self.names |= {name for name in TABLES if (folder / name).is_file()}

    def where(self, name: str) -> str:
        """The path of a file."""
        return printable(str(self.place / name))

    def lines(self, name: str) -> Iterator[bytes]:
        """The lines of a file, which is read as they are asked for."""
        with (self.place / name).open("rb") as file:
            while line := file.readline(MOST_BYTES + 1):
                yield line

    def read(self, name: str) -> bytes:
        """The content of a file; raises DataError if it is long or no file."""
        path = self.place / name
        if not path.is_file():  # a pipe would block its reader for ever
            refuse(self.where(name), "the caption is no file", "write it into one")
        _refuse_long(self.where(name), path.stat().st_size)
        return path.read_bytes()

    def pictures(self, order: _Order) -> Pictures:
        """The files of these names."""
        found = Listing(order.names, order.labels, order.class_names)
        return FolderPictures(self.place / order.root, found)


class ArchiveFiles(_Files):
    """The members of an archive, without the folders that all of them have in common."""

    def __init__(self, path: Path, members: Iterable[Member]) -> None:
        self.place = path
        found = [(visible(member.name), member) for member in members]
        kept = [(parts, member) for parts, member in found if parts and _counts(parts[-1])]
        named = [parts for parts, _ in kept if is_picture(parts[-1]) or parts[-1] in TABLES]
        root = shared_folders(named) if named else 0
        refuse_twins(path, ("/".join(parts) for parts, _ in kept))
        self._prefix = "".join(f"{part}/" for part in named[0][:root]) if named else ""
        inside = (("/".join(parts), member) for parts, member in kept)
        self._members = {
            name.removeprefix(self._prefix): member
            for name, member in inside
            if name.startswith(self._prefix)
        }
        self.names = set(self._members)

    def where(self, name: str) -> str:
        """The archive, and the name of a member in it."""
        return f"{self.place}:{printable(self._members[name].name)}"

    def lines(self, name: str) -> Iterable[bytes]:
        """The lines of a member."""
        return io.BytesIO(self._content(name))

    def read(self, name: str) -> bytes:
        """The content of a member; raises DataError if it is long or damaged."""
        _refuse_long(self.where(name), self._members[name].size)
        return self._content(name)

    def _content(self, name: str) -> bytes:
        try:
            return read_member(self.place, self._members[name])
        except RefusedMember as error:
            refuse(self.where(name), f"the captions cannot be read ({error})", "pack it again")

    def pictures(self, order: _Order) -> Pictures:
        """The members of these names."""
        members = [self._members[order.root + name] for name in order.names]
        found = Found(order.names, members, order.labels, order.class_names)
        return ArchivePictures([self.place], found)


def _counts(name: str) -> bool:
    return is_picture(name) or name.endswith(_NOTE) or name in TABLES


def table_of(names: Iterable[str]) -> str | None:
    """Which of a place's files is its table of captions."""
    there = set(names)
    return next((table for table in TABLES if table in there), None)


def captioned_files(files: _Files, fields: Sequence[str]) -> CaptionedPictures:
    """The pictures that have captions, in the order of their paths.

    Only what a table lists counts where there is one; else each picture needs a text beside it.
    First folders are classes if they differ and every picture lies in one. Raises NoCaptions if
    there are none, DataError naming a line or picture.
    """
    images = {name for name in files.names if is_picture(name)}
    if not images:
        raise no_pictures(str(files.place), labelled=False)
    table = table_of(files.names)
    captions = (
        _beside(files, images, fields) if table is None else _listed(files, table, images, fields)
    )
    order = _ordered(captions)
    texts = (captions[order.root + name] for name in order.names)
    left_out = len(images) - len(captions)
    if left_out:
        _LOG.warning("%d images of %s are not listed in %s", left_out, files.place, table)
    return CaptionedPictures(files.pictures(order), texts, str(files.place), left_out)


def _listed(files: _Files, table: str, images: set[str], fields: Sequence[str]) -> dict[str, str]:
    """Captions by the pictures of a table; raises DataError if a picture is not there."""
    where, rows, missing = files.where(table), dict[str, Row](), list[Row]()
    try:
        for row in read_rows(where, files.lines(table), fields):
            if row.file in rows:
                first = rows[row.file].line
                what = f"line {row.line} lists {row.file} again, as line {first} did"
                refuse(where, what, "keep one row for each image")
            rows[row.file] = row
            missing += [row] * (row.file not in images)
    except NoColumn as error:
        why = f"{table} has {error}"
        raise NoCaptions(str(files.place), len(images), why) from error
    if missing:
        _refuse_missing(where, missing)
    if not rows:
        raise NoCaptions(str(files.place), len(images), f"{table} lists none of them")
    return {name: row.caption for name, row in rows.items()}


def _refuse_missing(where: str, missing: list[Row]) -> None:
    first = missing[0]
    what = "is not there" if is_picture(first.file) else "is no image by its name"
    refuse(
        where,
        f"line {first.line} lists {printable(first.file)}, which {what}; in all"
        f" {len(missing)} of this table",
        "add them or remove their lines",
    )


def _beside(files: _Files, images: set[str], fields: Sequence[str]) -> dict[str, str]:
    """Captions by picture, from the texts beside them; raises DataError if one has none."""
    place = str(files.place)
    notes = {name: name[: name.rindex(".")] + _NOTE for name in images}
    if tuple(fields) != FIELDS:
        raise NoCaptions(place, len(images), f"no table with a column {' or '.join(fields)}")
    lacking = sorted(name for name, note in notes.items() if note not in files.names)
    if len(lacking) == len(images):
        raise NoCaptions(place, len(images))
    if lacking:
        refuse(
            files.where(lacking[0]),
            f"the image has no caption, and so have {len(lacking) - 1} others",
            "write a .txt of the same name beside it; an empty one says nothing",
        )
    return {name: _text(files, note) for name, note in notes.items()}


def _text(files: _Files, note: str) -> str:
    where = files.where(note)
    return caption_of(decoded(files.read(note), where, "the caption"), where, "the file")


def _refuse_long(where: str, size: int) -> None:
    if size > MOST_BYTES:
        refuse(where, f"the caption has {size:,} bytes", f"use {MOST_BYTES:,} at most")


def _ordered(names: Iterable[str]) -> _Order:
    """Pictures by class and path, as a folder without captions has them."""
    parts = [tuple(name.split("/")) for name in names]
    root = shared_folders(parts)
    rest = sorted((part[root], "/".join(part[root:]), len(part) - root) for part in parts)
    prefix, inside = "".join(f"{part}/" for part in parts[0][:root]), [name for _, name, _ in rest]
    if any(depth == 1 for _, _, depth in rest):
        return _Order(prefix, sorted(inside), None, ())
    classes, labels = np.unique([first for first, _, _ in rest], return_inverse=True)
    numbers = torch.from_numpy(labels.astype(np.int64))
    return _Order(prefix, inside, numbers, tuple(printable(str(name)) for name in classes))
