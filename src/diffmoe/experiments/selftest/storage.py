"""Drills of the store: kills, damage, full disks and places that cannot be written."""

import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from diffmoe.checkpoint import Content, RunFolder, read_metrics, write
from diffmoe.config import RunConfig
from diffmoe.errors import ExitCode
from diffmoe.experiments.selftest.children import Answer, begin
from diffmoe.experiments.selftest.faults import (
    FORGERIES,
    TAMPERINGS,
    flip,
    killed_while_saving,
    limit_files,
    reseal,
    telling_parts,
)
from diffmoe.experiments.selftest.filesystem import newest_step, refusal, saved
from diffmoe.experiments.selftest.outcome import Drill, Trial
from diffmoe.experiments.selftest.tiny import (
    begin_training,
    changed,
    different,
    newest_state,
    tiny_run,
    trained_until,
)
from diffmoe.training import train

__all__ = ["STORAGE"]


# ---- kills


def kills_while_saving(folder: Path, seed: int, count: int) -> Iterator[Trial]:
    """After SIGKILL at any moment the newest checkpoint loads, no older than the last called done.

    At the end something has to have been saved, or nothing was tried.
    """
    acknowledged = 0
    for found in killed_while_saving(folder, count, seed):
        acknowledged += found.acknowledged
        when = "in the middle of a save" if found.amid else "between two saves"
        loaded = "an older one loads" if found.stale else "the last one loads"
        yield Trial(
            found.whole and not found.stale,
            f"killed {when}, {loaded if found.whole else 'none loads'}",
        )
    yield Trial(acknowledged > 0, f"{acknowledged} saves")


def kills_in_training(folder: Path, seed: int, count: int) -> Iterator[Trial]:
    """Training that saves in the background, killed and gone on with: the undisturbed run."""
    rng, run, before = random.Random(seed), RunFolder(folder / "run"), 0
    config = tiny_run(folder, loop__checkpoint_every=1, loop__steps=10**6)
    for _ in range(count):
        trial, before = _killed_in_training(config, run, before, rng.uniform(0, 0.05))
        yield trial
    last = before + 2
    again = trained_until(changed(config, {"loop.checkpoint_every": 10**6}), run.path, last)
    straight = trained_until(
        changed(config, {"loop.checkpoint_every": 10**6}), folder / "straight", last
    )
    wrong = different(again, straight)
    yield Trial(not wrong, f"then {wrong[0]} differs" if wrong else "then the undisturbed run")


def _killed_in_training(
    config: RunConfig, run: RunFolder, before: int, delay: float
) -> tuple[Trial, int]:
    """What a kill leaves of a run that has saved something since step `before`, and its step."""
    child = begin_training(config, run.path)
    moved = child.wait_for(lambda: (run.saved_step or 0) > before)
    time.sleep(delay)
    alive = not child.is_over
    child.end()
    said, found = run.saved_step or 0, newest_step(run.checkpoints) or 0
    held = moved and alive and found >= said > before
    seen = "the last one saved loads" if held else f"{said} saved, {found} loads"
    return Trial(held, seen), found


# ---- damage


def flipped_bits(folder: Path, seed: int, count: int) -> Iterator[Trial]:
    """A bit that flips in any file of a checkpoint is detected."""
    rng = random.Random(seed)
    (path,) = saved(folder, 4)
    files = sorted(path.iterdir())
    for number in range(count):
        file = files[number % len(files)]
        position, bit = rng.randrange(file.stat().st_size), rng.randrange(8)
        flip(file, position, bit)
        found = refusal(path)
        flip(file, position, bit)
        place = file.name.partition(".")[0]
        yield Trial(bool(found), f"seen in {place}" if found else f"not seen in {file.name}")
    yield Trial(not refusal(path), "sound without")


def damaged_files(folder: Path, seed: int, count: int) -> Iterator[Trial]:
    """Cut, missing, swapped, added and forged files are refused, and the one before is taken."""
    whole = folder / "whole"
    saved(whole, 2, 4)
    rules = {**TAMPERINGS, **{name: _forged(name) for name in FORGERIES}}
    for name, damage in list(rules.items())[:count]:
        parent = folder / "damaged"
        shutil.copytree(whole, parent)
        damage(parent / "step-00000004", parent / "step-00000002")
        refused, taken = refusal(parent / "step-00000004"), newest_step(parent)
        held = bool(refused) and taken == 2
        yield Trial(held, "refused, the one before is taken" if held else f"{name}: taken {taken}")
        shutil.rmtree(parent)


def _forged(name: str) -> Callable[[Path, Path], object]:
    return lambda checkpoint, _: reseal(checkpoint, FORGERIES[name])


# ---- disks that fail

_SHARES = (0.1, 0.5, 0.9, 0.99)


