"""Words to a record; a mistake becomes a sentence."""

import contextlib
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import reduce
from operator import attrgetter
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tyro

from diffmoe.arguments.records import FLAT, TrainCommand
from diffmoe.config import RunConfig, field_names, nearest
from diffmoe.errors import ConfigError, DiffMoEError

__all__ = ["parse"]

Record = TypeVar("Record")

_PLACE = re.compile(r"^Error parsing (\S+): (.*)")
_VALUE = re.compile(
    r"(?:with base 10: |string to float: |instantiated from |arguments:? )(\[.*?\]|.*)"
)
_KIND = r" (\{None\}\|)?\[?((INT|FLOAT|STR|PATH)(?: \3)*)"
_CHOICE = re.compile(r"invalid choice '(.*?)' for argument '(\S+)'\. Expected one of")

# What to do where a kind of record lacks a field that another kind has.
_INSTEAD = {
    "digits": "digits are built in: for images of your own start from a preset whose data are a"
    " folder, such as diffmoe-s-e16-flow; in pixels: see the guide, Train on your own images",
}


def parse(record: type[Record], default: Record, words: Sequence[str], prog: str) -> Record:
    """The record that `words` make of `default`; `--help` prints the flags and exits.

    Raises ConfigError for a flag that is not there (naming the nearest), a value of the wrong
    type, and whatever the record's own checks raise.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            found, unknown = tyro.cli(
                record,
                default=_undecided(default, words),
                args=list(words),
                prog=prog,
                config=(tyro.conf.AvoidSubcommands,),
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise _mistake(stop, said.getvalue(), default, prog) from None
    if unknown:
        _refuse_another_kind(unknown, default, prog)
        raise _unknown(unknown, list(_flags(default)), prog)
    _refuse_nothing(found, words, prog)
    return found


def _undecided(default: Any, words: Sequence[str]) -> Any:
    """The default, rid of its place on the dial where words name another one."""
    if isinstance(default, TrainCommand):
        own = [word.removeprefix("--sampling.") for word in words]
        return replace(default, config=_rid(default.config, "sampling", own))
    return _rid(default, "settings", [word.removeprefix("--") for word in words])


def _rid(record: Any, name: str, words: Sequence[str]) -> Any:
    parts = [part for word in words for part in word.split("=")]
    image = ("selection", "image") in itertools.pairwise(parts)
    if not hasattr(record, name) or not (image or {"policy", "gamma", "capacity"} & {*parts}):
        return record
    return replace(record, **{name: getattr(record, name).undecided()})


def _refuse_nothing(found: Any, words: Sequence[str], prog: str) -> None:
    """Raise ConfigError for a flag of several values that was given none: not its default."""
    for entry in fields(found):
        flag = f"--{entry.name.replace('_', '-')}"
        if getattr(found, entry.name) == () and flag in words:
            raise ConfigError(
                f"{flag} was given no value",
                remedy=f"give one or more, or leave it out; see {prog} --help",
            )


def _mistake(stop: SystemExit, box: str, default: Any, prog: str) -> DiffMoEError:
    """What a record's own check raised, or else what the parser wrote into its box."""
    for cause in _causes(stop):
        if isinstance(cause, DiffMoEError):
            return cause
    message, *helptext = _paragraphs(box)
    if choice := _CHOICE.search(message):
        return _wrong_choice(choice[2], choice[1], _choices(default, choice[2]), prog)
    if found := _PLACE.match(message):
        message = _wrong_value(found[1], found[2], helptext)
    return ConfigError(message.rstrip(". "), remedy=f"see {prog} --help")


def _causes(error: BaseException) -> Iterator[BaseException]:
    following: BaseException | None = error
    while following is not None:
        yield following
        following = following.__cause__ or following.__context__


def _paragraphs(box: str) -> list[str]:
    """The text between the rules of a box, drawn with Unicode or with ASCII lines."""
    lines = [line.strip("│|╭╮╰╯+ ") for line in box.splitlines()]
    parts = re.split(r"^[─-]{5,}.*$", "\n".join(lines[1:]), flags=re.MULTILINE)
    return [text for text in (" ".join(part.split()) for part in parts) if text] or [""]


