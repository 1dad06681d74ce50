"""Samples in the folders that the scorer of GenEval reads: one for each prompt."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from diffmoe.sampling.output.folders import Folder, entries, files_of, link, pixels_of
from diffmoe.sampling.output.pictures import contact_sheet
from diffmoe.sampling.output.place import GRID, METADATA
from diffmoe.sampling.output.records import DrawnPart, ImageRequest

__all__ = ["GenEvalFolder"]

_ROW = 4  # images in a row of a prompt's grid


@dataclass(frozen=True)
class GenEvalFolder(Folder):
    """`00000/metadata.jsonl`, `00000/samples/0000.png`, ... and `00000/grid.png` of each prompt.

    `metadata` is a line of JSON for each prompt, by its number. The record and the sheet lie above
    those folders, where the scorer looks for nothing.
    """

    metadata: Sequence[str]
    name = "geneval"
    lists = "images"

    def fill(
        self, folder: Path, parts: Sequence[DrawnPart], asked: ImageRequest
    ) -> Iterable[dict[str, Any]]:
        """Give the files of the parts a second name each, and write what is beside them."""
        for number, line in enumerate(self.metadata):
            below = _below(folder, number)
            (below / "samples").mkdir(parents=True)
            (below / METADATA).write_bytes(_content(line))
        places = _places(asked.labels)
        for image, file in files_of(parts, asked):
            link(file, folder / places[image])
        for number in range(len(self.metadata)):
            _grid(_below(folder, number)).save(_below(folder, number) / GRID)
        return entries(parts, asked, places.__getitem__)

    def is_written(self, target: Path, request: str) -> bool:
        """Whether the folder is of that request, these metadata are in it, and no grid is gone."""
        return super().is_written(target, request) and all(
            _is_told(_below(target, number), line) for number, line in enumerate(self.metadata)
        )


def _below(folder: Path, prompt: int) -> Path:
    return folder / f"{prompt:05d}"


def _content(line: str) -> bytes:
    return f"{line}\n".encode()


def _places(labels: Sequence[int]) -> list[str]:
    """Where each image lies: of those of its prompt the first is 0000.png."""
    turns, found = Counter[int](), []
    for label in labels:
        found.append(_below(Path(), label).joinpath("samples", f"{turns[label]:04d}.png"))
        turns[label] += 1
    return [place.as_posix() for place in found]


def _grid(folder: Path) -> Image.Image:
    """The images of a prompt on one picture."""
    pixels = [pixels_of(file) for file in sorted((folder / "samples").iterdir())]
    return contact_sheet(torch.stack(pixels), min(_ROW, len(pixels)))


def _is_told(folder: Path, line: str) -> bool:
    """Whether the folder of a prompt has its metadata and a grid."""
    try:
        return (folder / METADATA).read_bytes() == _content(line) and (folder / GRID).is_file()
    except OSError:
        return False