def full_disk(folder: Path, seed: int, count: int) -> Iterator[Trial]:
    """A disk that fills up at any share of a checkpoint costs this one only; one sentence."""
    for share in _SHARES[:count]:
        yield _full_for_a_write(folder / f"write at {share}", share)
        yield _full_for_training(folder / f"train at {share}", share)
    config = tiny_run(folder, loop__keep_checkpoints=10**9)
    found = begin_training(config, folder / "vast").answer()
    yield _one_sentence(found, "no space", not (folder / "vast").exists(), "refused at step 0")


def _full_for_a_write(parent: Path, share: float) -> Trial:
    content = Content(4, 64, {"model": telling_parts(4, size=20_000)["model"]})
    sample = write(parent / "sample", content)
    size = sum(file.stat().st_size for file in sample.iterdir())
    saved(parent / "run", 2)

    def starved() -> str:
        limit_files(int(size * share))
        return str(write(parent / "run", content))

    found = begin(starved).answer()
    left = [path.name for path in (parent / "run").iterdir()] == ["step-00000002"]
    kept = left and newest_step(parent / "run") == 2
    return _one_sentence(found, "File too large", kept, "refused, the one before stays")


def _full_for_training(folder: Path, share: float) -> Trial:
    folder.mkdir()
    config = tiny_run(folder, loop__steps=2)
    run = RunFolder(folder / "run")
    trained_until(config, run.path, 2)
    size = max(file.stat().st_size for file in run.checkpoints.glob("*/optimizer.safetensors"))

    def starved() -> None:
        limit_files(int(size * share))
        train(changed(config, {"loop.steps": 4}), run.path, progress=False)

    found = begin(starved).answer()
    left = [path.name for path in run.checkpoints.iterdir()] == ["step-00000002"]
    kept = left and run.saved_step == 2 and newest_state(run.path)["step"] == 2
    return _one_sentence(found, "File too large", kept, "training stops, the one before stays")


def _one_sentence(found: Answer, wanted: str, kept: bool, seen: str) -> Trial:
    """Whether work ended with exit code 5 and one sentence, and left things as it should."""
    told = found.exit_code == ExitCode.STORAGE and wanted in found.said
    if told and len(found.said.splitlines()) == 1 and kept:
        return Trial(True, seen)
    return Trial(False, found.told + ("" if kept else ", and something was left or lost"))


def unwritable(folder: Path, seed: int, count: int) -> Iterator[Trial]:
    """A place that cannot be written is refused in one sentence, and nothing is called saved."""
    config = tiny_run(folder)
    (folder / "file").touch()
    places = [folder / "file" / "run", folder / "file"]
    left = "" if os.geteuid() else "; a closed folder is left out, as root may write there"
    if not left:
        closed = folder / "closed"
        closed.mkdir(mode=0o500)
        places.append(closed / "run")
    for place in places[:count]:
        found = begin_training(config, place).answer()
        kept = (folder / "file").stat().st_size == 0 and not (place / "checkpoints").exists()
        told = found.exit_code in (ExitCode.STORAGE, ExitCode.BAD_INPUT)
        held = told and kept and len(found.said.splitlines()) == 1
        yield Trial(held, f"refused in one sentence{left}" if held else found.told)


def two_jobs(folder: Path, seed: int, count: int) -> Iterator[Trial]:
    """A second job in the same run folder is refused, and changes nothing."""
    config = tiny_run(folder, loop__steps=10**6, loop__checkpoint_every=10**6)
    run = RunFolder(folder / "run")
    second = changed(config, {"loop.steps": 2})  # it would end, were it let in
    first = begin_training(config, run.path)
    try:
        first.wait_for(lambda: read_metrics(run.metrics))
        for _ in range(count):
            found = begin_training(second, run.path).answer()
            alive = not first.is_over
            yield _one_sentence(found, "another job writes to this run", alive, "refused")
    finally:
        first.end()
    after = begin(lambda: trained_until(config, run.path, 2) and None).answer()
    yield Trial(not after.error, after.told if after.error else "free once the first is killed")


STORAGE = tuple(
    Drill(name, promise, work, count, is_storage=True)
    for name, promise, work, count in (
        ("kills-saving", "a kill while saving loses no saved checkpoint", kills_while_saving, 20),
        ("kills-training", "a kill while training loses no saved step", kills_in_training, 6),
        ("flipped-bits", "a flipped bit in a checkpoint is seen", flipped_bits, 200),
        ("damaged-files", "a damaged or forged checkpoint is refused", damaged_files, 100),
        ("full-disk", "a full disk costs no saved checkpoint", full_disk, 4),
        ("unwritable", "a place that cannot be written is refused", unwritable, 3),
        ("two-jobs", "a run folder has one job at a time", two_jobs, 2),
    )
)
