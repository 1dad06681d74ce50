"""Data sets of Hugging Face on disk: what `save_to_disk` wrote, or the parquet files of the hub."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from diffmoe.data.fingerprint import fingerprint, spread
from diffmoe.data.images import unreadable
from diffmoe.data.pictures.hub_files import datasets_package
from diffmoe.data.pictures.names import printable
from diffmoe.data.pictures.pictures import (
    HEAD,
    MOST_CLASSES,
    known_labels,
    no_pictures,
    numbered,
)
from diffmoe.errors import DataError, DiffMoEError

__all__ = ["HubPictures"]

_LABELS = ("label", "labels", "cls")


class HubPictures:
    """The rows of a data set; the picture is its first column of images.

    The label is the column `label`, else the first column of classes, else an integer column
    `labels` or `cls`. `rows` are what the package `datasets` gives.
    """

    captions: Sequence[str] | None = None

    def __init__(self, place: Path, rows: Any, *, labelled: bool) -> None:
        self._place = place
        self._column = _image_column(place, rows)
        if not len(rows):
            raise no_pictures(str(place), labelled)
        self.labels, self.class_names = _labels(place, rows, labelled)
        undecoded = rows.with_format(None).select_columns([self._column])
        self._rows = undecoded.cast_column(self._column, datasets_package().Image(decode=False))

    def __len__(self) -> int:
        return len(self._rows)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of labels and of a few pictures; one that cannot be read counts as empty."""
        known = known_labels(self.labels, len(self))
        return fingerprint("images", known, *map(self._head, spread(len(self))))

    @property
    def listing(self) -> str:
        """Hash of labels: rows have no names that would outlive another writing of the set."""
        return fingerprint("images", known_labels(self.labels, len(self)))

    def state(self, images: range, few: Iterable[int]) -> str:
        """Hash of labels, of the sizes of pictures that lie in the rows, and of how a few begin."""
        known = known_labels(self.labels, len(self))[images.start : images.stop]
        return fingerprint("images", known, self._sizes(images), *map(self._head, few))

    def _sizes(self, images: range) -> bytes:
        """Sizes as the table tells them; nothing if it is damaged, as then reading a row fails."""
        from pyarrow import compute  # type: ignore[import-untyped]

        try:
            rows = self._rows.with_format("arrow")[images.start : images.stop]
            inside = compute.struct_field(rows.column(self._column), "bytes")
            sizes = compute.fill_null(compute.binary_length(inside), -1)
            return bytes(sizes.to_numpy().astype("<i8").tobytes())
        except Exception:  # damaged tables raise nearly anything
            return b""

    def name(self, index: int) -> str:
        """The data set and the row."""
        return f"{self._place}:row {index}"

    def read(self, index: int) -> bytes:
        """The picture of a row; raises DataError naming the data set and the row."""
        try:
            return self._read(index)
        except Exception as error:  # damaged tables raise nearly anything
            raise unreadable(index, self.name(index), error) from error

    def _read(self, index: int) -> bytes:
        entry = self._rows[index][self._column]
        if entry is None:
            raise FileNotFoundError("the row holds no image")
        if entry["bytes"] is not None:
            return bytes(entry["bytes"])
        path = self._beside(entry["path"])
        if not path.is_file():  # a pipe would block its reader for ever
            raise FileNotFoundError(f"there is no file {printable(str(path))}")
        return path.read_bytes()

    def _beside(self, name: str | None) -> Path:
        """A file that a row names; relative names count from the data set."""
        if not name:
            raise FileNotFoundError("the row holds no image")
        return (self._place.parent if self._place.is_file() else self._place) / name

    def _head(self, index: int) -> bytes:
        try:
            return self.read(index)[:HEAD]
        except DiffMoEError:
            return b""


def _image_column(place: Path, rows: Any) -> str:
    image = datasets_package().Image
    for name, feature in rows.features.items():
        if isinstance(feature, image):
            return str(name)
    raise DataError(
        f"the data set has no column of images, only {', '.join(rows.column_names) or 'none'}",
        where=str(place),
        remedy="cast the column to datasets.Image() and save it again",
    )


def _labels(
    place: Path, rows: Any, labelled: bool
) -> tuple[Int[Tensor, " N"] | None, tuple[str, ...]]:
    """Labels and the names of the classes; none if nothing names a class and nothing need to."""
    column = _label_column(rows)
    if column is None and not labelled:
        return None, ()
    if column is None:
        raise DataError(
            f"the data set has no column of labels, only {', '.join(rows.column_names)}",
            where=str(place),
            remedy="store integers in a column `label`",
        )
    cells = rows.with_format("arrow").select_columns([column])[:].column(0)
    if cells.null_count:
        return _without(place, column, cells.null_count, labelled)
    labels = torch.from_numpy(cells.to_numpy().astype(np.int64))
    names = getattr(rows.features[column], "names", None) or ()
    _check_range(place, column, labels, len(names) or MOST_CLASSES, labelled)
    if int(labels.min()) < 0:
        return None, ()
    return labels, tuple(names) or numbered(labels)


def _label_column(rows: Any) -> str | None:
    """The column of labels, None if there is none."""
    classes = [n for n, f in rows.features.items() if isinstance(f, datasets_package().ClassLabel)]
    integers = [n for n, f in rows.features.items() if "int" in str(getattr(f, "dtype", ""))]
    known = [name for name in _LABELS if name in integers]
    first = [name for name in classes + known if name == _LABELS[0]]
    return next(iter(first + classes + known), None)


def _without(place: Path, column: str, count: int, labelled: bool) -> tuple[None, tuple[str, ...]]:
    if labelled:
        raise DataError(
            f"column {column} holds no label for {count} images",
            where=str(place),
            remedy="remove these rows, or label them",
        )
    return None, ()


def _check_range(
    place: Path, column: str, labels: Int[Tensor, " N"], classes: int, labelled: bool
) -> None:
    """Raise DataError for the first label that names no class; -1 marks rows without one."""
    lowest = 0 if labelled else -1
    outside = ((labels < lowest) | (labels >= classes)).nonzero()
    if len(outside):
        index = int(outside[0])
        raise DataError(
            f"column {column} holds the label {int(labels[index])} in row {index}, which is no"
            " class",
            where=str(place),
            remedy=f"use 0..{classes - 1}",
        )
