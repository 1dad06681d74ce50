"""Data sets of Hugging Face on disk: what `save_to_disk` wrote, or the parquet files of the hub."""

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from diffmoe.data.fingerprint import fingerprint, spread
from diffmoe.data.images import unreadable
from diffmoe.data.pictures.names import printable
from diffmoe.data.pictures.pictures import HEAD, MOST_CLASSES, no_pictures, numbered
from diffmoe.errors import ConfigError, DataError, DiffMoEError

__all__ = ["HubPictures", "is_saved", "parquet_files"]

_SAVED = ("dataset_dict.json", "dataset_info.json", "state.json")
_SPLIT = re.compile(r"(.+)-\d+-of-\d+(-.*)?\.parquet")  # as the hub calls the files of a split
_LABELS = ("label", "labels", "cls")


class HubPictures:
    """The rows of a data set; the picture is its first column of images.

    The label is the column `label`, else the first column of classes, else an integer column
    `labels` or `cls`. Needs the package `datasets`.
    """

    def __init__(self, place: Path, files: Sequence[Path] = (), *, labelled: bool) -> None:
        self._place = place
        rows = _load(place, files)
        self._column = _image_column(place, rows)
        if not len(rows):
            raise no_pictures(str(place), labelled)
        self.labels, self.class_names = _labels(place, rows, labelled)
        undecoded = rows.with_format(None).select_columns([self._column])
        self._rows = undecoded.cast_column(self._column, _datasets().Image(decode=False))

    def __len__(self) -> int:
        return len(self._rows)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of labels and of a few pictures; one that cannot be read counts as empty."""
        known = torch.full((len(self),), -1) if self.labels is None else self.labels
        return fingerprint("images", known, *map(self._head, spread(len(self))))

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


def is_saved(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk`, be it damaged since."""
    return any((folder / name).exists() for name in _SAVED)


def parquet_files(folder: Path) -> list[Path]:
    """The parquet files of a folder or of its sub-folder `data`; of splits, those of `train`.

    Raises DataError if there are several splits and none is called `train`.
    """
    files = sorted(folder.glob("*.parquet")) or sorted((folder / "data").glob("*.parquet"))
    splits = {path: _split_of(path) for path in files}
    if "train" in splits.values():
        return [path for path, split in splits.items() if split == "train"]
    named = {split for split in splits.values() if split}
    if len(named) > 1:
        raise _no_train(folder, sorted(named))
    return files


def _split_of(path: Path) -> str:
    """The split a file belongs to; empty if its name tells none."""
    match = _SPLIT.fullmatch(path.name)
    return match[1] if match else path.stem if path.stem == "train" else ""


def _no_train(folder: Path, splits: Sequence[str]) -> DataError:
    return DataError(
        f"the data set has no split `train`, only {', '.join(sorted(splits))}",
        where=str(folder),
        remedy="give the folder or file of one of them",
    )


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            "a data set of Hugging Face is read by the package datasets, which is not installed",
            remedy="pip install 'diffmoe[data]'",
        ) from error
    return datasets


def _load(place: Path, files: Sequence[Path]) -> Any:
    """The rows of a data set."""
    datasets = _datasets()
    try:
        if files:
            return datasets.Dataset.from_parquet([str(path) for path in files])
        found = datasets.load_from_disk(str(place))
    except Exception as error:  # damaged tables raise nearly anything
        raise DataError(
            f"the data set cannot be read ({_first_line(error)})",
            where=str(place),
            remedy="copy or save it again",
        ) from error
    if not isinstance(found, dict):
        return found
    if "train" not in found:
        raise _no_train(place, list(found))
    return found["train"]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _image_column(place: Path, rows: Any) -> str:
    image = _datasets().Image
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
    classes = [n for n, f in rows.features.items() if isinstance(f, _datasets().ClassLabel)]
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
