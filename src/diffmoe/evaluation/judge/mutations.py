"""Prompts that are wrong for a scene, to find out what the judge lets pass."""

from collections.abc import Iterator
from dataclasses import replace

from diffmoe.data import COLOURS, SHAPES, Clause, Prompt, Scene, scene_caption

__all__ = ["mutations"]

_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_MOST = 4  # things that a caption asks for


def mutations(scene: Scene) -> Iterator[tuple[str, Prompt]]:
    """Each a kind, and the scene's prompt with that one thing changed.

    The kinds are colour, shape, count, relation and swapped colours. What is asked for then is not
    there, or of what is excluded there is enough: GenEval's rule refuses the picture as well.
    """
    for place, clause in enumerate(scene.include):
        for kind, other in _changed(scene, clause):
            yield kind, _with(scene, place, other)
    colours = [clause.colour for clause in scene.include]
    if len(colours) == 2 and None not in colours and colours[0] != colours[1]:
        swapped = zip(scene.include, reversed(colours), strict=True)
        include = tuple(replace(clause, colour=colour) for clause, colour in swapped)
        yield "swapped colours", _prompt(scene, include)


def _changed(scene: Scene, clause: Clause) -> Iterator[tuple[str, Clause]]:
    """A clause with each of its attributes changed in turn."""
    of_shape = {thing.colour for thing in scene.things if thing.shape == clause.shape}
    if clause.colour is not None:
        yield "colour", replace(clause, colour=_next(clause.colour, COLOURS, of_shape))
    shown = {thing.shape for thing in scene.things}
    yield "shape", replace(clause, shape=_next(clause.shape, SHAPES, shown))
    if clause.count < _MOST:
        yield "count", replace(clause, count=clause.count + 1)
    if scene.exclude:
        yield "count", replace(clause, count=clause.count - 1)
    if clause.relation is not None:
        yield "relation", replace(clause, relation=_OPPOSITE[clause.relation])


def _next(word: str, words: tuple[str, ...], shown: set[str]) -> str:
    """The word after this one that names nothing shown, in a circle."""
    start = words.index(word)
    return next(each for each in words[start:] + words[:start] if each not in shown)


def _with(scene: Scene, place: int, clause: Clause) -> Prompt:
    include = (*scene.include[:place], clause, *scene.include[place + 1 :])
    return _prompt(scene, include)


def _prompt(scene: Scene, include: tuple[Clause, ...]) -> Prompt:
    """A prompt of the scene's task with other clauses, its caption and `exclude` true to them."""
    too_many = tuple(Clause(each.shape, each.count + 1) for each in include if scene.exclude)
    return Prompt(scene.task, scene_caption(scene.task, include, 0, False), include, too_many)
