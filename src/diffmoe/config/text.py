"""Config records as dictionaries and YAML, read back strictly, and compared."""

import difflib
import re
import types
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import cattrs
import yaml
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn

from diffmoe.config.data import CodecConfig, DataConfig
from diffmoe.config.marks import Mark
from diffmoe.config.model import ROUTER_OPTIONS, RouterOptions
from diffmoe.config.run import ObjectiveConfig, RunConfig
from diffmoe.errors import ConfigError, StorageError

__all__ = [
    "differences",
    "field_names",
    "from_dict",
    "identity_differences",
    "nearest",
    "read_config",
    "to_dict",
    "to_yaml",
]


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    for kind in _KINDS:
        converter.register_structure_hook(kind, _strictly)
    converter.register_unstructure_hook(Path, str)
    converter.register_structure_hook(Path | None, lambda value, _: Path(value) if value else None)
    converter.register_unstructure_hook(Path | None, lambda value: str(value) if value else None)
    for family in (RouterOptions, ObjectiveConfig, DataConfig, CodecConfig):
        _tag(converter, family)
    return converter


def _family(annotation: Any) -> dict[str, type]:
    """The records that may stand where one is annotated, by kind."""
    if annotation is RouterOptions:
        return dict(ROUTER_OPTIONS)  # it grows with every router that is registered
    return {member.kind: member for member in get_args(annotation)}


class _WrongValueError(TypeError):
    """A value in a text is not of its field's type."""


def _tag(converter: cattrs.Converter, family: Any) -> None:
    """Write a record of a family with its `kind`, and read it back as the record of that kind."""

    def written(value: Any) -> dict[str, Any]:
        return {"kind": value.kind, **make_dict_unstructure_fn(type(value), converter)(value)}

    def read(value: Any, _: Any) -> Any:
        if not isinstance(value, dict):
            raise _WrongValueError("a group of fields is expected")
        known, kind = _family(family), value.get("kind")
        if kind not in known:
            what = f"there is no kind {kind!r}" if "kind" in value else "kind is missing"
            near = nearest(str(kind), list(known))
            remedy = f"did you mean {near}?" if near else f"use {' or '.join(known)}"
            raise _WrongValueError(f"{what}, {remedy}")
        rest = {key: item for key, item in value.items() if key != "kind"}
        return make_dict_structure_fn(known[kind], converter)(rest, known[kind])

    converter.register_unstructure_hook(family, written)
    converter.register_structure_hook(family, read)


def _strictly(value: Any, kind: type) -> Any:
    """The value if it is of the kind, never a cut or converted one; a float may lack its point."""
    if type(value) is kind:
        return value
    if kind is float and type(value) is int:
        return float(value)
    raise _WrongValueError(f"{value!r} is not {_KINDS[kind]}")


_CONVERTER = _converter()


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The config as plain dictionaries, lists and numbers; unions carry a `kind`."""
    return _plain(_CONVERTER.unstructure(config, RunConfig))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def to_yaml(config: RunConfig) -> str:
    """The config as YAML text that `read_config` takes back."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def from_dict(content: Any, *, where: str) -> RunConfig:
    """The config that `content` describes; an unknown or ill-typed key raises ConfigError."""
    try:
        return _CONVERTER.structure(_named(content), RunConfig)
    except (cattrs.BaseValidationError, _WrongValueError) as error:
        raise ConfigError(
            f"the config cannot be read: {_explain(error)}",
            where=where,
            remedy="restore the file or start a new run",
        ) from error


def _named(content: Any) -> dict[str, Any]:
    """The content, if it is a group of fields all the way down."""
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise _WrongValueError(f"{content!r:.60} is no group of named fields")
    return {key: _named(v) if isinstance(v, dict) else v for key, v in content.items()}


def _explain(error: Exception) -> str:
    """What is wrong at every place, unknown keys first, as they explain missing ones."""
    if not isinstance(error, cattrs.BaseValidationError):
        return str(error)
    messages = [
        message.partition(_PLACED)[0]
        for message in cattrs.transform_error(error, format_exception=_format)
    ]
    found = [_EXTRA.match(message) for message in messages]
    suggested: dict[str, str | None] = {}
    for extra in filter(None, found):
        for key in extra[1].split(", "):
            name = f"{extra[2]}.{key}".lstrip(".")
            suggested[name] = _nearest_field(name)
    explained = {f"{_MISSING} @ $.{near}" for near in suggested.values()}
    unknown = [
        f"unknown key {name}" + (f", did you mean {near}?" if near else "")
        for name, near in suggested.items()
    ]
    others = [
        message
        for message, extra in zip(messages, found, strict=True)
        if not extra and message not in explained
    ]
    return "; ".join(unknown + others)


