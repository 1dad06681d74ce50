"""Folders of results: written whole, and never in the place of anything else."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from diffmoe.checkpoint import new_folder, refuse_foreign_parts, write_text
from diffmoe.errors import ConfigError, StorageError
from diffmoe.sampling import refuse_unmovable, refuse_unwritable

__all__ = ["refuse_cache_place", "refuse_results", "results_folder"]


def refuse_results(path: Path, record: str) -> None:
    """Raise StorageError unless results, of which `record` is the list, may be put at `path`.

    They may if nothing is there, or an empty folder, or older results and nothing else.
    """
    foreign = _foreign(path, record)
    if foreign:
        raise StorageError(
            f"{foreign} was not written here before and would be lost",
            where=str(path),
            remedy="choose another folder",
        )
    refuse_unmovable(path)
    refuse_unwritable(path.parent, path.name)


def refuse_cache_place(data: Path, out: Path, record: str, read: Callable[[Path], object]) -> None:
    """Raise an error if a cache would lie among its data, or in the place of other things.

    `read` reads the `record` of one that is there, and says what to do where that is damaged.
    """
    if out.absolute().resolve().is_relative_to(data.absolute().resolve()):
        raise ConfigError(
            "the cache would lie among the data",
            where=str(out),
            remedy="choose an --out that is not below them",
        )
    if (out / record).exists():
        read(out)
    refuse_results(out, record)
    refuse_foreign_parts(out.with_name(f"{out.name}.parts"))


def _foreign(path: Path, record: str) -> str:
    """The first file at `path` that its record does not list; empty if there is none."""
    if not path.is_dir():
        return path.name if path.exists() or path.is_symlink() else ""
    listed = _listed(path / record)
    folders = {str(parent) for name in listed for parent in PurePosixPath(name).parents}
    for one in sorted(path.rglob("*")):
        name = one.relative_to(path).as_posix()
        is_folder = one.is_dir() and not one.is_symlink()
        if name not in (folders if is_folder else listed):
            return name
    return ""


def _listed(record: Path) -> set[str]:
    try:
        files = json.loads(record.read_text())["files"]
        return {record.name, *map(str, files)} if isinstance(files, list) else set()
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return set()


@contextmanager
def results_folder(path: Path, record: str, facts: dict[str, Any]) -> Iterator[Path]:
    """A temporary folder that takes the place of `path`, with a record of `facts` and its files.

    Facts may be added while the block runs. Nothing is changed if it fails.
    """
    with new_folder(path, replace=True) as aside:
        yield aside
        files = sorted(
            one.relative_to(aside).as_posix() for one in aside.rglob("*") if one.is_file()
        )
        write_text(aside / record, json.dumps({**facts, "files": files}, indent=2, default=str))
        refuse_results(path, record)  # minutes have passed
