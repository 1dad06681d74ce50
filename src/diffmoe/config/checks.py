"""Mistakes in the values of records, all told at once; of a number, None is always in range."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ClassVar

from diffmoe.errors import ConfigError

__all__ = [
    "Checked",
    "Gathered",
    "at_least",
    "gathered",
    "is_sound",
    "note_ranges",
    "positive",
    "raised",
    "within",
]


class Checked:
    """A record that refuses values which cannot be.

    `ranges` yields the mistakes that one field shows by itself, `relations` those of fields that
    do not go together, which are looked for once each field is in range.
    """

    group: ClassVar[str]  # its name in a config, dotted

    def __post_init__(self) -> None:
        """Raise one ConfigError of all mistakes, or leave them to `gathered`."""
        found, gathering = list(self.ranges()), _GATHERING.get()
        if not found and is_sound(self):
            found = list(self.relations())
        if gathering is not None:
            gathering.note(self.group, found)
        elif found:
            raise ConfigError.of(map(str, found))

    def ranges(self) -> Iterable[ConfigError]:
        """Mistakes of single fields."""
        return ()

    def relations(self) -> Iterable[ConfigError]:
        """Mistakes of fields that are in range each."""
        return ()


@dataclass
class Gathered:
    """The mistakes of many records, and the groups of those that cannot be judged as a whole."""

    mistakes: list[str] = field(default_factory=list)
    unsound: set[str] = field(default_factory=set)

    def note(self, group: str, found: Iterable[ConfigError]) -> None:
        """Keep what was found in a group."""
        told = [mistake for error in found for mistake in error.mistakes or (str(error),)]
        self.mistakes += told
        self.unsound |= {group} if told else set()


_GATHERING: ContextVar[Gathered | None] = ContextVar("gathering", default=None)


@contextmanager
def gathered(unsound: Iterable[str] = ()) -> Iterator[Gathered]:
    """What is wrong with the records that the block makes, none of which raises.

    How the fields of `unsound` groups go together is not asked: not all of them are what was meant.
    """
    found = Gathered(unsound=set(unsound))
    token = _GATHERING.set(found)
    try:
        yield found
    finally:
        _GATHERING.reset(token)


def is_sound(record: Checked) -> bool:
    """Whether nothing is known against a record's fields; of the whole config, against any."""
    gathering = _GATHERING.get()
    unsound = gathering.unsound if gathering is not None else set()
    return record.group not in unsound if record.group else not unsound


def note_ranges(kind: type[Checked], values: dict[str, Any]) -> None:
    """Gather the mistakes of single fields of a record that cannot be made for want of others."""
    gathering, part = _GATHERING.get(), object.__new__(kind)
    for name, value in values.items():
        object.__setattr__(part, name, value)
    if gathering is not None:
        gathering.note(kind.group, part.ranges())


def raised(check: Callable[..., object], *arguments: Any) -> Iterator[ConfigError]:
    """What a check raises, instead of raising it."""
    try:
        check(*arguments)
    except ConfigError as error:
        yield error


def _values(record: Checked, names: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Fields with their dotted name; a field that a record in the making lacks is in range."""
    found = ((f"{record.group}.{name}", getattr(record, name, None)) for name in names)
    return ((name, value) for name, value in found if value is not None)


def positive(record: Checked, *names: str) -> Iterator[ConfigError]:
    """The named fields that are no finite numbers above 0."""
    for name, value in _values(record, names):
        if not 0 < value < math.inf:
            yield ConfigError(
                f"{name} {value} is not positive and finite", remedy="use a number above 0"
            )


def at_least(low: int, record: Checked, *names: str) -> Iterator[ConfigError]:
    """The named fields that are no finite numbers of `low` or more."""
    for name, value in _values(record, names):
        if not low <= value < math.inf:
            yield ConfigError(f"{name} {value} is out of range", remedy=f"use {low} or more")


def within(low: float, high: float, record: Checked, *names: str) -> Iterator[ConfigError]:
    """The named fields that do not lie in [low, high]."""
    for name, value in _values(record, names):
        if not low <= value <= high:
            yield ConfigError(
                f"{name} {value} is not in [{low}, {high}]", remedy="choose a value inside of it"
            )
