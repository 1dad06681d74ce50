"""Checkpoints: a folder of safetensors and a manifest that vouches for every byte."""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffmoe.checkpoint.files import digest, new_folder, write_text
from diffmoe.checkpoint.manifest import (
    MANIFEST,
    RESTORE,
    SCHEMA,
    Manifest,
    manifest_text,
    read_manifest,
)
from diffmoe.errors import StorageError

__all__ = ["Content", "read_part", "sound", "verify", "write"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Content:
    """What a checkpoint is made of, but for what is found while it is written."""

    step: int
    samples: int  # training images seen
    parts: dict[str, dict[str, Tensor]]
    config: dict[str, Any] = field(default_factory=dict)  # the resolved config of the run
    trained_on: Mapping[str, str] = field(default_factory=dict)  # `codec` and `data`
    state: Mapping[str, int | float] = field(default_factory=dict)  # the counters of the run


def write(parent: Path, content: Content) -> Path:
    """Write a checkpoint below `parent`; it appears by one rename or not at all.

    Raises StorageError if it cannot be written; what was there before is then as it was.
    """
    path = parent / f"step-{content.step:08d}"
    with suppress(StorageError):
        verify(path)
        return path
    with new_folder(path, replace=True) as aside:
        for name, tensors in content.parts.items():
            whole = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
            save_file(whole, aside / f"{name}.safetensors")
        write_text(aside / MANIFEST, manifest_text(_manifest(content, aside)))
    return path


def _manifest(content: Content, aside: Path) -> Manifest:
    files = sorted(aside.iterdir())
    return Manifest(
        schema=SCHEMA,
        step=content.step,
        samples=content.samples,
        diffmoe=version("diffmoe"),
        torch=torch.__version__,
        config=content.config,
        trained_on=dict(content.trained_on),
        state=dict(content.state),
        tensors={name: _index(name, tensors) for name, tensors in content.parts.items()},
        files={file.name: {"sha256": digest(file), "bytes": file.stat().st_size} for file in files},
    )


def _index(part: str, tensors: dict[str, Tensor]) -> dict[str, list[Any]]:
    """Whole tensors, all of them in the one file of the part."""
    return {
        name: [_name(value.dtype), list(value.shape), {f"{part}.safetensors": [0] * value.dim()}]
        for name, value in tensors.items()
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def verify(path: Path) -> Manifest:
    """The manifest of a checkpoint whose every file is as it was written; else StorageError."""
    manifest = read_manifest(path)
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
            raise StorageError(f"the checkpoint lacks {name}", where=str(path), remedy=RESTORE)
        with _reading(name, path):
            found = digest(file)
        if found != facts["sha256"]:
            raise StorageError(
                f"{name} is damaged: sha256 {found[:16]}, expected {str(facts['sha256'])[:16]}",
                where=str(path),
                remedy=RESTORE,
            )
    return manifest


def sound(path: Path) -> Manifest | None:
    """The manifest of a checkpoint that is as it was written; None, with a warning, of another."""
    try:
        return verify(path)
    except StorageError as error:
        _LOG.warning("skipping a checkpoint: %s", error)
        return None


def read_part(path: Path, name: str) -> dict[str, Tensor]:
    """The tensors of one part of a verified checkpoint, put together from their pieces."""
    index = read_manifest(path).tensors.get(name)
    if index is None:
        raise StorageError(f"the checkpoint has no {name}", where=str(path), remedy=RESTORE)
    files: dict[str, dict[str, Tensor]] = {}
    for file in sorted({file for row in index.values() for file in row[2]}):
        with _reading(file, path):
            files[file] = load_file(path / file)
        listed = {key for key, row in index.items() if file in row[2]}
        wrong = sorted(listed ^ files[file].keys())
        if wrong:
            raise _unlike(f"{file} {'lacks' if wrong[0] in listed else 'has'} {wrong[0]}", path)
    return {key: _assembled(key, row, files, path) for key, row in index.items()}


def _assembled(
    name: str, row: list[Any], files: dict[str, dict[str, Tensor]], path: Path
) -> Tensor:
    """One tensor; raises StorageError unless its pieces fill it, each element once."""
    dtype, shape, pieces = row
    found = {file: files[file][name] for file in pieces}
    if any(_name(piece.dtype) != dtype for piece in found.values()):
        raise _unlike(f"{name} is not {dtype}", path)
    first = next(iter(found.values()))
    if len(found) == 1 and list(first.shape) == shape and not any(next(iter(pieces.values()))):
        return first
    elements = sum(piece.numel() for piece in found.values())
    if elements != math.prod(shape) or any(p.dim() != len(shape) for p in found.values()):
        raise _unlike(f"the pieces of {name} do not fill it", path)
    filled, whole = torch.zeros(shape, dtype=torch.bool), torch.empty(shape, dtype=first.dtype)
    for file, piece in found.items():
        place = tuple(slice(a, a + n) for a, n in zip(pieces[file], piece.shape, strict=True))
        if whole[place].shape != piece.shape or filled[place].any():
            raise _unlike(f"the pieces of {name} do not fit together", path)
        whole[place], filled[place] = piece, True
    return whole


def _unlike(what: str, path: Path) -> StorageError:
    return StorageError(
        f"the checkpoint is not as its manifest says: {what}", where=str(path), remedy=RESTORE
    )


@contextmanager
def _reading(name: str, path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"cannot read {name} ({error})", where=str(path), remedy=RESTORE
        ) from error
