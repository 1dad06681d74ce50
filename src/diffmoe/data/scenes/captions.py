"""Captions: several ways to say each task, in few and plain words."""

from diffmoe.data.scenes.records import Clause
from diffmoe.data.scenes.words import NUMBERS, article, plural

__all__ = ["TEMPLATES", "scene_caption"]

_ONE = (
    "a photo of {0}",
    "{0}",
    "a picture of {0}",
    "an image of {0}",
    "there is {0}",
    "{0} on a dark background",
)
_TWO = (
    "a photo of {0} and {1}",
    "{0} and {1}",
    "a picture of {0} and {1}",
    "an image of {0} and {1}",
    "there is {0} and there is {1}",
    "{0} together with {1}",
)
_MANY = (
    "a photo of {0}",
    "{0}",
    "a picture of {0}",
    "an image of {0}",
    "there are {0}",
    "exactly {0} on a dark background",
)
_PLACED = (
    "a photo of {1} {2} {0}",
    "{1} {2} {0}",
    "a picture of {1} {2} {0}",
    "an image of {1} {2} {0}",
    "there is {1} {2} {0}",
    "{0} with {1} {2} it",
)
# {0} and {1} are the things of the clauses, {2} where {1} is.
TEMPLATES = {
    "single_object": (*_ONE, "one {0.shape}"),
    "two_object": _TWO,
    "counting": _MANY,
    "colors": (*_ONE, "one {0.colour} {0.shape}", "a {0.shape} that is {0.colour}"),
    "position": _PLACED,
    "color_attr": (*_TWO, "a {0.shape} that is {0.colour} and a {1.shape} that is {1.colour}"),
}


class _Named:
    """A clause as a template sees it."""

    def __init__(self, clause: Clause) -> None:
        self.shape, self.colour = clause.shape, clause.colour
        many = clause.count > 1
        words = plural(self.shape) if many else self.shape
        words = f"{self.colour} {words}" if self.colour else words
        self.words = f"{NUMBERS[clause.count]} {words}" if many else article(words)

    def __format__(self, specification: str) -> str:
        return self.words


def scene_caption(task: str, include: tuple[Clause, ...], template: int, long: bool) -> str:
    """The caption that a task's template makes of clauses; `long` relations begin with "to the"."""
    relation = include[-1].relation or ""
    if long and relation.endswith("of"):
        relation = f"to the {relation}"
    return TEMPLATES[task][template].format(*map(_Named, include), *[relation] * (relation != ""))
