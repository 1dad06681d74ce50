"""Checkpoints: a folder of safetensors and a manifest that vouches for every byte."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed import ProcessGroup

from diffmoe.checkpoint.files import digest, new_folder
from diffmoe.checkpoint.manifest import RESTORE, SCHEMA, Manifest, read_manifest, write_manifest
from diffmoe.checkpoint.pieces import Boxes, Piece, dtype_name, read_pieces, reading
from diffmoe.errors import StorageError

__all__ = ["Content", "manifest_of", "read_part", "sound", "verify", "write"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Content:
    """What a checkpoint is made of, but for what is found while it is written."""

    step: int
    samples: int  # training images seen
    parts: dict[str, dict[str, Tensor | Piece]]
    config: dict[str, Any] = field(default_factory=dict)  # the resolved config of the run
    trained_on: Mapping[str, str] = field(default_factory=dict)  # `codec` and `data`
    state: Mapping[str, int | float] = field(default_factory=dict)  # the counters of the run


def write(parent: Path, content: Content, group: ProcessGroup | None = None) -> Path:
    """Write a checkpoint below `parent`; it appears by one rename or not at all.

    Every process of a `group` of the CPU has to call this, with the same step; each writes a share
    of it, in a folder that all of them see. Raises StorageError if it cannot be written, on all of
    them: what failed on one is its own error there and named by the others (PeerError if it was
    not the disk). What was there before is then as it was. A process that is gone is an error of
    its collective, RuntimeError.
    """
    path = parent / f"step-{content.step:08d}"
    if group is not None and group.size() > 1:
        from diffmoe.checkpoint.joint import write_together  # half a second that few need

        write_together(path, content, group)
        return path
    with suppress(StorageError):
        verify(path)
        return path
    with new_folder(path, replace=True) as aside:
        for name, tensors in content.parts.items():
            whole = {key: _whole(key, value) for key, value in tensors.items()}
            save_file(whole, aside / f"{name}.safetensors")
        files = {f.name: (digest(f), f.stat().st_size) for f in sorted(aside.iterdir())}
        index = {name: _index(name, tensors) for name, tensors in content.parts.items()}
        write_manifest(aside, manifest_of(content, index, files))
    return path


def manifest_of(
    content: Content,
    tensors: dict[str, dict[str, list[Any]]],
    files: Mapping[str, tuple[str, int]],
    cuts: dict[str, str] | None = None,
) -> Manifest:
    """What a checkpoint says of itself, given digest and size of each of its files."""
    return Manifest(
        schema=SCHEMA,
        step=content.step,
        samples=content.samples,
        diffmoe=version("diffmoe"),
        torch=torch.__version__,
        config=content.config,
        trained_on=dict(content.trained_on),
        state=dict(content.state),
        tensors=tensors,
        files={name: {"sha256": sha, "bytes": size} for name, (sha, size) in files.items()},
        cuts=cuts or {},
    )


def _whole(name: str, value: Tensor | Piece) -> Tensor:
    """A tensor to be written by one process, which has to have all of it."""
    if isinstance(value, Piece):
        if tuple(value.own.shape) != tuple(value.shape):
            raise StorageError(
                f"one process has {tuple(value.own.shape)} of {name}, which is {value.shape}",
                remedy="let every process that has a piece write",
            )
        value = value.own
    return value.detach().cpu().contiguous()


def _index(part: str, tensors: dict[str, Tensor | Piece]) -> dict[str, list[Any]]:
    """Whole tensors, all of them in the one file of the part."""
    whole = {name: v.own if isinstance(v, Piece) else v for name, v in tensors.items()}
    return {
        name: [
            dtype_name(value.dtype),
            list(value.shape),
            {f"{part}.safetensors": [0] * value.dim()},
        ]
        for name, value in whole.items()
    }


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
        with reading(name, path):
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


def read_part(path: Path, name: str, boxes: Boxes | None = None) -> dict[str, Tensor]:
    """The tensors of one part of a verified checkpoint, put together from their pieces.

    Of a tensor in `boxes` (where to begin and how far to go, on every axis) only that is read, and
    takes memory.
    """
    manifest = read_manifest(path)
    if name not in manifest.tensors:
        raise StorageError(f"the checkpoint has no {name}", where=str(path), remedy=RESTORE)
    return read_pieces(path, manifest, name, boxes)
