"""Faults caused on purpose: flipped bits, files that are cut, swapped or forged, kills, limits."""

import hashlib
import json
import os
import random
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffmoe.checkpoint import Content, newest_checkpoint, prune, read_part, write
from diffmoe.errors import StorageError
from diffmoe.experiments.selftest.children import fork, kill, read_all

__all__ = [
    "FORGERIES",
    "TAMPERINGS",
    "Killed",
    "flip",
    "killed_while_saving",
    "limit_files",
    "reseal",
    "telling_parts",
]

_EMA, _MANIFEST = "ema.safetensors", "manifest.json"


def telling_parts(step: int, size: int = 3) -> dict[str, dict[str, Tensor]]:
    """Parts of a checkpoint whose tensors tell their step and their part."""
    return {
        name: {"a": torch.full((size,), step + offset / 4), "b": torch.tensor(step)}
        for offset, name in enumerate(("ema", "model", "optimizer"))
    }


def flip(path: Path, position: int, bit: int = 0) -> None:
    """Turn one bit of a file round."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def limit_files(size: int) -> None:
    """Let this process write no file beyond a size, as a full disk or a quota would."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


# ---- checkpoints that were tampered with


def reseal(checkpoint: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Edit a manifest and give it the digest that a forger would."""
    path = checkpoint / _MANIFEST
    content = json.loads(path.read_text())
    del content["sha256"]
    change(content)
    content["sha256"] = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    path.write_text(json.dumps(content, indent=2) + "\n")


Forge = Callable[[dict[str, Any]], object]
FORGERIES: dict[str, Forge] = {
    "a file of the parent folder": lambda m: m["files"].update({f"../{_EMA}": m["files"][_EMA]}),
    "an absolute file": lambda m: m["files"].update({"/etc/hostname": m["files"][_EMA]}),
    "a file without a name": lambda m: m["files"].update({"": m["files"][_EMA]}),
    "a file without a digest": lambda m: m["files"][_EMA].pop("sha256"),
    "a digest that is null": lambda m: m["files"][_EMA].update(sha256=None),
    "files in a list": lambda m: m.update(files=[_EMA]),
    "no files": lambda m: m.pop("files"),
    "a file left out": lambda m: m["files"].pop(_EMA),
    "a field too many": lambda m: m.update(more=1),
    "another schema": lambda m: m.update(schema=1),
    "a step that is text": lambda m: m.update(step="4"),
    "a step below 0": lambda m: m.update(step=-1),
    "a step beyond counting": lambda m: m.update(step=10**30),
    "counters that are text": lambda m: m.update(state={"bad_steps": "1"}),
    "a tensor in no file": lambda m: m["tensors"]["ema"].update(a=["float32", [3], {}]),
    "offsets below 0": lambda m: m["tensors"]["ema"].update(a=["float32", [3], {_EMA: [-1]}]),
}


def _cut(name: str, share: float) -> Callable[[Path, Path], object]:
    def cut(checkpoint: Path, _: Path) -> None:
        content = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(content[: int(len(content) * share)])

    return cut


def _folder_instead(name: str) -> Callable[[Path, Path], object]:
    def replace(checkpoint: Path, _: Path) -> None:
        (checkpoint / name).unlink()
        (checkpoint / name).mkdir()

    return replace


def _link_instead(checkpoint: Path, other: Path) -> None:
    (checkpoint / _EMA).unlink()
    (checkpoint / _EMA).symlink_to(other / _EMA)


_FILES = (_EMA, "model.safetensors", "optimizer.safetensors", _MANIFEST)
Tamper = Callable[[Path, Path], object]  # (the checkpoint, a sound one of another step)
TAMPERINGS: dict[str, Tamper] = {
    **{f"{n} cut to {int(100 * s)} %": _cut(n, s) for n in _FILES for s in (0, 0.5, 0.99)},
    **{f"{n} gone": lambda c, _, n=n: (c / n).unlink() for n in _FILES},  # type: ignore[misc]
    **{f"a folder for {n}": _folder_instead(n) for n in _FILES},
    **{
        f"{n} of another step": lambda c, o, n=n: shutil.copy(o / n, c / n)  # type: ignore[misc]
        for n in _FILES[:3]
    },
    "two parts swapped": lambda c, _: shutil.copy(c / _EMA, c / "model.safetensors"),
    "a link to another step": _link_instead,
    "a file that nobody lists": lambda c, _: shutil.copy(c / _EMA, c / "extra.safetensors"),
    "an edited step": lambda c, _: (c / _MANIFEST).write_text(
        (c / _MANIFEST).read_text().replace('"step": 4', '"step": 5')
    ),
    "a manifest of braces": lambda c, _: (c / _MANIFEST).write_text("{" * 100_000),
}


# ---- kills


class Killed(NamedTuple):
    """What a SIGKILL left of a process that saved one checkpoint after the other."""

    acknowledged: int  # saves that it had called done
    amid: bool  # whether something half-written lay there
    whole: bool  # whether the newest checkpoint loads and is what it says
    stale: bool  # whether it is older than the last one acknowledged


def killed_while_saving(parent: Path, kills: int, seed: int) -> Iterator[Killed]:
    """Kill a saving child at random moments, again and again in the same folder."""
    rng, step = random.Random(seed), 0
    for _ in range(kills):
        child, pipe = fork(_save_for_ever(parent, step + 1))
        time.sleep(rng.uniform(0.005, 0.1))
        kill(child)
        said = read_all(pipe).split()
        leftovers = list(parent.glob(".tmp-*"))
        loaded, whole = _loaded(parent, step)
        for path in leftovers:
            shutil.rmtree(path, ignore_errors=True)
        yield Killed(len(said), bool(leftovers), whole, loaded < int(said[-1] if said else step))
        step = max(step, loaded)


def _save_for_ever(parent: Path, first: int) -> Callable[[int], None]:
    def work(pipe: int) -> None:
        for step in range(first, first + 10_000):
            path = write(parent, Content(step, step, telling_parts(step, size=20_000)))
            os.write(pipe, f"{step}\n".encode())
            prune(parent, path, 2)

    return work


def _loaded(parent: Path, before: int) -> tuple[int, bool]:
    """The step of the newest checkpoint, and whether its weights are those of that step."""
    try:
        found = newest_checkpoint(parent)
        if found is None:
            return 0, before == 0
        step = found[1].step
        return step, bool((read_part(found[0], "ema")["a"] == step).all())
    except StorageError:
        return before, False
