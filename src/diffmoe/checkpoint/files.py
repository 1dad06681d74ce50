"""Files that appear whole or not at all: written aside, flushed, then renamed once."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from diffmoe.errors import StorageError

__all__ = ["digest", "flush", "new_folder", "storage_errors", "write_file", "write_text"]

_BLOCK = 1 << 20


@contextmanager
def storage_errors(what: str, path: Path) -> Iterator[None]:
    """Turn the errors of a failing disk into one sentence about `what` at `path`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, FileExistsError):  # of a folder to be made
            reason = "a file is in the way"
        raise StorageError(
            f"cannot write {what} ({reason})",
            where=str(path),
            remedy="check the path, its permissions and the free space; nothing was left behind",
        ) from error


def flush(path: Path) -> None:
    """Force a file's or folder's content to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Replace `path` by what `write` puts into a temporary file beside it."""
    with storage_errors(path.name, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".tmp-{path.stem}-", suffix=path.suffix, dir=path.parent
        )
        os.close(handle)
        aside = Path(name)
        try:
            write(aside)
            flush(aside)
            aside.chmod(0o644)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one rename."""
    write_file(path, lambda aside: aside.write_text(text))


@contextmanager
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes `path` in one rename if the block succeeds.

    With `replace`, a folder already at `path` is removed first; without, it is an error.
    """
    with storage_errors(path.name, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".tmp-{path.name}-", dir=path.parent))
        try:
            yield aside
            aside.chmod(0o755)
            for file in aside.rglob("*"):
                flush(file)
            flush(aside)
            if replace and path.exists():
                shutil.rmtree(path)
            aside.rename(path)
            flush(path.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    total = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            total.update(block)
    return total.hexdigest()
