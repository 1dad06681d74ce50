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

from diffmoe.arguments.records import FLAT
from diffmoe.config import RunConfig, field_names, gathered, nearest
from diffmoe.errors import ConfigError

__all__ = ["parse"]

Record = TypeVar("Record")

_PLACE = re.compile(r"^Error parsing (\S+): (.*)")
_VALUE = re.compile(
    r"(?:with base 10: |string to float: |instantiated from |arguments:? )(\[.*?\]|.*)"
)
_KIND = r" (\{None\}\|)?\[?((INT|FLOAT|STR|PATH)(?: \3)*)"
_FLAG = re.compile(r"(?:Error parsing |for argument ')(--[^\s:']+)")
_CHOICE = re.compile(r"invalid choice '(.*?)' for argument '(\S+)'\. Expected one of")

# What to do where a kind of record lacks a field that another kind has.
_INSTEAD = {
    "digits": "digits are built in: for images of your own start from a preset whose data are a"
    " folder, such as diffmoe-s-e16-flow; in pixels: see the guide, Train on your own images",
    "scenes": "scenes are drawn: for captioned images of your own start from a preset whose data"
    " are a folder, such as diffmoe-e16-t2i-flow; in pixels: see the guide, Images with captions",
}


def parse(record: type[Record], default: Record, words: Sequence[str], prog: str) -> Record:
    """The record that `words` make of `default`; `--help` prints the flags and exits.

    Raises one ConfigError for all that is wrong: flags that are not there (naming the nearest),
    values of the wrong type, and whatever the record's own checks find.
    """
    told: list[ConfigError] = []
    left, dropped = list(words), list[str]()
    while True:
        with gathered(_groups(default, dropped)) as found:
            made, slip = _attempt(record, _undecided(default, left), left, prog)
        if made is not None:
            break
        told.append(_told(slip, default, prog))
        flag = _flag_of(slip)
        without = _without(left, flag)
        if without == left:  # what was said of no flag cannot be set aside
            raise _several(told, prog)
        left, dropped = without, [*dropped, flag]
    parsed, unknown = made
    told += [*_another_kind(unknown, default, prog), *_unknown(unknown, default, prog)]
    told += [*_nothing(parsed, left, prog), *_again(parsed, left)]
    told += map(ConfigError, found.mistakes)
    if told:
        raise _several(told, prog)
    return parsed


def _attempt(
    record: type[Record], default: Record, words: list[str], prog: str
) -> tuple[tuple[Record, list[str]] | None, str]:
    """The record and the words that are unknown, or else what the parser wrote into its box."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            made = tyro.cli(
                record,
                default=default,
                args=words,
                prog=prog,
                config=(tyro.conf.AvoidSubcommands,),
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        return None, said.getvalue()
    return made, ""


def _several(told: list[ConfigError], prog: str) -> ConfigError:
    """All mistakes as one error; a single one as it is."""
    if len(told) == 1:
        return told[0]
    see = f"see {prog} --help"
    plain = (str(error).removesuffix(f" — {see}") for error in told)
    return ConfigError.of(plain, remedy=see)


def _groups(default: Any, flags: list[str]) -> set[str]:
    """The groups of config fields that lack what flags were to say."""
    flat = "" if hasattr(default, "config") else "sampling"
    return {_field(flag).rpartition(".")[0] or flat for flag in flags}


def _field(flag: str) -> str:
    """The dotted name of a flag's field."""
    return flag.lstrip("-").replace("-", "_").replace(".no_", ".")


def _flag_of(box: str) -> str:
    """The flag that the parser speaks of; empty if it names none."""
    found = _FLAG.search(_paragraphs(box)[0])
    return found[1] if found else ""


def _without(words: list[str], flag: str) -> list[str]:
    """The words without a flag, wherever it stands, and what was given to it."""
    kept, inside = [], False
    for word in words:
        if word.startswith("--"):
            inside = bool(flag) and _field(word.partition("=")[0]) == _field(flag)
        kept += [] if inside else [word]
    return kept


