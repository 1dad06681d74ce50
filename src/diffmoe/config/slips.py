"""What is wrong with the text of a config: unknown and missing keys, and values of other types."""

import re
from collections.abc import Container, Iterator
from dataclasses import dataclass

import cattrs

from diffmoe.config.names import meant_field

__all__ = ["WrongValueError", "sentences", "shown"]

_MOST = 20  # unknown keys that are looked up: more of them are another file than a config
_LITERAL = re.compile(r"(.*) not in literal .*\[(.*)\]", re.DOTALL)


class WrongValueError(TypeError):
    """A value in a text is not of its field's type."""


@dataclass(frozen=True)
class _Slip:
    """What is wrong at one place."""

    place: str  # dotted
    what: str = ""  # empty of a key that is unknown
    missing: bool = False


def shown(value: object) -> str:
    """A value of any size as a few letters."""
    if isinstance(value, (list, dict)):
        return f"a {'list' if isinstance(value, list) else 'group'} of {len(value)}"
    if isinstance(value, int) and abs(value) > 2**64:
        return f"a number of {value.bit_length()} bits"
    told = repr(value)
    return told if len(told) <= 60 else f"{told[:57]}..."


def sentences(error: Exception, said: Container[str]) -> list[str]:
    """A sentence for each slip, unknown keys first, as they explain missing ones.

    `said` are the dotted names that the text has.
    """
    slips = list(_slips(error, ""))
    unknown = [slip.place for slip in slips if not slip.what]
    meant = {name: meant_field(name, said) for name in unknown[:_MOST]}
    told = [
        f"unknown key {name:.80}" + (f", did you mean {near}?" if near else "")
        for name, near in meant.items()
    ]
    if len(unknown) > _MOST:
        told.append(f"{len(unknown) - _MOST} more unknown keys")
    explained = set(meant.values())
    others = (slip for slip in slips if slip.what)
    return told + [
        f"{slip.what} @ $.{slip.place}".removesuffix(" @ $.")
        for slip in others
        if not (slip.missing and slip.place in explained)
    ]


def _slips(error: Exception, place: str) -> Iterator[_Slip]:
    """All that an error of the reader is made of, with their places."""
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        yield from (_Slip(f"{place}.{key}".lstrip(".")) for key in sorted(error.extra_fields))
    elif isinstance(error, (cattrs.ClassValidationError, cattrs.IterableValidationError)):
        placed, others = error.group_exceptions()
        for inner, note in placed:
            yield from _slips(inner, _below(place, note))
        for inner in others:
            yield from _slips(inner, place)
    elif isinstance(error, KeyError):
        yield _Slip(place, "required field missing", missing=True)
    else:
        yield _Slip(place, _what(error))


def _below(place: str, note: object) -> str:
    name = getattr(note, "name", None)
    return f"{place}.{name}".lstrip(".") if name else f"{place}[{getattr(note, 'index', '?')}]"


def _what(error: Exception) -> str:
    choice = _LITERAL.fullmatch(str(error))
    return f"{choice[1]:.60} is not one of {choice[2]}" if choice else f"{error!s:.200}"
