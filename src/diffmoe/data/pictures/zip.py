"""The members of a zip, from the directory at its end; nothing is ever unpacked."""

import stat
import zipfile
from pathlib import Path

from diffmoe.data.pictures.members import DEFLATED, STORED, Member
from diffmoe.data.pictures.names import printable
from diffmoe.data.pictures.pictures import is_picture
from diffmoe.errors import DataError

__all__ = ["zip_members"]

_ENCRYPTED = 0x1


def zip_members(path: Path) -> list[Member]:
    """The regular files of a zip in the order of its directory; links are no files.

    Raises DataError if the zip is damaged, or a picture in it is encrypted or packed in a way that
    is not read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = archive.infolist()
    except OSError:
        raise
    except Exception as error:  # a damaged directory raises nearly anything
        raise DataError(
            f"the archive is damaged or cut off ({' '.join(str(error).split())})",
            where=str(path),
            remedy="copy or pack it again",
        ) from error
    return [_member(path, entry) for entry in found if _is_file(entry)]


def _is_file(entry: zipfile.ZipInfo) -> bool:
    return not entry.is_dir() and not stat.S_ISLNK(entry.external_attr >> 16)


def _member(path: Path, entry: zipfile.ZipInfo) -> Member:
    if is_picture(entry.filename):
        _refuse_unreadable(path, entry)
    return Member(
        entry.filename,
        entry.header_offset,
        entry.compress_size,
        entry.file_size,
        entry.CRC,
        entry.compress_type,
    )


def _refuse_unreadable(path: Path, entry: zipfile.ZipInfo) -> None:
    encrypted = entry.flag_bits & _ENCRYPTED
    if not encrypted and entry.compress_type in (STORED, DEFLATED):
        return
    how = "encrypted" if encrypted else f"packed by method {entry.compress_type} of zip"
    raise DataError(
        f"{printable(entry.filename)} is {how}",
        where=str(path),
        remedy="pack it again without a password, stored or deflated",
    )
