"""Members of archives: where each lies, in a few bytes, and how one is read without the others."""

import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

__all__ = ["DEFLATED", "PLAIN", "STORED", "Member", "RefusedMember", "read_member", "table"]

PLAIN = -1  # of a tar: the content alone lies at its place; the others are methods of zip
STORED, DEFLATED = 0, 8
MOST = 256 * 2**20  # bytes of a member that are read at most
_HEADER, _SIGNATURE = 30, b"PK\3\4"  # of a member of a zip, before its name
_TABLE = np.dtype(
    [
        ("offset", "<i8"),
        ("packed", "<i8"),
        ("size", "<i8"),
        ("checksum", "<u4"),
        ("method", "<i2"),
        ("archive", "<i4"),
    ]
)


class Member(NamedTuple):
    """A file inside of an archive."""

    name: str
    offset: int  # of its content (tar) or of its header (zip)
    packed: int  # bytes that it takes in the archive
    size: int  # bytes of its content
    checksum: int = 0  # CRC-32 (zip)
    method: int = PLAIN
    archive: int = 0  # which of several archives it lies in


class RefusedMember(Exception):
    """Says why a member is not read."""


def table(members: Iterable[Member]) -> np.ndarray:
    """Where the members lie; their names are kept apart."""
    return np.array([tuple(member[1:]) for member in members], dtype=_TABLE)


def read_member(path: Path, member: Member, most: int = MOST) -> bytes:
    """The content of a member, at most its first `most` bytes if it is stored as it is.

    The archive is opened for each member: nothing is left open that a process could inherit.
    Raises RefusedMember if it is damaged or larger than any image, OSError if it cannot be read.
    """
    largest = max(member.size, member.packed)
    if largest > MOST:
        raise RefusedMember(f"{largest:,} bytes are too many")
    with path.open("rb", buffering=0) as file:
        start = member.offset
        if member.method == PLAIN:
            return _slice(file, start, min(member.size, most))
        return _unpacked(_slice(file, start + _skip(file, start), member.packed), member)[:most]


def _slice(file: BinaryIO, start: int, count: int) -> bytes:
    file.seek(start)
    content = b""
    while len(content) < count:
        more = file.read(count - len(content))
        if not more:
            raise RefusedMember("the archive ends before it")
        content += more
    return content


def _skip(file: BinaryIO, start: int) -> int:
    """Bytes between the header of a member of a zip and its content."""
    header = _slice(file, start, _HEADER)
    if not header.startswith(_SIGNATURE):
        raise RefusedMember("the archive is damaged before it")
    return _HEADER + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:], "little")


def _unpacked(packed: bytes, member: Member) -> bytes:
    """The content of a member of a zip, never more than the archive's directory promised."""
    content, size = packed, member.size
    if member.method == DEFLATED:
        try:
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, size + 1)
        except zlib.error as error:
            raise RefusedMember("its compressed bytes are damaged") from error
    if len(content) != size or zlib.crc32(content) != member.checksum:
        raise RefusedMember("its bytes are not those that were packed")
    return content
