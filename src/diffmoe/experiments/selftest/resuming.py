"""Drills of stopping and going on: every way leads to the undisturbed run, bit for bit."""

import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffmoe.checkpoint import Content, RunFolder, newest_checkpoint, read_metrics, read_part, write
from diffmoe.config import RunConfig
from diffmoe.errors import DiffMoEError, ExitCode
from diffmoe.experiments.selftest.children import Answer, Child
from diffmoe.experiments.selftest.outcome import Drill, Trial
from diffmoe.experiments.selftest.tiny import (
    OBJECTIVES,
    PARTS,
    ROUTERS,
    begin_training,
    changed,
    different,
    newest_state,
    tiny_run,
    trained_until,
)

__all__ = ["RESUMING"]

_WAYS: tuple[dict[str, Any], ...] = (
    {"machine__background_saves": False},
    {"machine__micro_batch": 8},
    {"machine__micro_batch": 8, "machine__activation_checkpointing": True},
)
_ENDLESS = 10**6
_LONG_STEP = 2.0  # seconds of a step that two signals are to hit


def resumes(folder: Path, seed: int, count: int) -> Iterator[Trial]:
    """Each router with each objective: two stops on the way change no bit of the state."""
    rng, kinds = random.Random(seed), [(r, o) for r in ROUTERS for o in OBJECTIVES]
    for number, (router, objective) in enumerate(kinds[:count]):
        way = _WAYS[number % len(_WAYS)] | {"loop__checkpoint_every": _ENDLESS}
        config = tiny_run(folder, router, objective, **way)
        stops = sorted(rng.sample(range(1, 6), 2))
        place = folder / f"{router} {objective}"
        straight = trained_until(config, place / "straight", 6)
        wrong = different(trained_until(config, place / "resumed", *stops, 6), straight)
        yield Trial(not wrong, _compared(wrong, f" ({router}, {objective})"))


def _compared(wrong: list[str], where: str = "") -> str:
    return f"{len(wrong)} items differ, {wrong[0]}{where}" if wrong else "bit for bit the same"


# ---- a state that lacks something


def forgotten_state(folder: Path, seed: int, count: int) -> Iterator[Trial]:
    """A resume that lost an item of the state is refused, or another run: nothing is in it idly."""
    config = tiny_run(folder, loop__checkpoint_every=_ENDLESS)
    straight = trained_until(config, folder / "straight", 6)
    trained_until(config, folder / "whole", 4)
    _rewrite(folder / "whole", lambda parts, state: None)
    for name in ["", *_items(folder / "whole", seed, count)]:
        shutil.copytree(folder / "whole", folder / "run")
        if name:
            _rewrite(folder / "run", _without(name))
        wrong = _resumed_wrong(config, folder / "run", straight)
        if name:
            yield Trial(bool(wrong), wrong if wrong else f"nobody missed {name}")
        else:
            yield Trial(not wrong, wrong or "rewritten whole, the same run")
        shutil.rmtree(folder / "run")


