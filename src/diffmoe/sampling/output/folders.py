"""Folders of samples: a picture for each image, or shards of the WebDataset layout."""

import hashlib
import io
import json
import os
import shutil
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from diffmoe.checkpoint import digest, new_folder
from diffmoe.errors import StorageError
from diffmoe.sampling.output.checks import are_recorded, are_whole
from diffmoe.sampling.output.pictures import MOST_SHOWN, captioned, to_picture
from diffmoe.sampling.output.place import RECORD, SHEET, listed, refuse_place
from diffmoe.sampling.output.records import (
    UNREADABLE,
    DrawnPart,
    ImageRequest,
    read_record,
    sweep_asides,
    write_record,
)

__all__ = ["Folder", "PictureFolder", "TarShards", "entries", "files_of", "link", "pixels_of"]

_SHARD = 1000  # images of a shard
_LOOKED_AT = 64  # files that are read to tell whether a folder is there as it was written
_PICTURES = "pictures.json"  # of a part: size and hash of each PNG


class Folder(ABC):
    """A folder with a sheet and a record, made from parts that hold a PNG for each image."""

    name: ClassVar[str]
    lists: ClassVar[str]  # what the record calls its list of files

    @abstractmethod
    def fill(
        self, folder: Path, parts: Sequence[DrawnPart], asked: ImageRequest
    ) -> Iterable[dict[str, Any]]:
        """Put all images into a folder; returns an entry of the record for each file."""

    def refuse(self, target: Path) -> None:
        """Raise StorageError unless a folder of samples may be put at `target`."""
        refuse_place(target)

    def sheet(self, target: Path) -> Path:
        """The sheet lies in the folder."""
        return target / SHEET

    def room(self, values: int) -> int:
        """Nobody knows how small compressed pictures will be."""
        return 0

    def is_written(self, target: Path, request: str) -> bool:
        """Whether the folder is of that request, and its files are those of its record.

        Of every file the size is compared; of some, evenly spread, all that they hold.
        """
        record = read_record(target / RECORD)
        files = listed(record)
        return (
            (record.get("request"), record.get("format")) == (request, self.name)
            and bool(files)
            and are_whole(target, files)
            and are_recorded(target, _spread(files))
        )

    def write_part(
        self, folder: Path, pixels: UInt8[Tensor, "n C H W"], images: range, asked: ImageRequest
    ) -> None:
        """Keep each image as a PNG, and their hashes, so that none is read for them."""
        made = {}
        for image, values in zip(images, pixels, strict=True):
            name, content = asked.file_name(image), _png(values)
            (folder / name).write_bytes(content)
            made[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (folder / _PICTURES).write_text(json.dumps(made))

    def assemble(
        self, target: Path, parts: Sequence[DrawnPart], asked: ImageRequest, facts: dict[str, Any]
    ) -> None:
        """Write the folder in one rename."""
        refuse_place(target)
        sweep_asides(target)
        said = {**facts, "format": self.name, **asked.names}
        with new_folder(target, replace=True) as aside:
            told = self.fill(aside, parts, asked)
            _sheet(parts, asked).save(aside / SHEET)
            write_record(aside / RECORD, said, self.lists, told)


class PictureFolder(Folder):
    """A PNG for each image, named after its number, class or prompt, and seed."""

    name = "png"
    lists = "images"

    def fill(
        self, folder: Path, parts: Sequence[DrawnPart], asked: ImageRequest
    ) -> Iterable[dict[str, Any]]:
        """Give the files of the parts a second name each: nothing is copied."""
        for image, file in files_of(parts, asked):
            link(file, folder / asked.file_name(image))
        return entries(parts, asked, asked.file_name)


class TarShards(Folder):
    """Shards of the WebDataset layout: `KEY.png`, `KEY.cls` and `KEY.json` for each image.

    In the place of `KEY.cls` an image that was drawn from a prompt has it in `KEY.txt`.
    """

    name = "webdataset"
    lists = "shards"

    def fill(
        self, folder: Path, parts: Sequence[DrawnPart], asked: ImageRequest
    ) -> Iterable[dict[str, Any]]:
        """Write the shards; the same images give the same bytes."""
        told = []
        files = files_of(parts, asked)
        for number in range(-(-len(asked) // _SHARD)):
            members = list(islice(files, _SHARD))
            path = folder / f"shard-{number:06d}.tar"
            _write_shard(path, members, asked)
            size, total = path.stat().st_size, digest(path)
            facts = {"file": path.name, "images": len(members), "bytes": size, "sha256": total}
            told.append(facts | {"seeds": [asked.seeds[image] for image, _ in members]})
        return told


def _write_shard(path: Path, members: Sequence[tuple[int, Path]], asked: ImageRequest) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as shard:
        for image, file in members:
            for suffix, content in (("png", file.read_bytes()), *_told(image, asked)):
                header = tarfile.TarInfo(f"{image:06d}.{suffix}")  # of nobody, at no time
                header.size = len(content)
                shard.addfile(header, io.BytesIO(content))


def _told(image: int, asked: ImageRequest) -> Iterator[tuple[str, bytes]]:
    """What a shard says of an image, by the suffix under which it does."""
    facts, name = asked.facts(image), asked.class_names[asked.labels[image]]
    if asked.captioned:
        yield "txt", name.encode("utf-8", "replace")
    else:
        facts["class_name"] = name
        yield "cls", str(facts["label"]).encode()
    yield "json", json.dumps(facts).encode()


def entries(
    parts: Sequence[DrawnPart], asked: ImageRequest, place: Callable[[int], str]
) -> Iterator[dict[str, Any]]:
    """What a record says of each image, whose file lies at a place in the folder."""
    for part in parts:
        made = _made(part)
        for image in part.images:
            told = made[asked.file_name(image)]
            yield {"file": place(image), **asked.facts(image), **told}


def files_of(parts: Sequence[DrawnPart], asked: ImageRequest) -> Iterator[tuple[int, Path]]:
    """Number and PNG of each image, in the order asked for."""
    for part in parts:
        yield from ((image, part.folder / asked.file_name(image)) for image in part.images)


def link(file: Path, name: Path) -> None:
    """Give a file a second name, or copy it where the file system has no such names."""
    try:
        os.link(file, name)
    except OSError:
        shutil.copyfile(file, name)


def _spread(files: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first file, the last and some between them."""
    places = np.linspace(0, len(files) - 1, min(_LOOKED_AT, len(files))).round()
    return [files[int(place)] for place in places]


def _png(values: UInt8[Tensor, "C H W"]) -> bytes:
    stream = io.BytesIO()
    to_picture(values).save(stream, "PNG")
    return stream.getvalue()


def _made(part: DrawnPart) -> dict[str, Any]:
    """Size and hash of each PNG of a part, by name."""
    try:
        made: dict[str, Any] = json.loads((part.folder / _PICTURES).read_text())
    except UNREADABLE as error:
        raise StorageError(
            f"a part does not say what its pictures are: {_PICTURES} cannot be read",
            where=str(part.folder),
            remedy="remove the part and run the same command again",
        ) from error
    return made


def _sheet(parts: Sequence[DrawnPart], asked: ImageRequest) -> Image.Image:
    """The first images with their classes or prompts, and seeds."""
    shown = min(len(asked), MOST_SHOWN)
    files = [file for _, file in islice(files_of(parts, asked), shown)]
    captions = [asked.caption(image) for image in range(shown)]
    pixels = torch.stack([pixels_of(file) for file in files])
    return captioned(pixels, captions, prompts=asked.captioned)


def pixels_of(file: Path) -> UInt8[Tensor, "C H W"]:
    """The values of a picture."""
    with Image.open(file) as picture:
        values = torch.from_numpy(np.array(picture))
    return values[None] if values.ndim == 2 else values.permute(2, 0, 1)
