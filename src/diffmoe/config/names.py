"""The names of fields, and which one is meant by a name that is none."""

import difflib
import types
from collections.abc import Container, Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from diffmoe.config.marks import Mark
from diffmoe.config.model import ROUTER_OPTIONS, RouterOptions
from diffmoe.config.run import RunConfig

__all__ = ["family", "field_names", "meant_field", "nearest"]

_NEAR = 0.6  # likeness of two names of which one may be meant for the other


def nearest(word: str, known: set[str] | list[str] | tuple[str, ...]) -> str | None:
    """The known word whose last name is most like that of `word`, or has it for initials, or None.

    A section that both stand in makes no two names alike, and neither capitals nor the sign
    between the parts of a name make two different.
    """
    name = _last(word)
    initials = [other for other in known if _initials(_last(other)) == name]
    near = initials or [other for other in known if _likeness(_last(other), name) >= _NEAR]
    return max(sorted(near), key=lambda other: _likeness(_plain(other), _plain(word)), default=None)


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def _last(name: str) -> str:
    return _plain(name).lstrip("-").rpartition(".")[2]


def _initials(name: str) -> str:
    return "".join(part[:1] for part in name.split("-"))


def meant_field(name: str, said: Container[str]) -> str | None:
    """The field that a dotted name was meant for, or None.

    That is a field of the same name, be it of another section, one of those that are not `said` if
    there is any, or else the name most alike in its own section.
    """
    leaves = list(field_names(RunConfig))
    section, _, key = name.rpartition(".")
    namesakes = [other for other in leaves if _last(other) == _plain(key)]
    namesakes.sort(key=lambda other: (other.rpartition(".")[0] != section, other in said))
    if namesakes:
        return namesakes[0]
    parents = {".".join(leaf.split(".")[:depth]) for leaf in leaves for depth in (1, 2)}
    siblings = [other for other in {*leaves, *parents} if other.rpartition(".")[0] == section]
    near = nearest(key, [other.rpartition(".")[2] for other in siblings])
    return f"{section}.{near}".lstrip(".") if near else None


def family(annotation: Any) -> dict[str, type]:
    """The records that may stand where one is annotated, by kind."""
    if annotation is RouterOptions:
        return dict(ROUTER_OPTIONS)  # it grows with every router that is registered
    return {member.kind: member for member in get_args(annotation)}


def _members(annotation: Any) -> Iterator[type]:
    """The dataclasses a type annotation admits."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if annotation is RouterOptions:
        annotation = Union[tuple(ROUTER_OPTIONS.values())]  # noqa: UP007
    candidates = (
        get_args(annotation)
        if get_origin(annotation) in (Union, types.UnionType)
        else (annotation,)
    )
    yield from (c for c in candidates if isinstance(c, type) and is_dataclass(c))


@cache
def _hints(record: type) -> dict[str, Any]:
    return get_type_hints(record, include_extras=True)


def field_names(record: type, prefix: str = "", mark: str = "identity") -> dict[str, str]:
    """Every field below a config record, dotted, with its mark: identity, extend or machine."""
    hints = _hints(record)
    names: dict[str, str] = {}
    for entry in fields(record):
        hint, own = hints[entry.name], mark
        if get_origin(hint) is Annotated:
            own = next((m.name for m in hint.__metadata__ if isinstance(m, Mark)), mark)
        path = f"{prefix}{entry.name}"
        members = list(_members(hint))
        if not members:
            names[path] = own
        for member in members:
            names.update(field_names(member, f"{path}.", own))
        if len(members) > 1:
            names[f"{path}.kind"] = own
    return names
