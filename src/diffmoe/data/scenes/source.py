"""Scenes as samples to train on: drawn when they are asked for, never stored."""

from collections.abc import Sequence
from functools import cached_property
from typing import overload

import torch
from jaxtyping import Float
from torch import Tensor

from diffmoe.data.fingerprint import fingerprint, spread
from diffmoe.data.scenes.drawing import LEAST_SIDE, draw_scene, refuse_side
from diffmoe.data.scenes.layout import make_scene
from diffmoe.data.scenes.plans import make_plan, tasks_of
from diffmoe.data.scenes.records import Scene
from diffmoe.data.scenes.words import TASKS
from diffmoe.errors import ConfigError, DataError

__all__ = ["SceneCaptions", "ScenesSource"]

VERSION = 1  # of the generator: higher whenever a scene or its picture changes
_DRAWN = 8  # pictures that count for the fingerprint; the version stands for the others


class SceneCaptions(Sequence[str]):
    """The captions of a split's first scenes, made when they are asked for."""

    def __init__(self, seed: int, split: str, count: int) -> None:
        self._seed, self._split, self._count = seed, split, count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        places = range(self._count)[index]
        if isinstance(places, range):
            return [self._caption(place) for place in places]
        return self._caption(places)

    def _caption(self, place: int) -> str:
        return make_plan(self._seed, self._split, place).prompt.caption


class ScenesSource:
    """Scenes 0 .. count - 1 of a split as images in [-1, 1]; their labels are their tasks.

    Raises ConfigError for a split that is not known, no scenes, or a side below 32.
    """

    encoded = False
    class_names: tuple[str, ...] = TASKS

    def __init__(
        self, seed: int = 0, *, count: int, side: int = LEAST_SIDE, split: str = "train"
    ) -> None:
        tasks = tasks_of(split)
        refuse_side(side)
        if count < 1:
            raise ConfigError(f"count {count} is less than 1", remedy="ask for one scene or more")
        self.seed, self.side, self.split = seed, side, split
        numbers = torch.tensor([TASKS.index(task) for task in tasks])
        self.labels = numbers[torch.arange(count) % len(tasks)]
        self.shape = (3, side, side)
        self.captions = SceneCaptions(seed, split, count)

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the generator's version, the arguments, the labels and a few pictures."""
        drawn = (draw_scene(self.scene(i), self.side).tobytes() for i in self._few())
        words = f"version {VERSION} seed {self.seed} split {self.split} side {self.side}"
        return fingerprint("scenes", self.labels, words.encode(), *drawn)

    def _few(self) -> list[int]:
        places = spread(len(self))
        return places[:: -(-len(places) // _DRAWN)]

    def scene(self, index: int) -> Scene:
        """Scene `index`; raises DataError if there are not so many."""
        if not 0 <= index < len(self):
            raise DataError(
                f"scene {index} is not in 0..{len(self) - 1}", remedy="ask for a larger count"
            )
        return make_scene(self.seed, self.split, index)

    def load(self, index: int, flip: bool) -> Float[Tensor, "3 side side"]:
        """The picture of a scene; in a mirrored one left would be right: `flip` changes nothing."""
        picture = torch.from_numpy(draw_scene(self.scene(index), self.side))
        return picture.float().div_(127.5).sub_(1.0)
