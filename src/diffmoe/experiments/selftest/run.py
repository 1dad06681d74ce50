"""All drills, each in a process and a folder of its own, and what came of them."""

import json
import math
import os
import platform
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch
from tqdm import tqdm

from diffmoe.checkpoint import require_space, storage_errors, write_text
from diffmoe.config import nearest
from diffmoe.device import machine_of
from diffmoe.errors import ConfigError, ExitCode
from diffmoe.experiments.selftest.children import ORPHANED, begin
from diffmoe.experiments.selftest.drawing import DRAWING
from diffmoe.experiments.selftest.filesystem import FILE_SYSTEM
from diffmoe.experiments.selftest.inputs import INPUTS
from diffmoe.experiments.selftest.numbers import NUMBERS
from diffmoe.experiments.selftest.outcome import Drill, Outcome, tallied
from diffmoe.experiments.selftest.resuming import RESUMING
from diffmoe.experiments.selftest.storage import STORAGE
from diffmoe.experiments.selftest.tiny import tiny_run
from diffmoe.sampling import refuse_unwritable
from diffmoe.training import new_state

__all__ = ["DRILLS", "SelfTest", "self_test"]

DRILLS: tuple[Drill, ...] = (*FILE_SYSTEM, *STORAGE, *RESUMING, *NUMBERS, *INPUTS, *DRAWING)
_PATIENCE = 180.0  # seconds for a drill that takes a few
_SPACE = 256 << 20  # bytes, far more than all of it takes
_BROKEN = 1  # exit code of a broken promise that is not about storage


@dataclass(frozen=True)
class SelfTest:
    """What was seen on which machine."""

    machine: dict[str, str]
    seed: int
    outcomes: tuple[Outcome, ...]

    @property
    def broken(self) -> tuple[Outcome, ...]:
        """The promises that were not kept."""
        return tuple(found for found in self.outcomes if found.is_broken)

    @property
    def exit_code(self) -> int:
        """0 where all promises were kept; 5 where one about storage was broken, else 1."""
        if not self.broken:
            return ExitCode.DONE
        return ExitCode.STORAGE if any(each.is_storage for each in self.broken) else _BROKEN


def self_test(
    folder: Path | str = ".",
    *,
    only: Sequence[str] = (),
    seed: int = 0,
    out: Path | None = None,
    tell: Callable[[SelfTest], object] | None = None,
    progress: bool = True,
) -> SelfTest:
    """Put each promise, or those of the drills named in `only`, to a trial on a folder's disk.

    All happens in a folder of its own below `folder`, which goes when it is over. `out` keeps the
    figures as JSON, after `tell` was given them. Raises ConfigError for a name that no drill has or
    a folder that is not there, StorageError if it cannot be written, both before the first drill.
    """
    place = Path(folder)
    drills = _chosen(only)
    if out is not None:
        _refuse_out(out)
    if not place.is_dir():
        raise ConfigError("there is no such folder", where=str(place), remedy="name one that is")
    require_space(place, _SPACE, "the self-test", "name another --folder")
    with _scratch(place) as scratch, _one_thread():
        new_state(tiny_run(scratch), torch.device("cpu"))  # what it imports, children have
        with tqdm(drills, desc="selftest", unit="drill", disable=not progress) as bar:
            outcomes = tuple(_performed(drill, scratch, seed) for drill in _told(bar))
    found = SelfTest(_machine(place), seed, outcomes)
    if tell is not None:
        tell(found)
    if out is not None:
        write_text(out, json.dumps(asdict(found), indent=2) + "\n")
    return found


def _refuse_out(out: Path) -> None:
    """Raise unless the figures can be written there, in a folder that is there already."""
    if not out.parent.is_dir():
        raise ConfigError(
            "there is no folder to write the figures in",
            where=str(out),
            remedy="make it, or choose another --out",
        )
    if out.exists() and not out.is_file():
        raise ConfigError(
            "the figures cannot be written over what is no file",
            where=str(out),
            remedy="name a file as --out, say selftest.json",
        )
    refuse_unwritable(out.parent, out.name)


def _chosen(only: Sequence[str]) -> tuple[Drill, ...]:
    known = {drill.name: drill for drill in DRILLS}
    for name in only:
        if name not in known:
            near, listed = nearest(name, list(known)), f"there are {', '.join(known)}"
            raise ConfigError(
                f"there is no drill {name!r}",
                remedy=f"did you mean {near}? {listed}" if near else listed,
            )
    return tuple(drill for drill in DRILLS if not only or drill.name in only)


@contextmanager
def _scratch(place: Path) -> Iterator[Path]:
    """A folder below `place` that is gone afterwards, whatever happens."""
    with storage_errors("to the folder", place):
        scratch = Path(tempfile.mkdtemp(prefix=".diffmoe-selftest-", dir=place)).resolve()
    try:
        yield scratch
    finally:
        _remove(scratch)


def _remove(folder: Path) -> None:
    """Remove a folder whose drill may have closed folders inside."""
    for inner, names, _ in os.walk(folder):
        for name in names:
            path = Path(inner, name)
            if not path.is_symlink():
                path.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():  # something was written meanwhile
        time.sleep(2 * ORPHANED)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for torch: more do not survive a fork, and tiny models need no more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _told(bar: "tqdm[Drill]") -> Iterator[Drill]:
    for drill in bar:
        bar.set_postfix_str(drill.name)
        yield drill


def _performed(drill: Drill, scratch: Path, seed: int) -> Outcome:
    """The outcome of a drill, in a child: one that crashes or hangs has broken its promise."""
    folder, began = scratch / drill.name, time.monotonic()
    folder.mkdir()
    own = random.Random(f"{seed}/{drill.name}").randrange(2**31)
    child = begin(lambda: asdict(tallied(drill, folder, own)))
    try:
        found = child.answer(_PATIENCE)
    except BaseException:
        child.end()
        time.sleep(2 * ORPHANED)  # what it had started itself may still write
        raise
    finally:
        child.end()
        _remove(folder)
    seconds = round(time.monotonic() - began, 2)
    if found.error or found.signal:
        facts = (drill.name, drill.promise, 1, 0, f"the drill {found.told}", drill.is_storage)
        return Outcome(*facts, seconds=seconds)
    return replace(Outcome(**found.value), seconds=seconds)


def _machine(place: Path) -> dict[str, str]:
    """What stands beside the figures: file system, versions, processor."""
    free = shutil.disk_usage(place).free / 2**30
    return {
        "folder": str(place.resolve()),
        "file system": f"{_file_system(place)}, {free:.1f} GiB free",
        "processor": f"{machine_of(torch.device('cpu'))['device_name']}, {os.cpu_count()} cores",
        "threads": str(torch.get_num_threads()),
        "system": platform.platform(),
        "versions": ", ".join(
            [f"Python {platform.python_version()}"]
            + [f"{name} {version(name)}" for name in ("diffmoe", "torch", "safetensors")]
        ),
    }


def _file_system(place: Path) -> str:
    """The type of the file system that holds a folder, where the system tells it."""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return "of unknown type"
    here, best, found = place.resolve(), -math.inf, "of unknown type"
    for line in lines:
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].replace("\\040", " "))
        if here.is_relative_to(point) and len(point.parts) >= best:
            best, found = len(point.parts), after.split()[0]
    return found
