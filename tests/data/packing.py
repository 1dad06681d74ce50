"""Archives to read pictures from, made with Python's own writers."""

import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from diffmoe.data import open_pictures
from diffmoe.errors import DataError


def png(shade: int, size: int = 9) -> bytes:
    """A PNG of one shade of grey."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (shade, shade, shade)).save(buffer, "PNG")
    return buffer.getvalue()


def tar_of(path: Path, files: list[tuple[str, bytes]], mode: str = "w", **options) -> Path:
    """A tar of files in the order given."""
    with tarfile.open(path, mode, **options) as archive:
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def zip_of(path: Path, files: list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> Path:
    """A zip of files in the order given."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return path


def files_of(folder: Path, prefix: str = "") -> list[tuple[str, bytes]]:
    """All files below a folder, in an order that is not that of their names."""
    paths = sorted((p for p in folder.rglob("*") if p.is_file()), reverse=True)
    return [(prefix + p.relative_to(folder).as_posix(), p.read_bytes()) for p in paths]


def refused(path: Path, said: str, *, labelled: bool = True) -> str:
    """The one sentence, naming the path, with which pictures there are refused."""
    with pytest.raises(DataError, match=said) as caught:
        open_pictures(path, labelled=labelled)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message
