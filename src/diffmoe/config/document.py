"""YAML files of settings: data only, small and flat, so that none can run or fill anything."""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from diffmoe.errors import ConfigError, StorageError

__all__ = ["document_text", "read_document"]

_MOST_BYTES = 2**18  # a hundred times a config
_MOST_LEVELS = 16  # four times a config
_EXPONENT = re.compile(r"[-+]?(?:\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+")


class _Refused(yaml.YAMLError):
    """Says what a file holds that no config does."""


class _Loader(yaml.SafeLoader):
    """YAML as plain data; a key that stands twice is an error, not the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=deep)
            if isinstance(name, Hashable) and name in seen:
                raise _Refused(f"key {name!r:.60} stands twice in line {key.start_mark.line + 1}")
            seen |= {name} if isinstance(name, Hashable) else set()
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:  # dates and numbers that cannot be
            line = node.start_mark.line + 1
            raise _Refused(f"a value that cannot be in line {line}") from error


class _Dumper(yaml.SafeDumper):
    """YAML that the loader reads back as it was."""


for _each in (_Loader, _Dumper):
    # PyYAML takes 1e-4 for text, as YAML 1.1 has it; the dumper then has to quote such a text.
    _each.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def document_text(content: dict[str, Any]) -> str:
    """The content as YAML that `read_document` takes back."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False)


def read_document(path: Path) -> Any:
    """What a YAML file says, as dictionaries, lists, text and numbers.

    Raises StorageError if it cannot be read, ConfigError if it is no YAML or holds what no config
    does: a tag, an alias, levels without end, or far too many bytes.
    """
    try:
        text = _text(path)
        _refuse_traps(text)
        return _Loader(text).get_single_data()
    except OSError as error:
        raise StorageError(f"cannot read the config ({error.strerror})", where=str(path)) from error
    except (yaml.YAMLError, ValueError) as error:  # bytes that are no text
        raise ConfigError(
            f"the config is no YAML ({_reason(error)})", where=str(path), remedy="correct it"
        ) from error


def _reason(error: Exception) -> str:
    """Why a text cannot be read, and in which line, as far as that is known."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        place = f" in line {mark.line + 1}" if mark else ""
        return f"{' '.join((error.problem or 'it cannot be read').split())}{place}"
    if isinstance(error, UnicodeDecodeError):
        line = error.object.count(b"\n", 0, error.start) + 1
        return f"what is no text in line {line}"
    if isinstance(error, yaml.reader.ReaderError):
        return "a character that no text has"
    return str(error)


def _text(path: Path) -> str:
    """The text of a file, be there a byte order mark; no more is read than a config may have."""
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise _Refused(f"it has more than {_MOST_BYTES} bytes")
    return content.decode("utf-8-sig")


def _refuse_traps(text: str) -> None:
    """Raise before anything is built of what would run, multiply or nest without end."""
    level = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        line = f"in line {event.start_mark.line + 1}" if event.start_mark else ""
        if isinstance(event, yaml.AliasEvent):
            raise _Refused(f"alias *{event.anchor:.60} {line}: write the value out")
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise _Refused(f"tag {tag:.60} {line}: write the plain value")
        level += isinstance(event, yaml.CollectionStartEvent)
        level -= isinstance(event, yaml.CollectionEndEvent)
        if level > _MOST_LEVELS:
            raise _Refused(f"more than {_MOST_LEVELS} levels {line}")
