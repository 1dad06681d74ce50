"""Whether files are those that the record of their sampling describes."""

import hashlib
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from diffmoe.checkpoint import digest
from diffmoe.sampling.output.place import RECORD, SHEET, listed
from diffmoe.sampling.output.records import read_record

__all__ = [
    "are_recorded",
    "are_whole",
    "is_as_recorded",
    "is_record_of_npz",
    "is_recorded_npz",
    "npz_record",
]

_BLOCK = 1 << 20
_BROKEN = (OSError, ValueError, LookupError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def is_as_recorded(path: Path) -> bool | None:
    """Whether the images at `path` are those that the record of their sampling describes.

    `path` is an `.npz`, or a folder of pictures or shards; every byte of the images is read. None
    if no record of a sampling lies there, or one that does not tell what its files hold.
    """
    if path.is_dir():
        return _is_recorded_folder(path)
    record = read_record(npz_record(path))
    known = path.suffix.lower() == ".npz" and is_record_of_npz(record)
    return is_recorded_npz(path, record) if known else None


def _is_recorded_folder(folder: Path) -> bool | None:
    files = listed(read_record(folder / RECORD))
    if not files or not all("sha256" in entry for entry in files):
        return None
    names = {entry["file"] for entry in files}
    return (
        _beside(folder, names) - {SHEET} == names
        and are_whole(folder, files)
        and are_recorded(folder, files)
    )


def _beside(folder: Path, names: set[str]) -> set[str]:
    """The files of the same kind where files of these names lie: a reader may take them all."""
    places = {(Path(name).parent, Path(name).suffix) for name in names}
    found = (file for place, kind in places for file in (folder / place).glob(f"*{kind}"))
    return {file.relative_to(folder).as_posix() for file in found}


def are_whole(folder: Path, files: Iterable[dict[str, Any]]) -> bool:
    """Whether all files of a record are there, each of its size."""
    try:
        return all((folder / one["file"]).stat().st_size == one.get("bytes") for one in files)
    except OSError:
        return False


def are_recorded(folder: Path, files: Iterable[dict[str, Any]]) -> bool:
    """Whether files hold what their record says; they are read."""
    try:
        return all(digest(folder / one["file"]) == one.get("sha256") for one in files)
    except OSError:
        return False


def npz_record(path: Path) -> Path:
    """Where the record of an `.npz` lies."""
    return path.with_suffix(".json")


def is_record_of_npz(record: dict[str, Any]) -> bool:
    """Whether a record is of one file of arrays that a sampling wrote."""
    return record.get("format") == "npz" and "pixels_sha256" in record


def is_recorded_npz(path: Path, record: dict[str, Any]) -> bool:
    """Whether a file of arrays is the one of a record; it is read unless its size tells."""
    try:
        if path.stat().st_size != record.get("bytes"):
            return False
        with zipfile.ZipFile(path) as archive:
            pixels, labels = (_digest_of(archive, name) for name in ("arr_0.npy", "arr_1.npy"))
    except _BROKEN:
        return False
    known = record.get("labels_sha256", labels)  # older records do not tell
    return (pixels, labels) == (record.get("pixels_sha256"), known)


def _digest_of(archive: zipfile.ZipFile, name: str) -> str:
    """SHA-256 of the values of an array, without its header."""
    total = hashlib.sha256()
    with archive.open(name) as stream:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("no sampling writes such arrays")
        np.lib.format.read_array_header_1_0(stream)
        while block := stream.read(_BLOCK):
            total.update(block)
    return total.hexdigest()
