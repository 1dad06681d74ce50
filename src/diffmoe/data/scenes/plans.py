"""What scene a number stands for: its task, caption and things, but not yet where they are."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

from diffmoe.data.scenes.captions import TEMPLATES, scene_caption
from diffmoe.data.scenes.records import Clause, Prompt
from diffmoe.data.scenes.words import (
    COUNTS,
    HELD_OUT_PAIRS,
    HELD_OUT_TASKS,
    RELATIONS,
    SPLITS,
    TASKS,
    allowed_pairs,
)
from diffmoe.errors import ConfigError
from diffmoe.randomness import uniforms

__all__ = ["Plan", "make_plan", "pick", "tasks_of"]

_WIDTH = 16  # numbers of a plan, more than any task uses

Option = TypeVar("Option")
Pair = tuple[str, str]  # shape and colour
Clauses = tuple[Clause, ...]
_PAIRS = {split: allowed_pairs(split) for split in SPLITS}
_BY_SHAPE = {
    split: {shape: tuple(c for s, c in pairs if s == shape) for shape, _ in pairs}
    for split, pairs in _PAIRS.items()
}


class Plan(NamedTuple):
    """A prompt, and shape and colour of each thing; those of a clause stand together."""

    prompt: Prompt
    pairs: tuple[Pair, ...]


def tasks_of(split: str) -> tuple[str, ...]:
    """The tasks of a split: a held-out pair can be asked for only where a colour is named.

    Raises ConfigError if there is no such split.
    """
    if split not in SPLITS:
        raise ConfigError(f"split {split!r} is not known", remedy=f"use one of {', '.join(SPLITS)}")
    return HELD_OUT_TASKS if split == "held_out" else TASKS


def make_plan(seed: int, split: str, index: int) -> Plan:
    """The plan of scene `index`; the tasks of the split take turns."""
    tasks = tasks_of(split)
    task = tasks[index % len(tasks)]
    draws = iter(uniforms(seed, f"scenes/{split}/plan", index, 1, _WIDTH)[0].tolist())
    template, long = pick(draws, range(len(TEMPLATES[task]))), next(draws) < 0.5
    named = task in ("colors", "color_attr") or split == "held_out" or next(draws) < 0.5
    include, pairs = _DRAWN[task](draws, split, named)
    exclude = _one_more(include) if task == "counting" else ()
    return Plan(Prompt(task, scene_caption(task, include, template, long), include, exclude), pairs)


def pick(draws: Iterator[float], options: Sequence[Option]) -> Option:
    """One of the options, by the next number in [0, 1)."""
    return options[int(next(draws) * len(options))]


def _one(draws: Iterator[float], split: str, named: bool) -> tuple[Clauses, tuple[Pair, ...]]:
    """One thing of any colour."""
    pair = pick(draws, _PAIRS[split])
    return (Clause(pair[0]),), (pair,)


def _coloured(draws: Iterator[float], split: str, named: bool) -> tuple[Clauses, tuple[Pair, ...]]:
    """One thing of a colour that is asked for."""
    pair = pick(draws, HELD_OUT_PAIRS if split == "held_out" else _PAIRS[split])
    return (Clause(pair[0], colour=pair[1]),), (pair,)


def _several(draws: Iterator[float], split: str, named: bool) -> tuple[Clauses, tuple[Pair, ...]]:
    """Things of one shape, of one colour if that is asked for and else each of its own."""
    count = pick(draws, COUNTS)
    shape, colour = pick(draws, HELD_OUT_PAIRS if split == "held_out" else _PAIRS[split])
    if named:
        return (Clause(shape, count, colour),), ((shape, colour),) * count
    colours = [pick(draws, _BY_SHAPE[split][shape]) for _ in range(count)]
    return (Clause(shape, count),), tuple((shape, each) for each in colours)


def _two(draws: Iterator[float], split: str, named: bool) -> tuple[Clauses, tuple[Pair, ...]]:
    """Two shapes of any colours."""
    pairs = _different(draws, split, colours=False)
    return tuple(Clause(shape) for shape, _ in pairs), pairs


def _two_coloured(
    draws: Iterator[float], split: str, named: bool
) -> tuple[Clauses, tuple[Pair, ...]]:
    """Two shapes of two colours that are asked for."""
    pairs = _different(draws, split, colours=True)
    return tuple(Clause(shape, colour=colour) for shape, colour in pairs), pairs


def _placed(draws: Iterator[float], split: str, named: bool) -> tuple[Clauses, tuple[Pair, ...]]:
    """Two shapes, the second where it is asked for."""
    pairs = _different(draws, split, colours=False)
    first, second = (Clause(shape, colour=colour if named else None) for shape, colour in pairs)
    return (first, replace(second, relation=pick(draws, RELATIONS))), pairs


def _different(draws: Iterator[float], split: str, *, colours: bool) -> tuple[Pair, ...]:
    """Two pairs of different shapes, and colours if asked for, in either order.

    The first that is drawn is a held-out pair in the split of those.
    """
    one = pick(draws, HELD_OUT_PAIRS if split == "held_out" else _PAIRS[split])
    others = [
        pair for pair in _PAIRS[split] if pair[0] != one[0] and not (colours and pair[1] == one[1])
    ]
    pairs = (one, pick(draws, others))
    return pairs if next(draws) < 0.5 else pairs[::-1]


def _one_more(include: Clauses) -> Clauses:
    """The count at which there are too many, of any colour."""
    return (Clause(include[0].shape, include[0].count + 1),)


_DRAWN: dict[str, Callable[[Iterator[float], str, bool], tuple[Clauses, tuple[Pair, ...]]]] = {
    "single_object": _one,
    "two_object": _two,
    "counting": _several,
    "colors": _coloured,
    "position": _placed,
    "color_attr": _two_coloured,
}
