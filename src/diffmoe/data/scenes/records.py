"""A scene, the prompt that describes it, and what GenEval's format says of the prompt."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from diffmoe.data.scenes.words import word_class

__all__ = ["Clause", "Prompt", "Scene", "Thing"]


@dataclass(frozen=True, slots=True)
class Clause:
    """So many things of a shape, of one colour if that is asked for.

    `relation` is where they are, seen from the things of the clause numbered `target`.
    """

    shape: str
    count: int = 1
    colour: str | None = None
    relation: str | None = None
    target: int = 0

    @property
    def metadata(self) -> dict[str, Any]:
        """The clause in GenEval's format."""
        said: dict[str, Any] = {"class": self.shape, "count": self.count}
        if self.colour is not None:
            said["color"] = self.colour
        if self.relation is not None:
            said["position"] = [self.relation, self.target]
        return said


class Thing(NamedTuple):
    """One object: centre and diameter of the circle around it, in fractions of the side.

    `x` points to the right, `y` down, `angle` turns from x to y, in degrees.
    """

    shape: str
    colour: str
    x: float
    y: float
    size: float
    angle: float


@dataclass(frozen=True, slots=True)
class Prompt:
    """A caption of a task, and what a picture must hold and must not to be true to it."""

    task: str
    caption: str
    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...] = ()

    @property
    def metadata(self) -> dict[str, Any]:
        """The prompt as GenEval's metadata; `exclude` is there only if something is excluded."""
        said: dict[str, Any] = {
            "tag": self.task,
            "include": [clause.metadata for clause in self.include],
        }
        if self.exclude:
            said["exclude"] = [clause.metadata for clause in self.exclude]
        return {**said, "prompt": self.caption}

    @property
    def object_words(self) -> tuple[str, ...]:
        """The words of the caption that name shapes, in its order."""
        return tuple(word for word in self.caption.split() if word_class(word) == "shape")


@dataclass(frozen=True, slots=True)
class Scene(Prompt):
    """A prompt with a picture that is true to it: its things, and the shade behind them."""

    things: tuple[Thing, ...] = ()
    background: tuple[int, int, int] = (24, 24, 28)

    @property
    def prompt(self) -> Prompt:
        """The prompt alone."""
        return Prompt(self.task, self.caption, self.include, self.exclude)
