"""Files of JSON lines, each about a step, whatever has become of the file."""

import json
import logging
from pathlib import Path
from typing import Any

from diffmoe.checkpoint.files import write_file
from diffmoe.errors import StorageError

__all__ = ["content_of", "forget_later", "read_metrics"]

_LOG = logging.getLogger(__name__)
_LARGEST = 2**63


def forget_later(path: Path, last: int, key: str = "step") -> None:
    """Drop the lines whose `key` is above `last`: they will be written again."""
    if path.exists():
        lines = content_of(path).split(b"\n")
        kept = [text for text in lines if 0 <= _number(text, key) <= last]
        write_file(path, lambda aside: aside.write_bytes(b"".join(text + b"\n" for text in kept)))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines in their order: a whole `step` each, numbers and None by name; [] without a file.

    A line that is not so is passed over: a kill cuts the last one off, and a report is worth more
    than a damaged line.
    """
    lines = [_line(text) for text in content_of(path).split(b"\n") if text]
    sound = [line for line in lines if line is not None]
    if len(sound) < len(lines):
        _LOG.warning(
            "%d of the %d lines of %s are damaged", len(lines) - len(sound), len(lines), path
        )
    return sound


def content_of(path: Path, what: str = "the file") -> bytes:
    """The bytes of a file, none where there is none; StorageError where they cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise StorageError(
            f"cannot read {what} ({error.strerror})",
            where=str(path),
            remedy="check the path and its permissions",
        ) from error


def _number(text: bytes, key: str) -> int:
    """The whole number of that name in a line, whatever else is in it; -1 where there is none."""
    try:
        number = json.loads(text)[key]
    except (ValueError, TypeError, KeyError, RecursionError):
        return -1
    return number if type(number) is int else -1


def _line(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or not all(map(_is_plain, line.values())):
        return None
    step = line.get("step")
    return line if type(step) is int and step >= 0 else None


def _is_plain(value: Any) -> bool:
    """Whether a value is one that a metric can have; a number too large for a float is none."""
    return value is None or type(value) is float or (type(value) is int and abs(value) < _LARGEST)
