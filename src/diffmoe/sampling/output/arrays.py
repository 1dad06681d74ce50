"""Samples as one `.npz` of the ADM protocol, written as a stream: no array is held as a whole."""

import glob
import hashlib
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from diffmoe.checkpoint import new_files, storage_errors
from diffmoe.errors import StorageError
from diffmoe.sampling.output.checks import is_record_of_npz, is_recorded_npz, npz_record
from diffmoe.sampling.output.pictures import MOST_SHOWN, captioned
from diffmoe.sampling.output.place import refuse_foreign, refuse_unwritable
from diffmoe.sampling.output.records import (
    DrawnPart,
    ImageRequest,
    read_record,
    sweep_asides,
    write_record,
)

__all__ = ["NpzFile"]

_PIXELS = "pixels.npy"
_FIRST_DAY = (1980, 1, 1, 0, 0, 0)  # of zip's calendar: the same images give the same bytes


class NpzFile:
    """`arr_0`, 8-bit RGB images (N, H, W, 3), and `arr_1`, their labels; not compressed.

    Beside FILE.npz lie FILE.json, how it was made, and FILE-sheet.png, the first of the images.
    """

    name = "npz"

    def refuse(self, target: Path) -> None:
        """Raise StorageError unless the three files may be written: they are not there, or ours."""
        files = (target, npz_record(target), self.sheet(target))
        there = [file for file in files if file.exists() or file.is_symlink()]
        ours = _is_ours(target)
        foreign = [file for file in there if not (ours and file.is_file())]
        refuse_foreign(foreign[0].name if foreign else "", target, "choose another file")
        if any(file.is_symlink() for file in there):
            raise StorageError(
                "another file cannot replace a link", where=str(target), remedy="choose another"
            )
        if target in there and not any(is_recorded_npz(target, one) for one in _records(target)):
            raise StorageError(
                f"{target.name} is not what {npz_record(target).name} describes and would be lost",
                where=str(target),
                remedy="choose another file, or remove it",
            )
        refuse_unwritable(target.parent, target.name)

    def sheet(self, target: Path) -> Path:
        """The sheet lies beside the file."""
        return target.with_name(f"{target.stem}-sheet.png")

    def room(self, values: int) -> int:
        """Every value once in the parts and once in the file."""
        return 2 * values

    def is_written(self, target: Path, request: str) -> bool:
        """Whether the file is the one of its record, and that is of this request."""
        record = read_record(npz_record(target))
        return record.get("request") == request and is_recorded_npz(target, record)

    def write_part(
        self, folder: Path, pixels: UInt8[Tensor, "n C H W"], images: range, asked: ImageRequest
    ) -> None:
        """Keep images as an array, grey ones in three equal channels."""
        colours = pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous()
        np.save(folder / _PIXELS, colours.numpy())

    def assemble(
        self, target: Path, parts: Sequence[DrawnPart], asked: ImageRequest, facts: dict[str, Any]
    ) -> None:
        """Write all three files aside, then put them into their places, the record last.

        So a kill in between leaves no record beside a file that it describes by mistake, and the
        record that is still set aside says whose the file is.
        """
        self.refuse(target)
        record, sheet = npz_record(target), self.sheet(target)
        _settle(target)
        for file in (target, record, sheet):
            sweep_asides(file)
        with new_files(target, sheet, record) as (arrays, picture, text):
            said = {
                **facts,
                "format": self.name,
                **asked.names,
                **_write_arrays(arrays, parts, asked),
                "bytes": arrays.stat().st_size,
            }
            _sheet(parts, asked).save(picture)
            write_record(text, said, "seeds", asked.seeds)


def _asides(target: Path) -> list[Path]:
    """Records of files of that name that a kill has kept from their place."""
    place = npz_record(target)
    return sorted(place.parent.glob(f".tmp-{glob.escape(place.stem)}-{'?' * 8}{place.suffix}"))


def _records(target: Path) -> list[dict[str, Any]]:
    """What a sampling says of a file of that name, beside it or set aside."""
    found = map(read_record, (npz_record(target), *_asides(target)))
    return [record for record in found if is_record_of_npz(record)]


def _is_ours(target: Path) -> bool:
    """Whether a record says that a sampling wrote files of that name, and none lies in its way."""
    place = npz_record(target)
    return bool(_records(target)) and (not place.exists() or is_record_of_npz(read_record(place)))


def _settle(target: Path) -> None:
    """Give a file the record that a kill has kept from its place."""
    for aside in _asides(target):
        record = read_record(aside)
        if is_record_of_npz(record) and is_recorded_npz(target, record):
            with storage_errors(target.name, target):
                aside.replace(npz_record(target))


def _write_arrays(path: Path, parts: Sequence[DrawnPart], asked: ImageRequest) -> dict[str, str]:
    """Write both arrays; returns the SHA-256 of the pixels and of the labels."""
    digest = hashlib.sha256()
    labels = np.asarray(asked.labels, dtype=np.int64)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        with _entry(archive, "arr_0", (len(asked), *_shape(parts[0])), "|u1") as stream:
            for pixels in _pixels(parts):
                digest.update(pixels)
                stream.write(pixels)
        with _entry(archive, "arr_1", labels.shape, labels.dtype.str) as stream:
            stream.write(labels.tobytes())
    of_labels = hashlib.sha256(labels.tobytes()).hexdigest()
    return {"pixels_sha256": digest.hexdigest(), "labels_sha256": of_labels}


def _entry(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], kind: str) -> IO[bytes]:
    """An array of the archive, open for its values after its header."""
    entry = zipfile.ZipInfo(f"{name}.npy", _FIRST_DAY)
    stream = archive.open(entry, "w", force_zip64=True)
    header = {"descr": kind, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream


def _shape(part: DrawnPart) -> tuple[int, int, int]:
    _, height, width, channels = np.load(
        part.folder / _PIXELS, mmap_mode="r", allow_pickle=False
    ).shape
    return height, width, channels


def _pixels(parts: Sequence[DrawnPart]) -> Iterator[bytes]:
    """The pixels of part after part."""
    for part in parts:
        pixels = np.load(part.folder / _PIXELS, allow_pickle=False)
        if len(pixels) != len(part.images):
            raise StorageError(
                f"a part holds {len(pixels)} images instead of {len(part.images)}",
                where=str(part.folder),
                remedy="remove the part and run the same command again",
            )
        yield pixels.tobytes()


def _sheet(parts: Sequence[DrawnPart], asked: ImageRequest) -> Image.Image:
    """The first images with their classes or prompts, and seeds."""
    shown = min(len(asked), MOST_SHOWN)
    found: list[np.ndarray] = []
    for part in parts:
        if len(found) < shown:
            found += list(np.load(part.folder / _PIXELS, allow_pickle=False)[: shown - len(found)])
    pixels = torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2)
    captions = [asked.caption(image) for image in range(shown)]
    return captioned(pixels, captions, prompts=asked.captioned)
