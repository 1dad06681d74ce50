"""The members of a tar by one walk over its headers; nothing is ever unpacked."""

import logging
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from diffmoe.data.pictures.members import Member
from diffmoe.data.pictures.pictures import is_picture
from diffmoe.errors import DataError

__all__ = ["tar_members"]

_LOG = logging.getLogger(__name__)
_BLOCK = 512


def tar_members(path: Path) -> list[Member]:
    """The regular files of a tar in the order they lie there; links and devices are no files.

    Raises DataError if the tar is damaged, or ends before its end mark as one that was cut does.
    """
    members, passed_over, end = [], 0, 0
    try:
        with tarfile.open(path, "r:") as archive:
            for entry in _walk(archive):
                end = _end(entry)
                if entry.isreg():
                    members.append(Member(entry.name, entry.offset_data, entry.size, entry.size))
                else:
                    passed_over += is_picture(entry.name)
    except (tarfile.TarError, ValueError) as error:  # a damaged header may hold any number
        raise _damage(path, " ".join(str(error).split())) from error
    _refuse_cut(path, end)
    if passed_over:
        _LOG.warning("%d links in %s are no images and passed over", passed_over, path)
    return members


def _walk(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (entry := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # a kilobyte for each
        if entry.issparse() and is_picture(entry.name):
            raise tarfile.ReadError(f"{entry.name} is stored with holes")
        yield entry


def _end(entry: tarfile.TarInfo) -> int:
    """Where the next header, or the end mark, must lie."""
    return entry.offset_data + (-(-entry.size // _BLOCK) * _BLOCK if entry.isreg() else 0)


def _refuse_cut(path: Path, end: int) -> None:
    """Raise DataError unless zeros follow the last member.

    Python's reader takes a damaged header for the end, and so would lose what follows it.
    """
    with path.open("rb") as file:
        file.seek(end)
        mark = file.read(_BLOCK)
    if len(mark) < _BLOCK:
        raise _damage(path, "it has no end mark")
    if any(mark):
        raise _damage(path, f"no header at byte {end}")


def _damage(path: Path, reason: str) -> DataError:
    return DataError(
        f"the archive is damaged or cut off ({reason})",
        where=os.fspath(path),
        remedy="copy or pack it again",
    )
