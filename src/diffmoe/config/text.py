"""Config records as dictionaries and YAML, read back strictly, and compared."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import cattrs
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn

from diffmoe.config.captions import EncoderConfig, TextConfig
from diffmoe.config.checks import Checked, gathered, note_ranges
from diffmoe.config.data import CodecConfig, DataConfig
from diffmoe.config.document import document_text, read_document
from diffmoe.config.model import RouterOptions
from diffmoe.config.names import family, field_names, nearest
from diffmoe.config.run import ObjectiveConfig, RunConfig
from diffmoe.config.slips import WrongValueError, sentences, shown
from diffmoe.errors import ConfigError

__all__ = [
    "differences",
    "from_dict",
    "identity_differences",
    "read_config",
    "to_dict",
    "to_yaml",
]


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_LARGEST = 2**63


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    for kind in _KINDS:
        converter.register_structure_hook(kind, _strictly)
    converter.register_unstructure_hook(Path, str)
    converter.register_structure_hook(Path | None, lambda value, _: _path(value))
    converter.register_unstructure_hook(Path | None, lambda value: str(value) if value else None)
    converter.register_structure_hook_factory(is_dataclass, lambda kind: _reader(converter, kind))
    for each in (
        RouterOptions,
        ObjectiveConfig,
        DataConfig,
        CodecConfig,
        TextConfig,
        EncoderConfig,
    ):
        _tag(converter, each)
    return converter


def _path(value: Any) -> Path | None:
    return Path(_strictly(value, str)) if value else None


def _reader(converter: cattrs.Converter, kind: Any) -> Callable[[Any, Any], Any]:
    """What reads a record; of one that is not whole, the fields that are sound are checked."""
    read = make_dict_structure_fn(kind, converter)

    def checked(value: Any, _: Any) -> Any:
        content = _group(value)
        try:
            return read(content, kind)
        except cattrs.ClassValidationError as error:
            bad = {note.name for _, note in error.group_exceptions()[0]}
            names = {entry.name for entry in fields(kind)} - bad
            if issubclass(kind, Checked):
                note_ranges(kind, {name: content[name] for name in names & content.keys()})
            raise

    return checked


def _group(value: Any) -> dict[str, Any]:
    """The value, if it is a group of named fields."""
    if not isinstance(value, dict):
        raise WrongValueError("a group of fields is expected")
    strange = [key for key in value if not isinstance(key, str)]
    if strange:
        raise WrongValueError(f"{shown(strange[0])} is no name of a field")
    return value


def _tag(converter: cattrs.Converter, kinds: Any) -> None:
    """Write a record of a family with its `kind`, and read it back as the record of that kind."""

    def written(value: Any) -> dict[str, Any]:
        return {"kind": value.kind, **make_dict_unstructure_fn(type(value), converter)(value)}

    def read(value: Any, _: Any) -> Any:
        content, known = _group(value), family(kinds)
        kind = content.get("kind")
        if not isinstance(kind, str) or kind not in known:
            raise _no_kind(content, known)
        rest = {key: item for key, item in content.items() if key != "kind"}
        return _reader(converter, known[kind])(rest, known[kind])

    converter.register_unstructure_hook(kinds, written)
    converter.register_structure_hook(kinds, read)


def _no_kind(content: dict[str, Any], known: dict[str, Any]) -> Exception:
    """What is wrong with the kind of a record, and what may be meant."""
    kind, listed = content.get("kind"), " or ".join(known)
    if "kind" in content:
        near = nearest(kind, list(known)) if isinstance(kind, str) else None
        remedy = f"did you mean {near}?" if near else f"use {listed}"
        return WrongValueError(f"there is no kind {shown(kind)}, {remedy}")
    fields_of = {entry.name for record in known.values() for entry in fields(record)}
    slip = next((key for key in content if key not in fields_of and nearest(key, ["kind"])), None)
    if slip is not None:
        return cattrs.ForbiddenExtraKeysError("", next(iter(known.values())), {slip})
    return WrongValueError(f"kind is missing, use {listed}")


def _strictly(value: Any, kind: type) -> Any:
    """The value if it is of the kind, never a cut or converted one; a float may lack its point."""
    if type(value) is int and abs(value) > _LARGEST:
        raise WrongValueError(f"{shown(value)} is too large for any field")
    if type(value) is kind:
        return value
    if kind is float and type(value) is int:
        return float(value)
    quoted = " (YAML reads on, off, yes and no as such: put text in quotes)"
    hint = quoted if kind is str and type(value) is bool else ""
    raise WrongValueError(f"{shown(value)} is not {_KINDS[kind]}{hint}")


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
    return document_text(to_dict(config))


def from_dict(content: Any, *, where: str) -> RunConfig:
    """The config that `content` describes; all that is wrong with it is one ConfigError."""
    told: list[str] = []
    with gathered() as found:
        try:
            config = _CONVERTER.structure(content, RunConfig)
        except (cattrs.BaseValidationError, WrongValueError) as error:
            told = sentences(
                error, [name for name in field_names(RunConfig) if _has(content, name)]
            )
    told += found.mistakes
    if told:
        raise ConfigError.of(
            told,
            "the config cannot be read",
            where=where,
            remedy="correct it, or restore the file, or start a new run",
        )
    return config


def _has(content: Any, name: str) -> bool:
    """Whether a content has a value for the field of a dotted name."""
    for part in name.split("."):
        if not (isinstance(content, dict) and part in content):
            return False
        content = content[part]
    return True


def read_config(path: Path) -> RunConfig:
    """The config in a YAML file; raises StorageError if there is none, ConfigError if it is bad."""
    return from_dict(read_document(path), where=str(path))


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