def _wrong_value(flag: str, reason: str, helptext: list[str]) -> str:
    """`--flag takes KIND, not 'value'`, or the parser's own words where it gives no value."""
    value = _VALUE.search(reason.split(" Got errors")[0])
    kind = re.search(re.escape(flag) + _KIND, " ".join(helptext))
    if not (value and kind):
        return f"{flag}: {reason}"
    none = " or None" if kind[1] else ""
    return f"{flag} takes {kind[2]}{none}, not {value[1].strip('[]. ')}"


def _wrong_choice(flag: str, value: str, choices: list[str], prog: str) -> ConfigError:
    """`--flag takes one or other, not 'value'`, with the choice most like it."""
    near = nearest(value, choices)
    listed = " or ".join(filter(None, (", ".join(choices[:-1]), *choices[-1:])))
    return ConfigError(
        f"{flag} takes {listed}, not {value!r}",
        remedy=f"did you mean {near}?" if near else f"see {prog} --help",
    )


def _choices(record: Any, flag: str) -> list[str]:
    """The values that a flag chooses from, in the order in which its field lists them."""
    *sections, name = flag.lstrip("-").replace("-", "_").split(".")
    flat = [getattr(record, entry.name) for entry in fields(record) if _is_flat(entry)]
    for root in (record, *flat):
        owner = reduce(lambda found, section: getattr(found, section, None), sections, root)
        if is_dataclass(owner) and hasattr(owner, name):
            return list(_listed(get_type_hints(type(owner))[name]))
    return []


def _listed(annotation: Any) -> Iterator[str]:
    """The values in a type of few values, None last."""
    if get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
    for inner in get_args(annotation):
        yield from ["None"] if inner is type(None) else _listed(inner)


def _is_flat(entry: Any) -> bool:
    return FLAT in getattr(entry.type, "__metadata__", ())


def _flags(record: Any, prefix: str = "--") -> Iterator[str]:
    """Every flag of a record."""
    for entry in fields(record):
        value, name = getattr(record, entry.name), entry.name.replace("_", "-")
        if is_dataclass(value):
            yield from _flags(value, prefix if _is_flat(entry) else f"{prefix}{name}.")
        else:
            yield prefix + name
        if isinstance(value, bool):
            yield f"{prefix}no-{name}"


def _refuse_another_kind(words: list[str], default: Any, prog: str) -> None:
    """Raise ConfigError for a flag of a config, but of records of another kind than this one's."""
    elsewhere = field_names(RunConfig) if isinstance(default, TrainCommand) else {}
    for flag in (word.split("=")[0] for word in words if word.startswith("-")):
        name = flag.lstrip("-").replace("-", "_").replace(".no_", ".")
        group, _, field = name.rpartition(".")
        if name in elsewhere and group:
            kind = attrgetter(group)(default.config).kind
            lack = "is part of the preset" if field == "kind" else f"has no {field}"
            raise ConfigError(
                f"unknown flag {flag}: {group} is of kind {kind}, which {lack}",
                remedy=_INSTEAD.get(kind, f"see {prog} --help"),
            )


def _unknown(words: list[str], known: list[str], prog: str) -> ConfigError:
    flags = [word.split("=")[0] for word in words if word.startswith("-")]
    if not flags:
        return ConfigError(f"unexpected word {words[0]!r}", remedy=f"see {prog} --help")
    near = [found for found in (_nearest(flag, known) for flag in flags) if found]
    remedy = f"did you mean {' and '.join(near)}?" if near else f"see {prog} --help"
    return ConfigError(f"unknown flag {', '.join(flags)}", remedy=remedy)


def _nearest(flag: str, known: list[str]) -> str | None:
    """The flag of that last name in another section, else the one most alike."""
    spelt = flag.replace("_", "-")
    name = _last(spelt)
    return next((other for other in known if _last(other) == name), nearest(spelt, known))


def _last(flag: str) -> str:
    return flag.lstrip("-").rsplit(".", 1)[-1]
