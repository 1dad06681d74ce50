"""Pictures in a folder: one sub-folder for each class, numbered in the order of their names."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from diffmoe.data.images import unreadable
from diffmoe.data.pictures.names import Names, printable
from diffmoe.data.pictures.pictures import (
    HEAD,
    NamedPictures,
    is_picture,
    no_classes,
    no_pictures,
)
from diffmoe.errors import DataError

__all__ = ["FolderPictures", "Listing", "files_below", "holds_classes", "listing"]

_LOG = logging.getLogger(__name__)


class Listing(NamedTuple):
    """Paths of pictures below a folder, and what names their classes."""

    paths: list[str]
    labels: Int[Tensor, " N"] | None
    class_names: tuple[str, ...]


class FolderPictures(NamedPictures):
    """The files of a listing."""

    def __init__(self, folder: Path, found: Listing) -> None:
        self._folder, self._paths = folder, Names(found.paths)
        self.labels, self.class_names = found.labels, found.class_names

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        """The path of a picture."""
        return str(self._path(index))

    def read(self, index: int) -> bytes:
        """The content of a file; raises DataError naming it and its index."""
        try:
            return self._path(index).read_bytes()
        except OSError as error:
            raise unreadable(index, self.name(index), error) from error

    def _named(self, images: range) -> Iterable[str]:
        return (self._paths[index] for index in images)

    def _sizes(self, images: range) -> np.ndarray:
        found = [_size(f"{self._folder}/{path}") for path in self._named(images)]
        return np.array(found, dtype=np.int64)

    def _path(self, index: int) -> Path:
        return self._folder / self._paths[index]

    def _head(self, index: int) -> bytes:
        try:
            with self._path(index).open("rb") as file:
                return file.read(HEAD)
        except OSError:
            return b""


def listing(folder: Path, *, labelled: bool) -> Listing:
    """The pictures of a folder, whose classes are its sub-folders in the order of their names.

    Pictures lie anywhere below their class, in the order of their paths; names that begin with a
    dot are passed over, and so are pictures beside the classes. Where no label is needed, a folder
    without classes is a set of pictures without labels. Raises DataError if there are none.
    """
    found = {name: sorted(_images(folder / name)) for name in _classes(folder)}
    if not labelled:
        found = {name: images for name, images in found.items() if images}
    if not any(found.values()):
        return Listing(_loose(folder, labelled), None, ())
    _refuse_empty(folder, found)
    _tell_of_loose(folder)
    paths = [os.path.relpath(path, folder) for images in found.values() for path in images]
    labels = [label for label, images in enumerate(found.values()) for _ in images]
    return Listing(paths, torch.tensor(labels), tuple(map(printable, found)))


def holds_classes(folder: Path) -> bool:
    """Whether a sub-folder holds a picture."""
    return any(next(_images(folder / name), None) for name in _classes(folder))


def _tell_of_loose(folder: Path) -> None:
    with os.scandir(folder) as entries:
        loose = sum(_is_image(entry) for entry in entries)
    if loose:
        _LOG.warning(
            "%d images beside the class folders of %s are of no class and left out", loose, folder
        )


def _classes(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _images(folder: Path) -> Iterator[str]:
    return files_below(folder, is_picture)


def files_below(folder: Path, wanted: Callable[[str], bool]) -> Iterator[str]:
    """Paths of files whose names are `wanted`, anywhere below a folder.

    Links to folders are not followed, dead links are listed.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from files_below(Path(entry.path), wanted)
            elif wanted(entry.name) and _is_file(entry):
                yield entry.path


def _is_image(entry: os.DirEntry[str]) -> bool:
    return is_picture(entry.name) and _is_file(entry)


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether a name is not a pipe's, which would block its reader for ever."""
    return entry.is_file() or entry.is_symlink()


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 - making a Path costs more than the call
    except OSError:
        return 0


def _loose(folder: Path, labelled: bool) -> list[str]:
    """Names of the pictures right in the folder; raises DataError if they are not enough."""
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if _is_image(e) and not e.name.startswith("."))
    if not names:
        raise no_pictures(str(folder), labelled)
    if labelled:
        raise no_classes(str(folder), len(names))
    return names


def _refuse_empty(folder: Path, found: dict[str, list[str]]) -> None:
    """Raise DataError if a class holds no images."""
    for name, images in found.items():
        if not images:
            raise DataError(
                f"class {name!r} holds no images",
                where=str(folder / name),
                remedy="add its images or remove the sub-folder",
            )
