"""Drills of what is put in: damaged samples, misspelt settings, files that mean ill."""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffmoe.checkpoint import RunFolder, digest, read_part, read_released, verify
from diffmoe.config import RunConfig, field_names, from_dict, read_config, to_dict
from diffmoe.data import open_source
from diffmoe.errors import ConfigError, ExitCode
from diffmoe.experiments.hostile import Hostile, corpus
from diffmoe.experiments.selftest.children import Answer, begin
from diffmoe.experiments.selftest.faults import reseal
from diffmoe.experiments.selftest.outcome import Drill, Trial
from diffmoe.experiments.selftest.tiny import begin_training, tiny_run, trained_until

__all__ = ["INPUTS"]

Damage = Callable[[Path], object]

# ---- damaged samples


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def _flip_inside(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Damage] = {
    "cut off": _cut,
    "a bit flipped": _flip_inside,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no image"),
    "noise": lambda path: path.write_bytes(path.read_bytes()[:16] + bytes(range(256)) * 2),
}


def _pictures(folder: Path) -> RunConfig:
    """A run on small pictures of two classes."""
    rng = np.random.default_rng(0)
    for number in range(12):
        path = folder / "pictures" / ("cat" if number % 2 else "dog") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    data = {"kind": "folder", "path": str(folder / "pictures"), "flip": True}
    return tiny_run(folder, data=data, loop__steps=1)


def damaged_samples(folder: Path, seed: int, count: int) -> Iterator[Trial]:
    """A damaged picture is named and refused, or replaced and listed, up to a share of all."""
    rng = random.Random(seed)
    for number, (name, damage) in enumerate(list(DAMAGES.items())[:count]):
        place = folder / str(number)
        config = _pictures(place)
        victim = rng.choice(sorted((place / "pictures").rglob("*.png")))
        damage(victim)
        yield _judged(_trained(config, place / "error"), victim.name, name)
        found = _trained(_replacing(config, 0.2), place / "replace")
        listed = RunFolder(place / "replace").bad_samples
        told = not found.error and listed.exists() and victim.name in listed.read_text()
        yield Trial(told, "replaced and listed" if told else f"{name}: {found.told}")
        yield _judged(_trained(_replacing(config, 0.01), place / "few"), "max_bad_share", name)


def _replacing(config: RunConfig, share: float) -> RunConfig:
    content = to_dict(config)
    content["data"] |= {"on_bad_sample": "replace", "max_bad_share": share}
    return from_dict(content, where="self-test")


def _trained(config: RunConfig, run: Path) -> Answer:
    return begin_training(config, run).answer()


def _judged(found: Answer, wanted: str, name: str) -> Trial:
    told = found.exit_code == ExitCode.BAD_DATA and len(found.said.splitlines()) == 1
    held = told and wanted in found.said
    return Trial(held, "named and refused with code 3" if held else f"{name}: {found.told}")


# ---- misspelt settings


def _slips(name: str, rng: random.Random) -> Iterator[str]:
    """A key without a letter, with one twice, with two swapped, with another one, in capitals."""
    at = rng.randrange(1, len(name)) if len(name) > 1 else 0
    yield name[:at] + name[at + 1 :]
    yield name[:at] + name[at] + name[at:]
    yield name[: at - 1] + name[at] + name[at - 1] + name[at + 1 :]
    yield name[:at] + rng.choice("aeiou") + name[at + 1 :]
    yield name.upper()


def misspelt_keys(folder: Path, seed: int, count: int) -> Iterator[Trial]:
    """Every key of a config, misspelt in several ways, is refused by its name."""
    rng, config = random.Random(seed), tiny_run(folder)
    known = field_names(RunConfig)
    for path in list(_paths(to_dict(config)))[:count]:
        for slip in dict.fromkeys(_slips(path[-1], rng)):
            if slip and slip != path[-1] and ".".join([*path[:-1], slip]) not in known:
                yield _misspelt(config, path, slip)


