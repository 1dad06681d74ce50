"""Which checkpoint: the newest that is sound, a certain one, and those that may go."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from diffmoe.checkpoint.files import entries, remove_folder, storage_errors
from diffmoe.checkpoint.manifest import MANIFEST, Manifest, read_manifest
from diffmoe.checkpoint.store import sound, verify
from diffmoe.errors import StorageError

__all__ = [
    "abandon_later",
    "claimed_manifest",
    "claimed_step",
    "find_checkpoint",
    "held",
    "newest_checkpoint",
    "newest_good",
    "prune",
    "set_aside_later",
]


def newest_checkpoint(parent: Path) -> tuple[Path, Manifest] | None:
    """The sound checkpoint of the highest step, or None when there is no checkpoint at all.

    Damaged ones are passed over with a warning, for a job that goes on from there; who wants a
    certain state takes `find_checkpoint`. Raises StorageError when checkpoints exist and none of
    them is sound.
    """
    folders = _by_step(parent)
    for path in reversed(folders):
        manifest = sound(path)
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


def newest_good(parent: Path) -> tuple[Path, Manifest] | None:
    """The newest sound checkpoint whose last step was finite, or None if there is none."""
    for path in reversed(_by_step(parent)):
        claimed = _readable(path)
        if claimed is not None and _is_good(claimed) and sound(path) is not None:
            return path, claimed
    return None


def _is_good(manifest: Manifest) -> bool:
    return not manifest.state.get("bad_in_a_row")


def set_aside_later(parent: Path, step: int) -> None:
    """Rename the checkpoints of steps after `step`: damaged, as the run goes on from before them.

    They stay for their owner to look at, and count for nothing.
    """
    for path in _by_step(parent):
        if _claimed_step(path) > step:
            aside = path.with_name(f"damaged-{path.name}-{os.urandom(2).hex()}")
            with storage_errors(path.name, path):
                path.rename(aside)


def abandon_later(parent: Path, step: int) -> None:
    """Remove the checkpoints of steps after `step`, for a run that goes back and another way."""
    for path in _by_step(parent):
        if _claimed_step(path) > step:
            remove_folder(path)


def find_checkpoint(
    parent: Path, step: int | None = None, holding: ExitStack | None = None
) -> tuple[Path, Manifest] | None:
    """The newest checkpoint, or that of `step`; None when there is no checkpoint at all.

    While `holding` is open, it is not pruned. Raises StorageError when it is not there or is
    damaged: no other one is taken in its place.
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
        with ExitStack() as stack:
            stack.enter_context(held(wanted[-1]))
            found = wanted[-1], verify(wanted[-1])
            if holding is not None:
                holding.push(stack.pop_all())
            return found
    except StorageError as error:
        raise _without(wanted[-1], folders, error) from error


def _without(path: Path, folders: list[Path], error: StorageError) -> StorageError:
    """The refusal of a damaged checkpoint, with the step of the newest that is sound."""
    for other in reversed(folders):
        try:
            step = verify(other).step
        except StorageError:
            continue
        reason = str(error).partition(" — ")[0]
        return StorageError(
            f"checkpoint {path.name} cannot be used: {reason}",
            where=str(path),
            remedy=f"restore it, or move it away to use step {step}, the newest that is sound (in"
            f" Python: load(RUN, step={step}))",
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
    manifest = _readable(path)
    if manifest is not None:
        return manifest.step
    digits = path.name.removeprefix("step-")
    return int(digits) if digits.isdecimal() else -1


def _readable(path: Path) -> Manifest | None:
    try:
        return read_manifest(path)
    except StorageError:
        return None


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep a checkpoint from being pruned while it is read, where the file system has locks."""
    with ExitStack() as stack:
        with suppress(OSError):
            manifest = stack.enter_context((path / MANIFEST).open())
            fcntl.flock(manifest, fcntl.LOCK_SH)
        yield


def _is_held(path: Path) -> bool:
    try:
        with (path / MANIFEST).open("r+") as manifest:  # to write: NFS asks for it
            fcntl.flock(manifest, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    return False


def prune(parent: Path, newest: Path, keep: int, every: int | None = None) -> None:
    """Keep `newest`, which was just written, and the `keep - 1` before it; remove older ones.

    Those of a step that is a multiple of `every` stay, as does the newest whose last step was
    finite, and one that is being read. Those of later steps, and those whose manifest cannot be
    read, count for nothing and are left for their owner to look at.
    """
    known = {path: manifest for path in _by_step(parent) if (manifest := _readable(path))}
    paths = list(known)
    upto = paths[: paths.index(newest) + 1]
    good = [path for path in upto if _is_good(known[path])][-1:]
    for path in upto[:-keep]:
        kept_for_good = every is not None and known[path].step % every == 0
        if not kept_for_good and path not in good and not _is_held(path):
            remove_folder(path)
