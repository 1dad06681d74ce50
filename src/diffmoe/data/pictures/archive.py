"""Pictures inside archives: classes are the folders in them, and each is read on its own."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from diffmoe.data.images import unreadable
from diffmoe.data.pictures.members import Member, RefusedMember, read_member, table
from diffmoe.data.pictures.names import Names, printable
from diffmoe.data.pictures.pictures import (
    HEAD,
    NamedPictures,
    is_picture,
    no_classes,
    no_pictures,
)
from diffmoe.errors import DataError

__all__ = ["ArchivePictures", "Found", "by_folders", "refuse_twins", "shared_folders", "visible"]


class Found(NamedTuple):
    """The pictures of archives, by the name that counts in a fingerprint, and their classes."""

    names: list[str]
    members: list[Member]
    labels: Int[Tensor, " N"] | None
    class_names: tuple[str, ...]


class ArchivePictures(NamedPictures):
    """Members of one archive or of several, which hold no file open between two reads.

    Their fingerprint is that of the folder which was packed: folders common to all names do not
    count.
    """

    def __init__(self, archives: Sequence[Path], found: Found) -> None:
        self._archives = tuple(archives)
        self._names = Names(found.names)
        self._inside = Names(member.name for member in found.members)
        self._table = table(found.members)
        self.labels, self.class_names = found.labels, found.class_names

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """The archive and the name of a picture in it."""
        return f"{self._archive(index)}:{printable(self._inside[index])}"

    def read(self, index: int) -> bytes:
        """The content of a member; raises DataError naming archive, member and index."""
        try:
            return read_member(self._archive(index), self._member(index))
        except (OSError, RefusedMember) as error:
            raise unreadable(index, self.name(index), error) from error

    def _named(self, images: range) -> Iterable[str]:
        return (self._names[index] for index in images)

    def _sizes(self, images: range) -> np.ndarray:
        sizes: np.ndarray = self._table["size"][images.start : images.stop]
        return sizes

    def _archive(self, index: int) -> Path:
        return self._archives[self._table[index]["archive"]]

    def _member(self, index: int) -> Member:
        return Member(self._inside[index], *self._table[index].tolist())

    def _head(self, index: int) -> bytes:
        try:
            return read_member(self._archive(index), self._member(index), most=HEAD)
        except (OSError, RefusedMember):
            return b""


def by_folders(path: Path, members: Iterable[Member], *, labelled: bool) -> Found:
    """The pictures of an archive, whose classes are the first folders in which names differ.

    If all pictures lie in one folder it is their class where labels are needed, and else nothing.
    Pictures beside the folders of classes, and names with a dot at the beginning of a part, are
    passed over.
    """
    pictures = [member for member in members if is_picture(member.name)]
    parts = [visible(member.name) for member in pictures]
    shown = [(p, m) for p, m in zip(parts, pictures, strict=True) if p]
    if not shown:
        raise no_pictures(str(path), labelled)
    refuse_twins(path, ("/".join(part) for part, _ in shown))
    root = _root([part for part, _ in shown], labelled)
    rest = [(part[root:], member) for part, member in shown]
    classed = sorted(
        ((part[0], "/".join(part), member) for part, member in rest if len(part) > 1),
        key=lambda entry: entry[:2],
    )
    if classed:
        return _classed(classed)
    if labelled:
        raise no_classes(str(path), len(rest))
    loose = sorted((part[0], member) for part, member in rest)
    return Found([name for name, _ in loose], [member for _, member in loose], None, ())


def _classed(entries: list[tuple[str, str, Member]]) -> Found:
    classes, labels = np.unique([name for name, _, _ in entries], return_inverse=True)
    return Found(
        [name for _, name, _ in entries],
        [member for _, _, member in entries],
        torch.from_numpy(labels.astype(np.int64)),
        tuple(printable(str(name)) for name in classes),
    )


def visible(name: str) -> tuple[str, ...]:
    """The parts of a name, without those that lead nowhere or out; nothing if it is hidden."""
    parts = tuple(part for part in name.split("/") if part not in ("", ".", ".."))
    return () if any(part.startswith(".") for part in parts) else parts


def _root(names: list[tuple[str, ...]], labelled: bool) -> int:
    """How many folders are common to all names and name no class."""
    common = shared_folders(names)
    only = labelled and all(len(name) == common + 1 for name in names)
    return common - 1 if only and common else common


def shared_folders(names: Iterable[tuple[str, ...]]) -> int:
    """How many folders all names have in common, given their parts."""
    folders = [name[:-1] for name in names]
    ends = zip(min(folders), max(folders), strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], ends)))


def refuse_twins(path: Path, names: Iterable[str]) -> None:
    """Raise DataError if two members have one name, so that nobody can tell which is meant."""
    for name, count in Counter(names).items():
        if count > 1:
            raise DataError(
                f"the archive holds {count} members called {printable(name)}",
                where=str(path),
                remedy="pack it again with each of them once",
            )