_EXTRA = re.compile(r"extra fields found \((.*)\) @ \$\.?(.*)")
_LITERAL = re.compile(r"(.*) not in literal .*\[(.*)\]")
_MISSING = "required field missing"
_PLACED = "\0"  # ends a message that names its place itself


def _format(error: BaseException, expected: type | None) -> str:
    """The middle of a sentence; its place is put behind it."""
    if isinstance(error, ConfigError):
        return f"{error}{_PLACED}"
    if isinstance(error, _WrongValueError):
        return str(error)
    if isinstance(error, AttributeError):  # a scalar or a list was asked for its keys
        return "a group of fields is expected"
    choice = _LITERAL.fullmatch(str(error))
    if choice:
        return f"{choice[1]} is not one of {choice[2]}"
    return cattrs.v.format_exception(error, expected)


def _nearest_field(name: str) -> str | None:
    """The field of that last name in another section, else the most alike of its own."""
    leaves = list(field_names(RunConfig))
    section, _, key = name.rpartition(".")
    elsewhere = [other for other in leaves if other.rpartition(".")[2] == key]
    if elsewhere:
        return elsewhere[0]
    parents = {".".join(leaf.split(".")[:depth]) for leaf in leaves for depth in (1, 2)}
    siblings = [other for other in {*leaves, *parents} if other.rpartition(".")[0] == section]
    near = nearest(key, [other.rpartition(".")[2] for other in siblings])
    return f"{section}.{near}".lstrip(".") if near else None


class _TwiceError(yaml.YAMLError):
    """A key of a mapping stands twice."""


class _UniqueKeys(yaml.SafeLoader):
    """YAML as plain data; a key that stands twice is an error, not the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise _TwiceError(f"key {name!r} stands twice")
        return super().construct_mapping(node, deep)


def read_config(path: Path) -> RunConfig:
    """The config in a YAML file; raises StorageError if there is none, ConfigError if it is bad."""
    try:
        content = _UniqueKeys(path.read_text()).get_single_data()
    except OSError as error:
        raise StorageError(f"cannot read the config ({error.strerror})", where=str(path)) from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        why = f" ({error})" if isinstance(error, _TwiceError) else ""
        raise ConfigError(f"the config is no YAML{why}", where=str(path)) from error
    return from_dict(content, where=str(path))


def nearest(word: str, known: set[str] | list[str] | tuple[str, ...]) -> str | None:
    """The known word whose last name is most like that of `word`, or has it for initials, or None.

    A section that both stand in makes no two names alike.
    """

    def likeness(one: str, other: str) -> float:
        return difflib.SequenceMatcher(None, one, other).ratio()

    name = _last(word)
    initials = [other for other in known if _initials(_last(other)) == name]
    near = initials or [other for other in known if likeness(_last(other), name) >= _NEAR]
    return max(sorted(near), key=lambda other: likeness(other, word), default=None)


_NEAR = 0.6  # likeness of two names of which one may be meant for the other


def _last(name: str) -> str:
    return name.lstrip("-").rpartition(".")[2]


def _initials(name: str) -> str:
    return "".join(part[:1] for part in re.split(r"[-_]", name))


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


def field_names(record: type, prefix: str = "", mark: str = "identity") -> dict[str, str]:
    """Every field below a config record, dotted, with its mark: identity, extend or machine."""
    hints = get_type_hints(record, include_extras=True)
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


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        path = f"{prefix}{key}"
        flat.update(_flat(value, f"{path}.") if isinstance(value, dict) else {path: value})
    return flat


def differences(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Fields that differ, dotted, with their old and new value."""
    before, after = _flat(to_dict(old)), _flat(to_dict(new))
    return {
        name: (before.get(name), after.get(name))
        for name in {**before, **after}
        if before.get(name) != after.get(name)
    }


def identity_differences(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Differences that make `new` another run than `old`."""
    marks = field_names(RunConfig)
    return {n: pair for n, pair in differences(old, new).items() if marks[n] == "identity"}
