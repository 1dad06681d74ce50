"""Where samples may be written: never over anything that a sampling did not write."""

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from diffmoe.errors import StorageError
from diffmoe.sampling.output.records import UNREADABLE, read_record

__all__ = [
    "GRID",
    "METADATA",
    "RECORD",
    "SHEET",
    "listed",
    "refuse_foreign",
    "refuse_place",
    "refuse_unmovable",
    "refuse_unwritable",
]

RECORD, SHEET = "samples.json", "sheet.png"
METADATA, GRID = "metadata.jsonl", "grid.png"  # beside the folder of each prompt's images
_NAMES = {
    "images": re.compile(r"\d{6,}-(class|prompt)-\d+-seed-\d+\.png|\d{5,}/samples/\d{4,}\.png"),
    "shards": re.compile(r"shard-\d{6,}\.tar"),
}


def refuse_place(path: Path) -> None:
    """Raise StorageError unless a folder of samples may be put at `path`.

    It may if nothing is there, or an empty folder, or samples and nothing else: the files that
    their `samples.json` records, the sheet, the record.
    """
    refuse_foreign(_foreign(path), path, "choose another folder")
    refuse_unmovable(path)
    refuse_unwritable(path.parent, path.name)


def refuse_foreign(name: str, path: Path, remedy: str) -> None:
    """Raise StorageError if something of that name, empty for none, is not of a sampling."""
    if name:
        raise StorageError(
            f"{name} was not written by a sampling and would be lost",
            where=str(path),
            remedy=remedy,
        )


def refuse_unmovable(path: Path) -> None:
    """Raise StorageError if another folder cannot take the place of what is at `path`."""
    kind = _unmovable(path)
    if kind:
        raise StorageError(
            f"another folder cannot replace {kind}",
            where=str(path),
            remedy="choose a folder below it",
        )


def listed(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The files a record of a folder lists; none if it is a record of something else."""
    try:
        kind = next(kind for kind in _NAMES if kind in record)
        files = list(record[kind])
        ours = all(_NAMES[kind].fullmatch(entry["file"]) for entry in files)
    except (StopIteration, *UNREADABLE):
        return []
    return files if ours else []


def _foreign(path: Path) -> str:
    """The name of the first thing at `path` that is not of samples; empty if there is none."""
    if not path.is_dir():
        return path.name if path.exists() else ""
    names = {PurePosixPath(entry["file"]) for entry in listed(read_record(path / RECORD))}
    return next(_others(path, PurePosixPath(), names, _folders(names)), "")


def _folders(names: set[PurePosixPath]) -> set[PurePosixPath]:
    """The folders that files lie in, below the one that is "."."""
    return {parent for name in names for parent in name.parents} - {PurePosixPath()}


def _others(
    path: Path, below: PurePosixPath, names: set[PurePosixPath], folders: set[PurePosixPath]
) -> Iterator[str]:
    """The names of things in a folder that are not of samples: images, and what is beside them."""
    beside = (METADATA, GRID) if below in folders else (RECORD, SHEET) if names else ()
    for entry in sorted(path.iterdir()):
        name = below / entry.name
        if name in folders and entry.is_dir() and not entry.is_symlink():
            yield from _others(entry, name, names, folders)
        elif not (entry.is_file() and (name in names or entry.name in beside)):
            yield name.as_posix()


def _unmovable(path: Path) -> str:
    """What a folder is that another cannot take the place of; empty for any other."""
    if path.is_symlink():
        return "a link"
    if path.resolve() == Path.cwd():
        return "the folder you are in"
    return "a mount point" if path.absolute().is_mount() else ""


def refuse_unwritable(folder: Path, name: str = "") -> None:
    """Raise StorageError unless something called `name` can be made in `folder`.

    A folder that is not there yet is judged by the nearest one above it.
    """
    place = folder
    while not (place.exists() or place.is_symlink()):
        place = place.parent
    try:
        with tempfile.TemporaryDirectory(prefix=f".tmp-{name}-", dir=place):
            return
    except OSError as error:
        raise StorageError(
            f"nothing can be written here ({error.strerror})",
            where=str(folder / name),
            remedy="choose another place, or check its permissions and the free space",
        ) from error
