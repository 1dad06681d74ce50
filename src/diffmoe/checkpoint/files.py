"""Files that appear whole or not at all: written aside, flushed, then renamed once."""

import glob
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from diffmoe.errors import StorageError

__all__ = [
    "append_text",
    "digest",
    "entries",
    "flush",
    "new_files",
    "new_folder",
    "remove_folder",
    "require_space",
    "storage_errors",
    "sweep",
    "write_file",
    "write_text",
]

_BLOCK = 1 << 20
_OLD = ".old"  # ends the name of a folder that waits until its successor stands
_SET_ASIDE = re.compile(r"\.tmp-(.+)-[^-]+\.old")


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
            remedy="check the path, its permissions and the free space;"
            " no half-written file was left",
        ) from error


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, by name; nothing if it is not there, StorageError if it is closed."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StorageError(
            f"the folder cannot be read ({error.strerror})",
            where=str(folder),
            remedy="check the path and its permissions",
        ) from error


def flush(path: Path) -> None:
    """Force a file's or folder's content to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def new_files(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Temporary files that take the places of `paths`, in that order, if the block succeeds.

    All are on the disk before the first takes its place. Where the last of them tells what the
    others are, a kill in between leaves it set aside: `.tmp-STEM-????????.SUFFIX`.
    """
    asides: list[Path] = []
    with storage_errors(paths[0].name, paths[0]):
        try:
            asides.extend(map(_new_aside, paths))
            yield tuple(asides)
            for aside in asides:
                flush(aside)
                aside.chmod(0o644)
            for aside, path in zip(asides, paths, strict=True):
                aside.replace(path)
        finally:
            if asides and asides[0].exists():  # nothing has changed
                for aside in asides:
                    aside.unlink(missing_ok=True)


def _new_aside(path: Path) -> Path:
    """An empty file beside `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        prefix=f".tmp-{path.stem}-", suffix=path.suffix, dir=path.parent
    )
    os.close(handle)
    return Path(name)


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Replace `path` by what `write` puts into a temporary file beside it."""
    with new_files(path) as (aside,):
        write(aside)


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one rename."""
    write_file(path, lambda aside: aside.write_text(text))


def append_text(path: Path, text: str) -> None:
    """Add text to the end of a file; if that fails, the file is as it was."""
    with storage_errors(path.name, path):
        before = path.stat().st_size if path.exists() else None
        try:
            with path.open("a") as stream:
                stream.write(text)
        except OSError:
            if before is not None:
                os.truncate(path, before)
            raise


@contextmanager
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes `path` in one rename if the block succeeds.

    With `replace`, a folder already at `path` is removed once the new one stands in its place;
    without, it is an error.
    """
    with storage_errors(path.name, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".tmp-{path.name}-", dir=path.parent))
        try:
            yield aside
            aside.chmod(0o755)
            for file in aside.rglob("*"):
                if file.is_file():
                    file.chmod(0o644)
                flush(file)
            flush(aside)
            if replace:
                _exchange(aside, path)
            else:
                aside.rename(path)
                flush(path.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _exchange(aside: Path, path: Path) -> None:
    """Rename `aside` to `path`; what it replaces is renamed too and goes when that has worked."""
    for old in sorted(path.parent.glob(f".tmp-{glob.escape(path.name)}-*{_OLD}")):
        if _home_of(old) == path:
            _settle(old, path)
    old = aside.with_name(aside.name + _OLD)
    if path.is_dir() and not path.is_symlink():
        path.rename(old)
    try:
        aside.rename(path)
    except BaseException:
        if old.exists():
            old.rename(path)
        raise
    flush(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _home_of(old: Path) -> Path | None:
    """Where a folder stood that was set aside, or None for anything else."""
    match = _SET_ASIDE.fullmatch(old.name)
    return old.with_name(match[1]) if match else None


def _settle(old: Path, home: Path) -> None:
    """Put back a folder whose successor never came; remove it if the successor stands."""
    if home.exists():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.rename(home)


def sweep(parent: Path, name: str = "") -> None:
    """Remove what an interrupted write of `name` (of anything) left; put back what it replaced."""
    for path in sorted(parent.glob(f".tmp-{glob.escape(name)}*")):
        home = _home_of(path)
        if home is not None and path.is_dir():
            _settle(path, home)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Remove a folder so that a kill in between leaves nothing that looks whole."""
    aside = path.with_name(f".tmp-{path.name}-{os.urandom(4).hex()}")
    with storage_errors(path.name, path):
        path.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def require_space(path: Path, needed: int, what: str, remedy: str) -> None:
    """Raise StorageError if fewer than `needed` bytes are free where `path` is to be."""
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    with storage_errors(path.name, path):
        free = shutil.disk_usage(there).free
    if free < needed:
        raise StorageError(
            f"no space for {what}: about {_size(needed)} are needed, {_size(free)} are free",
            where=str(path),
            remedy=f"free some, choose another place, or {remedy}",
        )


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"


def digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    total = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            total.update(block)
    return total.hexdigest()
