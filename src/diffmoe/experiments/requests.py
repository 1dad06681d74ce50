"""Which images a user asks for who does not name them all."""

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path

from diffmoe.checkpoint import RunFolder
from diffmoe.config import nearest
from diffmoe.errors import ConfigError
from diffmoe.sampling import balanced_labels, random_labels

__all__ = ["class_numbers", "request", "trained_classes"]

_LOG = logging.getLogger(__name__)
_LISTED = 10  # names of classes in a sentence
_COUNT = 16  # images when nothing says how many


def request(
    labels: Sequence[int],
    seeds: Sequence[int],
    count: int | None,
    classes: int,
    *,
    law: str = "balanced",
    first_seed: int = 0,
    what: str = "label",
) -> tuple[Sequence[int], Sequence[int]]:
    """Labels and seeds to draw, as many as there are labels, or else seeds, or else `count`.

    Without seeds they are `first_seed` and those after it; labels have their turn until there are
    `count`. Without labels all classes have, or each is a function of its seed where the law is
    `random`. Raises ConfigError, which calls labels `what`, if what is given contradicts itself.
    """
    _refuse_contradictions(len(labels), what, seeds, count, law, first_seed)
    number = (count or len(labels)) if len(labels) else len(seeds) or _counted(count)
    turns = balanced_labels(number, len(labels) or classes)  # refuses a bad count
    chosen = seeds if len(seeds) else range(first_seed, first_seed + number)
    if law == "random":
        return random_labels(chosen, classes), chosen
    if len(labels):
        return labels if number == len(labels) else [labels[turn] for turn in turns], chosen
    return turns, chosen


def _counted(count: int | None) -> int:
    return _COUNT if count is None else count


def _refuse_contradictions(
    labels: int, what: str, seeds: Sequence[int], count: int | None, law: str, first_seed: int
) -> None:
    if count is not None and count < labels:
        _refuse(f"count {count}", _several(labels, what))
    if len(seeds) and count not in (None, len(seeds)):
        _refuse(f"count {count}", _several(len(seeds), "seed"))
    if labels and law == "random":
        _refuse("law random", _several(labels, what))
    if len(seeds) and first_seed:
        _refuse(f"seed {first_seed}", _several(len(seeds), "seed"))


def _several(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _refuse(one: str, other: str) -> None:
    raise ConfigError(f"{one} does not go with {other}", remedy="leave one of them out")


def trained_classes(path: Path | str, classes: int) -> int:
    """How many of a model's classes the run at `path` was trained on, said if not on all.

    They are what is drawn where nobody names a class.
    """
    trained = RunFolder(Path(path)).trained_classes(classes)
    if trained < classes:
        _LOG.info("of the model's %d classes the %d that were trained are drawn", classes, trained)
    return trained


def class_numbers(path: Path | str, words: Sequence[str]) -> tuple[int, ...]:
    """The classes of a run by their numbers, or by their names in its `classes.txt`.

    A word that is a number is one, whatever classes are called. Raises ConfigError for a name that
    no class has, or more than one.
    """
    names = RunFolder(Path(path)).class_names if not all(map(_is_number, words)) else ()
    return tuple(int(word) if _is_number(word) else _number_of(word, names) for word in words)


def _is_number(word: str) -> bool:
    try:
        return bool(int(word) or True)
    except ValueError:
        return False


def _number_of(word: str, names: Sequence[str]) -> int:
    """The class of that name."""
    found = [number for number, name in enumerate(names) if name == word]
    if len(found) == 1:
        return found[0]
    if found:
        listed = " and ".join(map(str, found))
        raise ConfigError(f"classes {listed} are all called {word!r}", remedy="give a number")
    raise ConfigError(f"no class is called {word!r}", remedy=_known(word, names))


def _known(word: str, names: Sequence[str]) -> str:
    """The name that was meant, or what there is."""
    if near := nearest(word, list(names)):
        return f"did you mean {near}?"
    if all(map(_is_number, names)):
        return f"the run's classes are numbers, 0..{len(names) - 1}" if names else "give a number"
    more = ", ..." if len(names) > _LISTED else ""
    return f"the classes are {', '.join(itertools.islice(names, _LISTED))}{more}"
