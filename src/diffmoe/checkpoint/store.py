"""Checkpoints: a folder of safetensors and a manifest that vouches for every byte."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffmoe.checkpoint.files import digest, entries, new_folder, remove_folder, write_text
from diffmoe.errors import StorageError

__all__ = [
    "Manifest",
    "claimed_manifest",
    "claimed_step",
    "find_checkpoint",
    "newest_checkpoint",
    "prune",
    "read_part",
    "verify",
    "write",
]

_LOG = logging.getLogger(__name__)
_SCHEMA = 1
_MANIFEST = "manifest.json"
_MOST = 10**15  # steps and samples that count as such, far inside 64 bits

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
    trained_on: dict[str, str] = field(default_factory=dict)  # `codec` and `data`, where known


def write(
    parent: Path,
    step: int,
    samples: int,
    parts: Parts,
    config: dict[str, Any] | None = None,
    trained_on: Mapping[str, str] | None = None,
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
            trained_on=dict(trained_on or {}),
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
    if not manifest.trained_on:  # as in a manifest from before it was noted
        del content["trained_on"]
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
    counts = (manifest.step, manifest.samples)
    numbers = all(type(count) is int and 0 <= count < _MOST for count in counts)
    records = isinstance(manifest.files, dict) and isinstance(manifest.trained_on, dict)
    return (numbers and records) and all(
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

    Damaged ones are passed over with a warning, for a job that goes on from there; who wants a
    certain state takes `find_checkpoint`. Raises StorageError when checkpoints exist and none of
    them is sound.
    """
    folders = _by_step(parent)
    for path in reversed(folders):
        manifest = _sound(path)
        if manifest is not None:
            return path, manifest
    if folders:
        raise _none_sound(folders, parent)
    return None


def _none_sound(folders: list[Path], parent: Path) -> StorageError:
    what = f"none of the {len(folders)} checkpoints can be read"
    if len(folders) == 1:
        what = "the only checkpoint cannot be read"
    return StorageError(what, where=str(parent), remedy="restore one or train a new run")


def find_checkpoint(parent: Path, step: int | None = None) -> tuple[Path, Manifest] | None:
    """The newest checkpoint, or that of `step`; None when there is no checkpoint at all.

    Raises StorageError when it is not there or is damaged: no other one is taken in its place.
    """
    folders = _by_step(parent)
    wanted = [path for path in folders if step in (None, _claimed_step(path))]
    if not folders:
        return None
    if not wanted:
        steps = ", ".join(str(_claimed_step(path)) for path in folders)
        raise StorageError(
            f"there is no checkpoint of step {step}",
            where=str(parent),
            remedy=f"use one of {steps}",
        )
    try:
        return wanted[-1], verify(wanted[-1])
    except StorageError as error:
        raise _without(wanted[-1], folders, error) from error


def _without(path: Path, folders: list[Path], error: StorageError) -> StorageError:
    """The refusal of a damaged checkpoint, with the step of the newest that is sound."""
    for other in reversed(folders):
        try:
            sound = verify(other).step
        except StorageError:
            continue
        reason = str(error).partition(" — ")[0]
        return StorageError(
            f"checkpoint {path.name} cannot be used: {reason}",
            where=str(path),
            remedy=f"restore it, or move it away to use step {sound}, the newest that is sound (in"
            f" Python: load(RUN, step={sound}))",
        )
    return _none_sound(folders, path.parent)


def _by_step(parent: Path) -> list[Path]:
    """Checkpoints by what they say of themselves, not by date."""
    found = [path for path in entries(parent) if path.name.startswith("step-")]
    return sorted(found, key=lambda path: (_claimed_step(path), path.name))


def claimed_step(parent: Path) -> int | None:
    """The step of the newest checkpoint by what it says of itself; None when there is none."""
    folders = _by_step(parent)
    return _claimed_step(folders[-1]) if folders else None


def claimed_manifest(parent: Path) -> Manifest | None:
    """What the newest checkpoint says of itself, unverified; None where that cannot be read."""
    folders = _by_step(parent)
    return _readable(folders[-1]) if folders else None


def _claimed_step(path: Path) -> int:
    """The step of a checkpoint by its manifest, or by its name where that cannot be read."""
    try:
        return _read_manifest(path).step
    except StorageError:
        digits = path.name.removeprefix("step-")
        return int(digits) if digits.isdecimal() else -1


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
    readable = [path for path in _by_step(parent) if _readable(path)]
    older = readable[: readable.index(newest)]
    for path in older[: max(0, len(older) - keep + 1)]:
        remove_folder(path)


def _readable(path: Path) -> Manifest | None:
    try:
        return _read_manifest(path)
    except StorageError:
        return None
