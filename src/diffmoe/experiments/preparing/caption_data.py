"""Captions to be encoded: of pictures, or of a file of text."""

import json
from collections.abc import Sequence
from pathlib import Path

from diffmoe.data import open_pictures
from diffmoe.errors import ConfigError, DataError

__all__ = ["read_captions"]

_KEYS = ("caption", "prompt", "text")  # under one of which a line of .jsonl has its caption


def read_captions(path: Path, field: str | None = None) -> Sequence[str]:
    """The captions of pictures, of a .txt with one a line, or of a .jsonl with one a record.

    `field` names where pictures or records have them, where that is not one of the usual names.
    Raises ConfigError if there are none, DataError if what lies there cannot be read.
    """
    if path.suffix == ".txt" and path.is_file():
        return _lines(path)
    if path.suffix == ".jsonl" and path.is_file():
        lines, keys = enumerate(_lines(path), 1), _KEYS if field is None else (field,)
        return [_of_record(path, number, line, keys) for number, line in lines if line.strip()]
    pictures = open_pictures(path, labelled=False, captioned=True, caption_field=field)
    found: Sequence[str] | None = getattr(pictures, "captions", None)
    if found is None:
        raise ConfigError(
            "there are no captions",
            where=str(path),
            remedy="give pictures with captions, a .txt with one a line, or a .jsonl",
        )
    return found


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(
            f"captions cannot be read ({error.strerror or error})", where=str(path)
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"captions are no UTF-8 text at byte {error.start}",
            where=str(path),
            remedy="save the file as UTF-8",
        ) from error
    return [line.removesuffix("\r") for line in text.split("\n")]


def _of_record(path: Path, number: int, line: str, keys: tuple[str, ...]) -> str:
    try:
        record = json.loads(line)
        found = [record[key] for key in keys if key in record]
    except (ValueError, TypeError, RecursionError):
        found = []
    if not found or not isinstance(found[0], str):
        raise DataError(
            f"line {number} has no caption",
            where=str(path),
            remedy=f"write a JSON object a line, with text under {' or '.join(keys)}",
        )
    return found[0]
