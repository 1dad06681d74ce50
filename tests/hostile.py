"""Hostile files in the places of a home that a verb reads, and what the verb does about them."""

import contextlib
import hashlib
import io
import json
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from children import outcome
from diffmoe.cli import main
from diffmoe.config import FolderData, RunConfig, to_yaml
from diffmoe.experiments.hostile import Hostile
from runs import run_config

CANARY = "canary"
Door = Callable[[Path, Hostile], str]  # puts a file into a home; returns the words that read it


@dataclass(frozen=True)
class Answer:
    """What a verb did: its exit code, what it said, and by how many MiB its process grew."""

    code: int
    said: str
    grown: float


def answer(words: str) -> Answer:
    """What a verb does, in a process of its own."""

    def work() -> list[Any]:
        before, told = _peak(), io.StringIO()
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
            code = main(words.split())
        return [int(code), told.getvalue()[:5000], _peak() - before]

    found = outcome(work)
    assert len(found) == 3, found
    return Answer(*found)


def _peak() -> float:
    """The most memory that this process ever had, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def files(home: Path) -> dict[str, Any]:
    """Everything in a home, to be compared; links, devices and pipes are not opened."""
    return dict(_entries(home, home))


def is_sentence(said: str) -> bool:
    """Whether an error was told as it should: in a line, or a line and an indented one for each."""
    lines = [line for line in said.splitlines() if not line.startswith("  ")]
    told = [line for line in lines if line.startswith("diffmoe: error: ")]
    return len(told) == 1 and lines[-1] == told[0] and "Traceback" not in said


def _entries(folder: Path, home: Path) -> Iterator[tuple[str, Any]]:
    for path in folder.iterdir():
        name = str(path.relative_to(home))
        if path.is_symlink():
            yield name, path.readlink()
        elif path.is_dir():
            yield name, None
            yield from _entries(path, home)
        else:
            yield name, path.read_bytes() if path.is_file() else path.stat().st_mode


# ---- the places


def pictures_in(folder: Path, count: int = 4) -> None:
    """A sound set of one class."""
    (folder / "cat").mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (16, 16), (number, 9, 9)).save(folder / "cat" / f"{number}.png")


def new_run(home: Path, config: RunConfig) -> str:
    """The words that begin a run of a config."""
    (home / "new").mkdir()
    (home / "new" / "config.yaml").write_text(to_yaml(config))
    return "train new --quiet"


def as_config(home: Path, hostile: Hostile) -> str:
    hostile.write(home / "run" / "config.yaml")
    return "train run --quiet"


def as_config_of_samples(home: Path, hostile: Hostile) -> str:
    hostile.write(home / "run" / "config.yaml")
    return "sample run --labels 3 --quiet"


def as_released(home: Path, hostile: Hostile) -> str:
    hostile.write(home / "it.pt")
    whole = (home / "it.pt").is_file()
    return "convert it.pt made" + (" --heads 3 --objective flow" if whole else ".pt")


def as_weights(home: Path, hostile: Hostile) -> str:
    pictures_in(home / "photos")
    hostile.write(home / "it.pt")
    return "evaluate photos --reference photos --network-weights it.pt --quiet"


def as_tensors(home: Path, hostile: Hostile) -> str:
    for checkpoint in (home / "run" / "checkpoints").iterdir():
        hostile.write(checkpoint / "ema.safetensors")
        signed(checkpoint, lambda _: None)
    return "sample run --labels 3 --quiet"


def as_tensors_resumed(home: Path, hostile: Hostile) -> str:
    for checkpoint in (home / "run" / "checkpoints").iterdir():
        hostile.write(checkpoint / "optimizer.safetensors")
        signed(checkpoint, lambda _: None)
    return "train run --quiet --loop.steps 6"


def as_manifest(home: Path, hostile: Hostile) -> str:
    for checkpoint in (home / "run" / "checkpoints").iterdir():
        hostile.write(checkpoint / "manifest.json")
    return "sample run --labels 3 --quiet"


def as_comparison(home: Path, hostile: Hostile) -> str:
    hostile.write(home / "it.json")
    return "compare it.json it.json"


def signed(checkpoint: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest as one would who knows how it is signed."""
    path = checkpoint / "manifest.json"
    content = json.loads(path.read_text())
    del content["sha256"]
    for name, facts in content["files"].items():
        data = (checkpoint / name).read_bytes()
        facts |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    change(content)
    own = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    path.write_text(json.dumps({**content, "sha256": own}, indent=2) + "\n")


def as_latents(home: Path, hostile: Hostile) -> str:
    (home / "set").mkdir()
    hostile.write(home / "set" / "latents.npy")
    np.save(home / "set" / "labels.npy", np.zeros(4, np.int64))
    return new_run(home, run_config(data=FolderData(path=Path("set"), flip=False)))


def as_labels(home: Path, hostile: Hostile) -> str:
    (home / "set").mkdir()
    hostile.write(home / "set" / "labels.npy")
    np.save(home / "set" / "latents.npy", np.ones((4, 1, 8, 8), np.float32))
    return new_run(home, run_config(data=FolderData(path=Path("set"), flip=False)))


def as_reference(home: Path, hostile: Hostile) -> str:
    pictures_in(home / "photos")
    hostile.write(home / "it.npz")
    return "evaluate photos --reference it.npz --quiet"


def data_at(home: Path, hostile: Hostile) -> str:
    """Where a set lies, called as its maker would call it."""
    suffix = hostile.name[:3] if hostile.name[:3] in ("tar", "zip") else ""
    name = f"set.{suffix}" if suffix else "set"
    hostile.write(home / name)
    return name


def as_data(home: Path, hostile: Hostile) -> str:
    place = Path(data_at(home, hostile))
    return new_run(home, run_config(data=FolderData(path=place)))


def as_data_to_encode(home: Path, hostile: Hostile) -> str:
    return f"prepare {data_at(home, hostile)} --autoencoder vae --side 16 --out made --quiet"


def as_data_to_judge(home: Path, hostile: Hostile) -> str:
    pictures_in(home / "photos")
    return f"evaluate photos --reference {data_at(home, hostile)} --network-weights no --quiet"


def as_autoencoder(home: Path, hostile: Hostile) -> str:
    pictures_in(home / "photos")
    hostile.write(home / "it")
    return "prepare photos --autoencoder it --side 16 --out made --quiet"


DOORS: dict[str, tuple[Door, ...]] = {
    "config": (as_config, as_config_of_samples),
    "released": (as_released,),
    "weights": (as_weights,),
    "tensors": (as_tensors, as_tensors_resumed),
    "manifest": (as_manifest, as_comparison),
    "latents": (as_latents, as_labels),
    "reference": (as_reference,),
    "data": (as_data, as_data_to_encode, as_data_to_judge),
    "autoencoder": (as_autoencoder,),
}
