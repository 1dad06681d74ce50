"""Archives to read pictures from, made with Python's own writers."""

import io
import tarfile
import zipfile
from pathlib import Path

from PIL import Image


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
