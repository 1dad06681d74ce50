"""Folders of prompts and their images, in the layout of GenEval's scorer, to be judged."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from diffmoe.data import COLOURS, LEAST_SIDE, RELATIONS, SHAPES, Clause, Prompt, decode_exact
from diffmoe.errors import ConfigError, DataError
from diffmoe.evaluation import record_of
from diffmoe.experiments.evaluation.written import content_of
from diffmoe.experiments.metadata import check_metadata
from diffmoe.sampling import is_as_recorded

__all__ = ["Gallery", "Shown", "open_gallery"]

_LARGEST = 2**20  # bytes of a prompt's metadata
_WORDS = {"class": SHAPES, "color": COLOURS, "position": RELATIONS}


class Shown(NamedTuple):
    """The images of a prompt."""

    prompt: Prompt
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Gallery:
    """Prompts of scenes in the order of their folders, each with its images."""

    folder: Path
    shown: tuple[Shown, ...]
    is_disowned: bool  # a record lies beside the images, and is not of them

    def __len__(self) -> int:
        return sum(len(each.files) for each in self.shown)

    @property
    def made(self) -> dict[str, Any] | None:
        """How the images were made, where that is known."""
        return None if self.is_disowned else record_of(self.folder)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all prompts and images."""
        digest = hashlib.sha256(repr([each.prompt.metadata for each in self.shown]).encode())
        for file in (file for each in self.shown for file in each.files):
            content = file.read_bytes()
            digest.update(f"{self.name(file)} {len(content)}\n".encode())
            digest.update(content)
        return digest.hexdigest()

    def name(self, file: Path) -> str:
        """An image by its place in the folder."""
        return file.relative_to(self.folder).as_posix()

    @cached_property
    def seeds(self) -> dict[str, int]:
        """The seed of each image by its name, where that is known."""
        record = {} if self.is_disowned else content_of(self.folder / "samples.json")
        images = record.get("images")
        entries = images if isinstance(images, list) else []
        return {one["file"]: one["seed"] for one in entries if {"file", "seed"} <= one.keys()}

    def pictures(self) -> Iterator[tuple[Prompt, Path, UInt8[np.ndarray, "3 side side"]]]:
        """Each image with its prompt; raises DataError for one that the judge cannot read."""
        number = 0
        for prompt, files in self.shown:
            for file in files:
                yield prompt, file, picture_of(file, number)
                number += 1


def picture_of(file: Path, number: int = 0) -> UInt8[np.ndarray, "3 side side"]:
    """A picture of a scene; raises DataError if it is none in RGB, or no square large enough."""
    pixels, notes = decode_exact(file.read_bytes(), str(file), number)
    if notes.grey or notes.alpha or notes.converted:
        raise _unfit(file, "is no RGB picture of 8 bits")
    _, height, width = pixels.shape
    if height != width or width < LEAST_SIDE:
        raise _unfit(file, f"is {height} x {width} pixels, not a square of {LEAST_SIDE} or more")
    return pixels.numpy()


def _unfit(file: Path, fault: str) -> DataError:
    remedy = "give pictures as scenes are drawn"
    return DataError(f"an image {fault}", where=str(file), remedy=remedy)


def open_gallery(folder: Path) -> Gallery:
    """The prompts and images of a folder that is laid out as GenEval's scorer reads it.

    What is not called by a number is passed over, as the scorer does. Raises ConfigError if there
    is nothing to judge or a prompt speaks of other things than scenes hold, DataError where a
    prompt's metadata are damaged.
    """
    below = sorted(folder.iterdir()) if folder.is_dir() else []
    numbered = [entry for entry in below if entry.is_dir() and entry.name.isdecimal()]
    if not numbered:
        raise ConfigError(
            "the folder holds no prompts in the layout of GenEval",
            where=str(folder),
            remedy="give one that diffmoe sample --geneval wrote, with 00000/metadata.jsonl",
        )
    shown = tuple(Shown(_prompt(entry / "metadata.jsonl"), _files(entry)) for entry in numbered)
    return Gallery(folder, shown, is_as_recorded(folder) is False)


def _files(folder: Path) -> tuple[Path, ...]:
    samples = folder / "samples"
    found = sorted(samples.iterdir()) if samples.is_dir() else []
    images = tuple(file for file in found if re.fullmatch(r"\d+\.png", file.name))
    if not images:
        raise DataError(
            "there is no image of a prompt",
            where=str(samples),
            remedy="draw the samples again: the same command goes on",
        )
    return images


def _prompt(file: Path) -> Prompt:
    """The prompt in a file of metadata."""
    try:
        with file.open("rb") as stream:
            line = stream.read(_LARGEST).decode()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"the metadata of a prompt cannot be read ({reason})",
            where=str(file),
            remedy="draw the samples again, or restore the file",
        ) from error
    found = check_metadata(line, "the metadata", str(file))
    include, exclude = (
        tuple(_clause(clause, str(file)) for clause in found.get(name, []))
        for name in ("include", "exclude")
    )
    return Prompt(found["tag"], found["prompt"], include, exclude)


def _clause(told: dict[str, Any], where: str) -> Clause:
    """A clause of metadata; ConfigError if it has a word that no scene shows."""
    relation, target = told.get("position", (None, 0))
    said = {"class": told["class"], "color": told.get("color"), "position": relation}
    for name, word in said.items():
        if word is not None and word not in _WORDS[name]:
            raise ConfigError(
                f"the judge knows no {name} {word!r}: it is one of scenes",
                where=where,
                remedy=f"ask for {', '.join(_WORDS[name])}, or score with GenEval's own detector",
            )
    return Clause(told["class"], told["count"], told.get("color"), relation, target)
