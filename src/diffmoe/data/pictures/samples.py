"""A folder that sampling wrote: exactly the pictures of its record, with the labels asked for."""

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from diffmoe.data.pictures.caption import (
    CaptionedPictures,
    NoCaptions,
    caption_of,
    first_of,
)
from diffmoe.data.pictures.folder import FolderPictures, Listing
from diffmoe.data.pictures.pictures import MOST_CLASSES, no_pictures, numbered
from diffmoe.errors import DataError

__all__ = ["RECORD", "SampledPictures", "recorded_names"]

RECORD = "samples.json"


class SampledPictures(FolderPictures):
    """The files of `samples.json` in its order, without the contact sheet beside them.

    The record is `{"images": [{"file": name, "label": number or null}, ...]}`; one null leaves all
    without labels. Classes are called by their numbers unless `class_names` lists names.
    """

    def __init__(self, folder: Path, *, labelled: bool) -> None:
        self._record = folder / RECORD
        content = self._read()
        entries = content["images"]
        if not entries:
            raise no_pictures(str(self._record), labelled)
        paths = [self._file(entry) for entry in entries]
        if len(set(paths)) < len(paths):
            raise self._damage("names a file twice")
        labels = self._labels(entries, labelled)
        names = () if labels is None else self._names(content, labels)
        super().__init__(folder, Listing(paths, labels, names))

    def captioned(self, fields: Sequence[str]) -> CaptionedPictures:
        """The same with the captions of the record, which each image needs then."""
        found = [first_of(entry, fields) for entry in self._read()["images"]]
        where = str(self._record)
        if all(caption is None for caption in found):
            raise NoCaptions(where, len(found))
        captions = (
            caption_of(caption, where, f"image {self._paths[number]!r:.100}")
            for number, caption in enumerate(found)
        )
        return CaptionedPictures(self, captions, where)

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self._record.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise self._damage("cannot be read") from error
        images = content.get("images") if isinstance(content, dict) else None
        if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
            raise self._damage("is no record of images")
        return content

    def _file(self, entry: dict[str, Any]) -> str:
        name = entry.get("file")
        if not isinstance(name, str) or not name or "\0" in name:
            raise self._damage("holds an image without a file")
        try:
            name.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise self._damage(f"names {name!a}, which is no text") from error
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise self._damage(f"names {name!r}, which lies outside of the folder")
        return name

    def _labels(self, entries: list[dict[str, Any]], labelled: bool) -> Int[Tensor, " N"] | None:
        labels = [entry.get("label") for entry in entries]
        known = [label for label in labels if label is not None]
        for label in known:
            if type(label) is not int or not 0 <= label < MOST_CLASSES:
                raise self._damage(f"holds the label {label!r:.40}, which is no class")
        if len(known) == len(labels):
            return torch.tensor(known)
        if labelled:
            raise self._damage(f"holds no label for {len(labels) - len(known)} images")
        return None

    def _names(self, content: dict[str, Any], labels: Int[Tensor, " N"]) -> tuple[str, ...]:
        names = content.get("class_names")
        if names is None:
            return numbered(labels)
        used = int(labels.max()) + 1
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise self._damage("holds class_names that are no list of names")
        if len(names) < used:
            raise self._damage(f"names {len(names)} classes, the labels use {used}")
        return tuple(names)

    def _damage(self, what: str) -> DataError:
        return DataError(
            f"{RECORD} {what}",
            where=str(self._record),
            remedy="draw the samples again, or put the images of each class into a sub-folder",
        )


def recorded_names(folder: Path) -> tuple[str, ...]:
    """The names of classes in the record of a folder; none if there is no record, or no names."""
    try:
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return ()
    names = content.get("class_names") if isinstance(content, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return ()
    return tuple(names)
