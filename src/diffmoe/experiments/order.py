"""A request for images as what it depends on, and the place where they go."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from diffmoe.checkpoint import RunFolder, refuse_foreign_parts
from diffmoe.config import AutoencoderCodec
from diffmoe.errors import StorageError
from diffmoe.experiments.draw import Wanted
from diffmoe.sampling import MACHINE, Output, decisive_settings, refuse_unwritable, sweep_asides

__all__ = ["Order"]

# Of a stamp: a run may be renamed, an autoencoder moved; thresholds follow from the rest.
# What was begun on one machine may be finished on another, though its last bits may be others.
_MAY_DIFFER = ("run", "codec", "calibration", *MACHINE)


@dataclass(frozen=True)
class Order:
    """Images of certain weights, and how they are to be kept."""

    output: Output
    wanted: Wanted
    stamp: dict[str, Any]
    out: Path | None

    @cached_property
    def key(self) -> dict[str, Any]:
        """All that the images depend on, and their format."""
        facts = {name: value for name, value in self.stamp.items() if name not in _MAY_DIFFER}
        prompts = self.wanted.prompts
        told = {"prompts": _digest_of_words(prompts)} if prompts else {}
        return (
            facts
            | told
            | {
                "sampling": decisive_settings(self.wanted.config.sampling),
                "format": self.output.name,
                "labels": _digest(self.wanted.labels),
                "seeds": _digest(self.wanted.seeds),
            }
        )

    @cached_property
    def name(self) -> str:
        """The hash of the key."""
        return hashlib.sha256(json.dumps(self.key, default=str).encode()).hexdigest()

    @cached_property
    def target(self) -> Path:
        """Where the images go: `out`, or a place in the run that is named after the request."""
        if self.out is not None:
            return self.out
        name = f"step-{self.stamp['step']:08d}-{self.name[:8]}"
        suffix = ".npz" if self.output.name == "npz" else ""
        return RunFolder(self.wanted.path).samples / f"{name}{suffix}"

    @property
    def parts(self) -> Path:
        """Where parts are kept until all are there."""
        return self.target.with_name(f"{self.target.name}.parts")

    @property
    def is_written(self) -> bool:
        """Whether the images are there."""
        return self.output.is_written(self.target, self.name)

    @property
    def is_over(self) -> bool:
        """Whether they are, and no parts of them any more, but for what a kill may have left."""
        if not self.is_written or self.parts.exists():
            return False
        sweep_asides(self.parts)
        return True

    def refuse(self) -> None:
        """Raise StorageError if images or parts cannot be kept there, or would not fit."""
        self.output.refuse(self.target)
        refuse_unwritable(self.parts.parent, self.parts.name)
        refuse_foreign_parts(self.parts)
        self._refuse_full()

    def _refuse_full(self) -> None:
        """Raise StorageError if the disk has no room for what is still to be written."""
        config = self.wanted.config
        factor = config.codec.factor if isinstance(config.codec, AutoencoderCodec) else 1
        values = len(self.wanted.labels) * 3 * (config.model.input_size * factor) ** 2
        there = sum(file.stat().st_size for file in self.parts.glob("part-*/*.npy"))
        needed = self.output.room(values) - there
        place = self.parts
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free
        if needed > free:
            raise StorageError(
                f"{len(self.wanted.labels)} images need {_size(needed)} and {_size(free)} are free",
                where=str(self.target),
                remedy="make room, choose another place or draw fewer",
            )


def _digest(numbers: Sequence[int]) -> str:
    return hashlib.sha256(np.asarray(numbers, dtype="<i8").tobytes()).hexdigest()[:16]


def _digest_of_words(texts: Sequence[str]) -> str:
    content = json.dumps(list(texts)).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def _size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.3g} MB"
