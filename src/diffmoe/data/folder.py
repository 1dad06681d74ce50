"""A folder of images: one sub-folder for each class, numbered in the order of their names."""

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffmoe.data.fingerprint import fingerprint, spread
from diffmoe.data.images import MODES, read_image
from diffmoe.errors import ConfigError, DataError

__all__ = ["ImageFolderSource"]

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
HEAD = 1 << 16  # bytes of a sampled file that count in a fingerprint


class ImageFolderSource:
    """Images in [-1, 1], cropped to a square of `side` pixels.

    Classes are the sub-folders in the order of their names, images those anywhere below, in the
    order of their paths; names that begin with a dot are passed over.
    """

    encoded = False

    def __init__(self, folder: Path, *, channels: int, side: int) -> None:
        if channels not in MODES:
            raise ConfigError(
                f"model.channels {channels} does not fit images",
                remedy="use 1 for grey, 3 for colour, or codec `autoencoder` for latents",
            )
        paths, labels, self.class_names = _index(folder)
        self._folder, self._paths = folder, np.array([os.fsencode(path) for path in paths])
        self.labels = torch.tensor(labels)
        self.shape = (channels, side, side)

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of labels, of all paths below the folder with their sizes, and of a few files.

        A file that cannot be read counts as empty here: its error is due when it is a sample.
        """
        paths: list[bytes] = self._paths.tolist()
        below = os.fsencode(self._folder)
        sizes = [_size(below + b"/" + path) for path in paths]
        few = (_head(self.path(index)) for index in spread(len(paths)))
        known = (b"\0".join(paths), np.array(sizes, dtype="<i8").tobytes(), *few)
        return fingerprint("images", self.labels, *known)

    def path(self, index: int) -> Path:
        """The file of an image."""
        return self._folder / os.fsdecode(bytes(self._paths[index]))

    def load(self, index: int, flip: bool) -> Float[Tensor, "C H W"]:
        """One image, mirrored if `flip`; raises DataError naming its file and index."""
        channels, side, _ = self.shape
        image = read_image(self.path(index), index, channels=channels, side=side)
        return image.flip(-1) if flip else image


def _index(folder: Path) -> tuple[list[str], list[int], tuple[str, ...]]:
    """Paths below the folder, their labels and the names of the classes."""
    found = {name: sorted(_images(folder / name)) for name in _classes(folder)}
    _check_classes(folder, found)
    paths = [os.path.relpath(path, folder) for images in found.values() for path in images]
    labels = [label for label, images in enumerate(found.values()) for _ in images]
    return paths, labels, tuple(found)


def _classes(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _images(folder: Path) -> Iterator[str]:
    """Paths of images below a folder; links to folders are not followed, dead links are listed."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _images(Path(entry.path))
            elif _is_image(entry):
                yield entry.path


def _is_image(entry: os.DirEntry[str]) -> bool:
    """Whether a name is an image's and not a pipe's, which would block its reader for ever."""
    named = entry.name.lower().endswith(EXTENSIONS)
    return named and (entry.is_file() or entry.is_symlink())


def _size(path: bytes) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 - making a Path costs more than the call
    except OSError:
        return 0


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(HEAD)
    except OSError:
        return b""


def _check_classes(folder: Path, found: dict[str, list[str]]) -> None:
    """Raise DataError if the folder or one of its classes holds no images."""
    if not any(found.values()):
        with os.scandir(folder) as entries:
            loose = sum(_is_image(entry) for entry in entries)
        raise DataError(
            f"data.path holds {loose} images but no class sub-folder of images"
            if loose
            else f"data.path holds no images ({', '.join(e[1:] for e in EXTENSIONS)})",
            where=str(folder),
            remedy="put the images of each class into a sub-folder of their own",
        )
    for name, images in found.items():
        if not images:
            raise DataError(
                f"class {name!r} holds no images",
                where=str(folder / name),
                remedy="add its images or remove the sub-folder",
            )
