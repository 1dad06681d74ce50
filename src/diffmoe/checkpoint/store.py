"""Checkpoints: a folder of safetensors and a manifest that vouches for every byte."""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffmoe.checkpoint.files import digest, new_folder, write_text
from diffmoe.errors import StorageError

__all__ = ["Manifest", "newest_checkpoint", "prune", "read_part", "sweep", "verify", "write"]

_LOG = logging.getLogger(__name__)
_SCHEMA = 1
_MANIFEST = "manifest.json"

Parts = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself."""

    schema: int
    step: int
    samples: int  # training images seen
    diffmoe: str  # versions that wrote it
    torch: str
    config: dict[str, Any]  # the resolved config of the run
    tensors: dict[str, dict[str, list[Any]]]  # part -> tensor -> dtype, shape
    files: dict[str, dict[str, str | int]]  # name -> sha256, bytes


def write(
    parent: Path, step: int, samples: int, parts: Parts, config: dict[str, Any] | None = None
) -> Path:
    """Write `parts` as checkpoint `step` below `parent`; it appears by one rename or not at all."""
    path = parent / f"step-{step:08d}"
    if path.exists() and _sound(path) is not None:
        return path
    with new_folder(path, replace=True) as aside:
        for name, tensors in parts.items():
            whole = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
            save_file(whole, aside / f"{name}.safetensors")
        files: dict[str, dict[str, str | int]] = {
            file.name: {"sha256": digest(file), "bytes": file.stat().st_size}
            for file in sorted(aside.iterdir())
        }
        manifest = Manifest(
            schema=_SCHEMA,
            step=step,
            samples=samples,
            diffmoe=version("diffmoe"),
            torch=torch.__version__,
            config=config or {},
            tensors={name: _index(tensors) for name, tensors in parts.items()},
            files=files,
        )
        write_text(aside / _MANIFEST, _text(manifest))
    return path


def _index(tensors: dict[str, Tensor]) -> dict[str, list[Any]]:
    return {
        name: [str(value.dtype).removeprefix("torch."), list(value.shape)]
        for name, value in tensors.items()
    }


def _text(manifest: Manifest) -> str:
    """The manifest as JSON that ends with its own digest: it too can be damaged."""
    content = asdict(manifest)
    own = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, "sha256": own}, indent=2) + "\n"


def verify(path: Path) -> Manifest:
    """The manifest of a checkpoint whose every file is as it was written; else StorageError."""
    manifest = _read_manifest(path)
    extra = {file.name for file in path.glob("*.safetensors")} - manifest.files.keys()
    if extra:
        raise StorageError(
            f"the checkpoint's manifest does not list {sorted(extra)[0]}",
            where=str(path),
            remedy="remove the file or use another checkpoint",
        )
    for name, facts in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise StorageError(f"the checkpoint lacks {name}", where=str(path), remedy=_RESTORE)
        with _reading(name, path):
            found = digest(file)
        if found != facts["sha256"]:
            raise StorageError(
                f"{name} is damaged: sha256 {found[:16]}, expected {str(facts['sha256'])[:16]}",
                where=str(path),
                remedy=_RESTORE,
            )
    return manifest


_RESTORE = "restore the file or use another checkpoint"


def _read_manifest(path: Path) -> Manifest:
    """The manifest, if it is as this version writes it down to the last byte."""
    try:
        text = (path / _MANIFEST).read_text()
        content = json.loads(text)
        schema = content["schema"]
        if schema == _SCHEMA:
            del content["sha256"]
            manifest = Manifest(**content)
            if _text(manifest) == text and _is_plain(manifest):
                return manifest
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise StorageError(
            "the checkpoint has no readable manifest", where=str(path), remedy=_RESTORE
        ) from error
    if schema != _SCHEMA:
        raise StorageError(
            f"the checkpoint's manifest is not of schema {_SCHEMA}",
            where=str(path),
            remedy="use the version that wrote it",
        )
    raise StorageError("the checkpoint's manifest is damaged", where=str(path), remedy=_RESTORE)


def _is_plain(manifest: Manifest) -> bool:
    """Whether a manifest speaks of files of its own folder, with a digest for each."""
    numbers = type(manifest.step) is int and type(manifest.samples) is int and manifest.step >= 0
    return (numbers and isinstance(manifest.files, dict)) and all(
        Path(name).name == name and name not in ("", "..") and isinstance(facts["sha256"], str)
        for name, facts in manifest.files.items()
    )


def _sound(path: Path) -> Manifest | None:
    try:
        return verify(path)
    except StorageError as error:
        _LOG.warning("skipping a checkpoint: %s", error)
        return None


def newest_checkpoint(parent: Path) -> tuple[Path, Manifest] | None:
    """The sound checkpoint of the highest step, or None when there is no checkpoint at all.

    Raises StorageError when checkpoints exist and none of them is sound.
    """
    folders = _by_step(parent)
    for path in reversed(folders):
        manifest = _sound(path)
        if manifest is not None:
            return path, manifest
    if folders:
        raise StorageError(
            f"none of the {len(folders)} checkpoints can be read",
            where=str(parent),
            remedy=_RESTORE,
        )
    return None


def _by_step(parent: Path) -> list[Path]:
    """Checkpoints by what their manifests say, not by name or date; the unreadable come first."""

    def step(path: Path) -> int:
        try:
            return _read_manifest(path).step
        except StorageError:
            return -1

    return sorted(parent.glob("step-*"), key=lambda path: (step(path), path.name))


def read_part(path: Path, name: str) -> dict[str, Tensor]:
    """The tensors of one part of a checkpoint."""
    with _reading(f"{name}.safetensors", path):
        return load_file(path / f"{name}.safetensors")


@contextmanager
def _reading(name: str, path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"cannot read {name} ({error})", where=str(path), remedy=_RESTORE
        ) from error


def prune(parent: Path, newest: Path, keep: int) -> None:
    """Keep `newest`, which was just written, and the `keep - 1` before it; remove older ones.

    A checkpoint of a later step is damaged, or the run would have gone on from it: it counts
    for nothing and is left for its owner to look at, as is one whose manifest cannot be read.
    """
    older = _by_step(parent)
    older = older[: older.index(newest)]
    for path in older[: len(older) - keep + 1]:
        if _is_readable(path):
            shutil.rmtree(path)


def _is_readable(path: Path) -> bool:
    try:
        return bool(_read_manifest(path))
    except StorageError:
        return False


def sweep(parent: Path, name: str = "") -> None:
    """Remove what an interrupted write of `name` (of anything) left behind."""
    for path in parent.glob(f".tmp-{name}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
