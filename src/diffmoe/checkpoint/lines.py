"""Texts kept a line each in a file: names of classes, words, captions."""

import re
from collections.abc import Sequence
from pathlib import Path

from diffmoe.checkpoint.files import write_file

__all__ = ["read_lines", "write_lines"]

_BREAKS = re.compile(r"[\\\x00-\x1f\x7f-\x9f\u2028\u2029]")  # would end a line, or undo an escape
_ESCAPE = re.compile(r"\\(\\|u(?!d[89a-f])[0-9a-f]{4})")


def read_lines(path: Path) -> tuple[str, ...]:
    """The texts in a file of `write_lines`; none where there is no such file.

    They are for messages and pages too: bytes that are no text are replaced, not refused.
    """
    try:
        text = path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return ()
    lines = text.removesuffix("\n").split("\n") if text else []
    return tuple(_ESCAPE.sub(_unescaped, line) for line in lines)


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Write texts so that each is a line, whatever is in them."""
    joined = "".join(_BREAKS.sub(_escaped, line) + "\n" for line in lines)
    content = joined.encode("utf-8", "backslashreplace")
    write_file(path, lambda aside: aside.write_bytes(content))


def _escaped(match: re.Match[str]) -> str:
    sign = match.group()
    return sign * 2 if sign == "\\" else f"\\u{ord(sign):04x}"


def _unescaped(match: re.Match[str]) -> str:
    inner = match.group(1)
    return inner if inner == "\\" else chr(int(inner[1:], 16))
