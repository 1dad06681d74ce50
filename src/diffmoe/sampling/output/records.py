"""What is asked for and what is there of it, and the record that stands beside the images."""

import glob
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from jaxtyping import UInt8
from torch import Tensor

__all__ = [
    "DrawnPart",
    "ImageRequest",
    "Output",
    "read_record",
    "sweep_asides",
    "write_record",
]

UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True)
class ImageRequest:
    """The images asked for: image i is of class or prompt `labels[i]`, from seed `seeds[i]`."""

    labels: Sequence[int]
    seeds: Sequence[int]
    class_names: Sequence[str]  # or prompts, by number
    captioned: bool = False  # `labels` are numbers of prompts

    def __len__(self) -> int:
        return len(self.labels)

    def file_name(self, image: int) -> str:
        """The name of an image's own file."""
        kind = "prompt" if self.captioned else "class"
        return f"{image:06d}-{kind}-{self.labels[image]}-seed-{self.seeds[image]}.png"

    def caption(self, image: int) -> str:
        """What stands below an image on the sheet: its prompt or the name of its class, its seed.

        Class and seed are a line each; how a prompt is broken into lines is left to the sheet.
        """
        name = " ".join(self.class_names[self.labels[image]].split())  # in one line
        if self.captioned:
            said = name or "(no prompt)"
        else:
            said = f"class {self.labels[image]}" if not name or name.isdecimal() else name
        return f"{said}\nseed {self.seeds[image]}"

    @property
    def names(self) -> dict[str, list[str]]:
        """What a record says the labels stand for: prompts, or the names of classes."""
        return {"prompts" if self.captioned else "class_names": list(self.class_names)}

    def facts(self, image: int) -> dict[str, Any]:
        """Label and seed of an image, and its prompt."""
        found = {"label": self.labels[image], "seed": self.seeds[image]}
        told = {"caption": self.class_names[self.labels[image]]} if self.captioned else {}
        return found | told


@dataclass(frozen=True)
class DrawnPart:
    """Images that are drawn, and the folder that `Output.write_part` has kept them in."""

    folder: Path
    images: range  # which of those asked for


class Output(Protocol):
    """One way to keep images."""

    @property
    def name(self) -> str:
        """What it is called on the command line."""

    def refuse(self, target: Path) -> None:
        """Raise StorageError unless images may be written to `target`."""

    def is_written(self, target: Path, request: str) -> bool:
        """Whether all that the request of that hash asked for is at `target`."""

    def write_part(
        self, folder: Path, pixels: UInt8[Tensor, "n C H W"], images: range, asked: ImageRequest
    ) -> None:
        """Keep some images in `folder` until the others are drawn."""

    def assemble(
        self, target: Path, parts: Sequence[DrawnPart], asked: ImageRequest, facts: dict[str, Any]
    ) -> None:
        """Write all images, a sheet of the first and a record of `facts`.

        Older samples at `target` are replaced; raises StorageError if anything else is there.
        """

    def sheet(self, target: Path) -> Path:
        """Where the first images are to be seen at a glance."""

    def room(self, values: int) -> int:
        """Bytes that parts and result of so many RGB values take; 0 where nobody knows."""


def write_record(path: Path, facts: dict[str, Any], name: str, entries: Iterable[Any]) -> None:
    """Write facts and a list, which may be long and is never held as a whole, as JSON."""
    with path.open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(facts, indent=2).removesuffix("\n}"))
        stream.write(f",\n  {json.dumps(name)}: [")
        for index, entry in enumerate(entries):
            stream.write(("," if index else "") + "\n    " + json.dumps(entry))
        stream.write("\n  ]\n}\n")


def read_record(path: Path) -> dict[str, Any]:
    """What a record says; nothing if there is none or it is of something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except UNREADABLE:
        return {}
    return content if isinstance(content, dict) else {}


def sweep_asides(target: Path) -> None:
    """Remove what a process left that was killed while it wrote a file or folder.

    For the only process that may write it now. A temporary name ends with eight characters, and
    the suffix of a file.
    """
    name, any8 = glob.escape, "?" * 8
    names = (f"{name(target.name)}-{any8}", f"{name(target.stem)}-{any8}{name(target.suffix)}")
    for left in (left for each in names for left in target.parent.glob(f".tmp-{each}")):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
