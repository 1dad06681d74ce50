"""No file runs code, leads out of its folder or fills the memory, wherever it is put."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import hostile
from autoencoders import autoencoder
from children import outcome
from diffmoe.errors import ExitCode
from diffmoe.experiments.hostile import Hostile, corpus
from diffmoe.training import train
from runs import run_config

CORPUS = list(corpus(f"touch {hostile.CANARY}"))
CASES = [(door, each) for each in CORPUS for door in hostile.DOORS[each.place]]
REFUSALS = {ExitCode.BAD_INPUT, ExitCode.BAD_DATA, ExitCode.STORAGE}
ROOM = 64  # MiB that a reader may take before it refuses
BOOKS = ("new/.lock", "made.parts")  # of works that may be gone on with


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a run and an autoencoder; what reads them is imported before memory counts."""
    import datasets  # noqa: F401

    made = tmp_path_factory.mktemp("home")
    train(run_config(), made / "run", progress=False)
    autoencoder().save_pretrained(made / "vae")
    return made


@pytest.fixture
def here(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the home that one works in."""
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(here: Path, words: str) -> hostile.Answer:
    """What a verb says that refuses, runs nothing and leaves nothing but the books of its work."""
    before = hostile.files(here)
    found = hostile.answer(words)
    after = hostile.files(here)
    left = {name: value for name, value in after.items() if not name.startswith(BOOKS)}
    assert not (here / hostile.CANARY).exists()
    assert left == before
    assert found.code in REFUSALS, found
    assert hostile.is_sentence(found.said), found.said
    return found


def test_the_corpus_is_as_large_as_was_promised() -> None:
    print(f"{len(CORPUS)} hostile files, offered {len(CASES)} times")
    assert len(CORPUS) >= 30 and len({each.name for each in CORPUS}) >= 30
    assert len(CASES) >= 150


@pytest.mark.parametrize(
    ("door", "each"), CASES, ids=[f"{door.__name__}-{each.name}" for door, each in CASES]
)
def test_a_hostile_file_is_refused_without_running(
    door: hostile.Door, each: Hostile, here: Path
) -> None:
    found = refused(here, door(here, each))
    assert found.grown < ROOM, f"grew by {found.grown:.0f} MiB"


def linked(checkpoint: Path, _: dict[str, Any]) -> None:
    path = checkpoint / "ema.safetensors"
    path.rename(checkpoint.parents[2] / "elsewhere")
    path.symlink_to(Path("../../../elsewhere"))


def renamed(name: str) -> Callable[[Path, dict[str, Any]], None]:
    def change(_: Path, content: dict[str, Any]) -> None:
        content["files"][name] = content["files"].pop("ema.safetensors")
        for row in content["tensors"]["ema"].values():
            row[2] = {name: row[2].pop("ema.safetensors")}

    return change


def resized(shape: list[Any]) -> Callable[[Path, dict[str, Any]], None]:
    def change(_: Path, content: dict[str, Any]) -> None:
        for row in content["tensors"]["ema"].values():
            row[1] = shape
            row[2] = {file: [0] * len(shape) for file in row[2]}

    return change


MUTATIONS = {
    "climbs": renamed("../step-00000002/ema.safetensors"),
    "absolute": renamed("/etc/passwd"),
    "dots": renamed(".."),
    "no name": renamed(""),
    "null byte": renamed("a\0b"),
    "a tensor of 2^40": resized([2**40]),
    "negative": resized([-1]),
    "no numbers": resized(["1", None]),
}


@pytest.mark.parametrize("change", MUTATIONS.values(), ids=MUTATIONS)
def test_a_signed_manifest_that_leads_elsewhere_is_refused(
    change: Callable[[Path, dict[str, Any]], None], here: Path
) -> None:
    for checkpoint in (here / "run" / "checkpoints").iterdir():
        hostile.signed(checkpoint, lambda content, at=checkpoint: change(at, content))
    assert refused(here, "sample run --labels 3 --quiet").grown < ROOM


# ---- the corpus is what it says: a reader that trusts is run over by it


def loaded_pickle(path: Path) -> object:
    return pickle.loads(path.read_bytes())


def loaded_torch(path: Path) -> object:
    return torch.load(path, weights_only=False)


def loaded_yaml(path: Path) -> object:
    return yaml.unsafe_load(path.read_text())


def loaded_array(path: Path) -> object:
    return np.load(path, allow_pickle=True)


def loaded_npz(path: Path) -> object:
    return list(np.load(path, allow_pickle=True).values())


TRUSTING = [
    *[("released", f"pickle-{protocol}", loaded_pickle) for protocol in range(6)],
    *[("released", name, loaded_torch) for name in ("torch-zip", "torch-legacy")],
    *[("config", name, loaded_yaml) for name in ("yaml-apply", "yaml-new")],
    ("latents", "npy-objects", loaded_array),
    ("reference", "npz-npy-objects", loaded_npz),
]


@pytest.mark.parametrize(
    ("place", "name", "load"), TRUSTING, ids=[f"{place}-{name}" for place, name, _ in TRUSTING]
)
def test_the_payload_is_armed(
    place: str, name: str, load: Callable[[Path], object], tmp_path: Path
) -> None:
    each = next(each for each in CORPUS if (each.place, each.name) == (place, name))
    each.write(tmp_path / "it")

    def work() -> None:
        os.chdir(tmp_path)
        load(tmp_path / "it")

    outcome(work)
    assert (tmp_path / hostile.CANARY).exists()