def _paths(content: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in content.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from _paths(value, (*above, key))


def _misspelt(config: RunConfig, path: tuple[str, ...], slip: str) -> Trial:
    content = to_dict(config)
    place = content
    for group in path[:-1]:
        place = place[group]
    place[slip] = place.pop(path[-1])
    try:
        from_dict(content, where="self-test")
    except ConfigError as error:
        if slip not in str(error):
            return Trial(False, f"{slip} is refused and not named")
        meant = path[-1] in str(error)
        return Trial(True, "refused, the right key named" if meant else "refused by its name")
    return Trial(False, f"{slip} is taken for {'.'.join(path)}")


# ---- files that mean ill


def _checkpoint_reader(part: str) -> Callable[[Path, Hostile, RunConfig], object]:
    def read(folder: Path, hostile: Hostile, config: RunConfig) -> None:
        checkpoint = RunFolder(folder / "run").checkpoints / "step-00000001"
        hostile.write(checkpoint / part)
        if part != "manifest.json":
            reseal(checkpoint, lambda content: _vouch(content, checkpoint / part))
        verify(checkpoint)
        read_part(checkpoint, "ema")

    return read


def _vouch(content: dict[str, Any], path: Path) -> None:
    content["files"][path.name] = {"sha256": digest(path), "bytes": path.stat().st_size}


def _read_latents(folder: Path, hostile: Hostile, config: RunConfig) -> None:
    hostile.write(folder / "data" / "latents.npy")
    source = open_source(config)
    source.load(0, False)


def _read_pictures(folder: Path, hostile: Hostile, config: RunConfig) -> None:
    suffix = hostile.name[:3] if hostile.name[:3] in ("tar", "zip") else ""
    place = folder / (f"set.{suffix}" if suffix else "set")
    hostile.write(place)
    content = to_dict(config)
    content["data"] |= {"path": str(place)}
    source = open_source(from_dict(content, where="self-test"))
    for index in range(len(source)):
        source.load(index, False)


def _read_settings(folder: Path, hostile: Hostile, config: RunConfig) -> None:
    hostile.write(folder / "config.yaml")
    read_config(folder / "config.yaml")


def _read_released(folder: Path, hostile: Hostile, config: RunConfig) -> None:
    hostile.write(folder / "released.pt")
    read_released(folder / "released.pt")


READERS: dict[str, Callable[[Path, Hostile, RunConfig], object]] = {
    "config": _read_settings,
    "released": _read_released,
    "tensors": _checkpoint_reader("ema.safetensors"),
    "manifest": _checkpoint_reader("manifest.json"),
    "latents": _read_latents,
    "data": _read_pictures,
}


def hostile_files(folder: Path, seed: int, count: int) -> Iterator[Trial]:
    """No file runs what it holds, in whatever place it is read, and each is refused."""
    canary = folder / "canary"
    offered = [hostile for hostile in corpus(f"touch {canary.name}") if hostile.place in READERS]
    whole = folder / "whole"
    whole.mkdir()
    trained_until(tiny_run(whole), whole / "run", 1)
    some = random.Random(seed).sample(offered, min(count, len(offered)))
    for hostile in some:
        found = begin(partial(_offer, hostile, folder)).answer()
        shutil.rmtree(folder / "place")
        if canary.exists():
            canary.unlink()
            yield Trial(False, f"{hostile.name} ran as {hostile.place}")
            continue
        held = found.exit_code is not None and len(found.said.splitlines()) == 1
        seen = "refused in one sentence, nothing ran"
        yield Trial(held, seen if held else f"{hostile.name} as {hostile.place}: {found.told}")


def _offer(hostile: Hostile, folder: Path) -> None:
    """Let a reader have a hostile file, in the folder where its command would leave a trace."""
    os.chdir(folder)
    os.environ["HF_HOME"] = str(folder / "hub")  # what readers of data sets keep for later
    shutil.copytree(folder / "whole", folder / "place")
    READERS[hostile.place](folder / "place", hostile, tiny_run(folder / "place"))


INPUTS = (
    Drill(
        "damaged-samples", "a damaged sample is named, or replaced and listed", damaged_samples, 5
    ),
    Drill("misspelt-keys", "a misspelt key of a config is refused", misspelt_keys, 1000),
    Drill("hostile-files", "no file runs what it holds", hostile_files, 40),
)