def _undecided(default: Any, words: Sequence[str]) -> Any:
    """The default, rid of its place on the dial where words name another one."""
    if hasattr(default, "config"):
        return replace(default, config=_rid(default.config, "sampling", words, "--sampling."))
    return _rid(default, "settings", words, "--")


def _rid(record: Any, name: str, words: Sequence[str], prefix: str) -> Any:
    """The record, undecided if flags decide; a value of another flag may be any word."""
    pairs = (f"{one}={other}" for one, other in itertools.pairwise([*words, ""]))
    said = [pair.removeprefix(prefix).split("=") for pair in pairs if pair.startswith(prefix)]
    image = any(parts[:2] == ["selection", "image"] for parts in said)
    decided = image or any(parts[0] in ("policy", "gamma", "capacity") for parts in said)
    if not hasattr(record, name) or not decided:
        return record
    return replace(record, **{name: getattr(record, name).undecided()})


def _nothing(found: Any, words: Sequence[str], prog: str) -> Iterator[ConfigError]:
    """Flags of several values that were given none: not their default."""
    for entry in fields(found):
        flag = f"--{entry.name.replace('_', '-')}"
        if getattr(found, entry.name) == () and flag in words:
            yield ConfigError(
                f"{flag} was given no value",
                remedy=f"give one or more, or leave it out; see {prog} --help",
            )


def _again(found: Any, words: Sequence[str]) -> Iterator[ConfigError]:
    """Flags of several values that stand twice: only what the last one says would count."""
    said = [word.partition("=")[0].replace("_", "-") for word in words]
    for entry in fields(found):
        flag = f"--{entry.name.replace('_', '-')}"
        if isinstance(getattr(found, entry.name), tuple) and said.count(flag) > 1:
            yield ConfigError(
                f"{flag} is given {said.count(flag)} times",
                remedy="give it once, with all its values behind it",
            )


def _told(box: str, default: Any, prog: str) -> ConfigError:
    """What the parser wrote into its box, as a sentence."""
    message, *helptext = _paragraphs(box)
    if choice := _CHOICE.search(message):
        return _wrong_choice(choice[2], choice[1], _choices(default, choice[2]), prog)
    if found := _PLACE.match(message):
        message = _wrong_value(found[1], found[2], helptext)
    return ConfigError(message.rstrip(". "), remedy=f"see {prog} --help")


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


def _foreign(flag: str, default: Any) -> bool:
    """Whether a flag is one of a config, but of records of another kind than this one's."""
    name = _field(flag)
    return hasattr(default, "config") and "." in name and name in field_names(RunConfig)


def _another_kind(words: list[str], default: Any, prog: str) -> Iterator[ConfigError]:
    """The flags that only records of another kind have."""
    for flag in _flags_among(words):
        if _foreign(flag, default):
            group, _, field = _field(flag).rpartition(".")
            kind = attrgetter(group)(default.config).kind
            lack = "is part of the preset" if field == "kind" else f"has no {field}"
            yield ConfigError(
                f"unknown flag {flag}: {group} is of kind {kind}, which {lack}",
                remedy=_INSTEAD.get(kind, f"see {prog} --help"),
            )


def _unknown(words: list[str], default: Any, prog: str) -> Iterator[ConfigError]:
    """The other flags that nobody has, each with those that it may be meant for."""
    flags = _flags_among(words)
    if words and not flags:
        yield ConfigError(f"unexpected word {words[0]!r}", remedy=f"see {prog} --help")
    known = list(_flags(default))
    for flag in flags:
        if not _foreign(flag, default):
            near = " or ".join(_nearest(flag, known))
            remedy = f"did you mean {near}?" if near else f"see {prog} --help"
            yield ConfigError(f"unknown flag {flag}", remedy=remedy)


def _flags_among(words: list[str]) -> list[str]:
    return [word.split("=")[0] for word in words if word.startswith("-")]


def _nearest(flag: str, known: list[str]) -> list[str]:
    """The flags of that last name in other sections, else the one most alike."""
    namesakes = [other for other in known if _last(other) == _last(flag)]
    near = nearest(flag, known)
    return namesakes or ([near] if near else [])


def _last(flag: str) -> str:
    return flag.lstrip("-").rsplit(".", 1)[-1].replace("_", "-").lower()