def _items(run: Path, seed: int, count: int) -> list[str]:
    """Some tensors of each part, the parts themselves, and where in the data the run is.

    What is copied from the model to the averages at each step is no state of its own.
    """
    rng, state = random.Random(seed), newest_state(run)
    names = [name for name in state if "/" in name and "threshold" not in name]
    own = [[n for n in names if n.startswith(f"{part}/")] for part in PARTS]
    each = max(1, (count - 4) // len(PARTS))
    drawn = [name for part in own for name in rng.sample(part, min(each, len(part)))]
    return ["state/position", *PARTS, *drawn][:count]


Change = Callable[[dict[str, dict[str, Tensor]], dict[str, Any]], object]


def _without(name: str) -> Change:
    part, _, item = name.partition("/")

    def forget(parts: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        if part == "state":
            state[item] = 0
        elif not item:
            del parts[part]
        else:
            value = parts[part][item]
            parts[part][item] = torch.zeros_like(value) if value.any() else torch.ones_like(value)

    return forget


def _rewrite(run: Path, change: Change) -> None:
    """Make the newest checkpoint another one, whose manifest vouches for it."""
    checkpoints = RunFolder(run).checkpoints
    found = newest_checkpoint(checkpoints)
    if found is None:
        return
    path, manifest = found
    parts, state = {part: read_part(path, part) for part in PARTS}, dict(manifest.state)
    shutil.rmtree(checkpoints)
    change(parts, state)
    facts = (manifest.step, manifest.samples, parts, manifest.config, manifest.trained_on, state)
    write(checkpoints, Content(*facts))


def _resumed_wrong(config: RunConfig, run: Path, straight: dict[str, Any]) -> str:
    """How going on from here is not the undisturbed run; empty if it is."""
    try:
        wrong = different(trained_until(config, run, 6), straight)
    except DiffMoEError:
        return "refused"
    return "another run" if wrong else ""


# ---- stops


def signals(folder: Path, seed: int, count: int) -> Iterator[Trial]:
    """A signal to a job and its readers: saved, exit code 75, and going on is the same run."""
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    for number in numbers[:count]:
        place = folder / number.name
        config = tiny_run(folder, machine__workers=2, loop__checkpoint_every=_ENDLESS)
        child = _training(config, place)
        child.send(number)
        wrong = _stopped_wrong(child.answer(), place) or _continued_wrong(config, place)
        yield Trial(not wrong, f"{number.name}: {wrong}" if wrong else "saved, 75, the same run")


def _training(config: RunConfig, run: Path, **options: Any) -> Child:
    """A child that trains without end, once it has taken its first steps."""
    endless = changed(config, {"loop.steps": _ENDLESS})
    child = begin_training(endless, run, **options)
    child.wait_for(lambda: read_metrics(RunFolder(run).metrics))
    return child


def _stopped_wrong(found: Answer, run: Path) -> str:
    """How a stop is not the one that was promised; empty if it is."""
    if found.error != "StoppedError" or found.exit_code != ExitCode.RESUMABLE:
        return found.told
    step = newest_state(run).get("step")
    return "" if f"step {step}," in found.said else f"{found.told}, but {step} is on the disk"


def _continued_wrong(config: RunConfig, run: Path) -> str:
    """How a run, gone on with for two steps, is not the undisturbed one; empty if it is."""
    last = newest_state(run)["step"] + 2
    straight = trained_until(config, run.with_name(f"{run.name} straight"), last)
    wrong = different(trained_until(config, run, last), straight)
    return _compared(wrong) if wrong else ""


def second_signal(folder: Path, seed: int, count: int) -> Iterator[Trial]:
    """A second signal ends a step of seconds at once, and leaves the last checkpoint as it was."""
    images = int(_LONG_STEP * _images_per_second(folder))
    config = tiny_run(
        folder,
        training__global_batch=512 * max(1, images // 512),
        machine__micro_batch=512,
        loop__checkpoint_every=1,
        loop__steps=_ENDLESS,
    )
    for number in range(count):
        yield _two_signals(config, RunFolder(folder / str(number)))


def _two_signals(config: RunConfig, run: RunFolder) -> Trial:
    child = begin_training(config, run.path)
    child.wait_for(lambda: run.saved_step)
    before = newest_state(run.path)
    for _ in range(2):
        time.sleep(0.2)  # into the next step; for the second one to find the first handled
        child.send(signal.SIGTERM)
    found = child.answer()
    held = found.signal == signal.SIGTERM and not different(before, newest_state(run.path))
    return Trial(held, "ended at once, nothing lost" if held else found.told)


def _images_per_second(folder: Path) -> float:
    config = tiny_run(folder, training__global_batch=2048, machine__micro_batch=512)
    trained_until(config, folder / "speed", 2)
    return float(read_metrics(RunFolder(folder / "speed").metrics)[-1]["images_per_second"])


def end_of_time(folder: Path, seed: int, count: int) -> Iterator[Trial]:
    """A run whose time is over saves, leaves with exit code 75 and can be gone on with."""
    for number in range(count):
        run = folder / str(number)
        config = tiny_run(folder, loop__checkpoint_every=_ENDLESS)
        child = _training(config, run, max_seconds=0.3)
        wrong = _stopped_wrong(child.answer(), run) or _continued_wrong(config, run)
        yield Trial(not wrong, wrong or "saved, 75, the same run")


RESUMING = tuple(
    Drill(*facts)
    for facts in (
        ("resume", "a resumed run is the undisturbed one, bit for bit", resumes, 8),
        ("state", "every item of a run's state is saved and read", forgotten_state, 13),
        ("signals", "a signal saves the run and leaves with code 75", signals, 3),
        ("second-signal", "a second signal ends a run at once", second_signal, 1),
        ("end-of-time", "a run out of time saves and leaves with code 75", end_of_time, 1),
    )
)
