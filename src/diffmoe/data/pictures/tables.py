"""Tables of captions, `captions.csv` and the like: which file has which caption, line by line."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from diffmoe.data.pictures.caption import MOST_BYTES, caption_of, decoded, first_of, refuse

__all__ = ["TABLES", "NoColumn", "Row", "read_rows", "text_lines"]

TABLES = ("captions.csv", "captions.jsonl", "metadata.csv", "metadata.jsonl")  # the first counts
_FILES = ("file_name", "file", "image", "path")
_REPAIR = "correct the line"


class NoColumn(Exception):
    """Says which column a table lacks."""


class Row(NamedTuple):
    """A picture that a table lists."""

    line: int  # counted from 1, the first one of the row
    file: str  # its path below the folder
    caption: str


def read_rows(where: str, lines: Iterable[bytes], fields: Sequence[str]) -> Iterator[Row]:
    """The rows of a table in a file of that name, whose captions are in the first of `fields`.

    Raises NoColumn if it has no such column, DataError naming a line that cannot be used.
    """
    cells = _of_csv if where.endswith(".csv") else _of_json
    for line, file, caption in cells(where, text_lines(where, lines), fields):
        what = f"line {line}"
        yield Row(line, _inside(file, where, what), caption_of(caption, where, what))


def text_lines(where: str, lines: Iterable[bytes]) -> Iterator[str]:
    """Lines as text; raises DataError for one that is no UTF-8 or longer than any row."""
    for number, line in enumerate(lines, 1):
        if len(line) > MOST_BYTES:
            refuse(where, f"line {number} is longer than {MOST_BYTES:,} bytes", "shorten it")
        yield decoded(line, where, f"line {number}")


def _of_csv(
    where: str, lines: Iterable[str], fields: Sequence[str]
) -> Iterator[tuple[int, object, object]]:
    """Line, file and caption of each row below the header."""
    reader = csv.reader(lines, strict=True)
    try:
        header = [name.strip() for name in next(reader, ())]
        file, caption = (header.index(_column(header, names)) for names in (_FILES, fields))
        end = reader.line_num
        for cells in reader:
            line, end = end + 1, reader.line_num
            if cells and len(cells) != len(header):
                what = f"line {line} has {len(cells)} cells, the header {len(header)}"
                refuse(where, what, "put a text with commas or line breaks into quotes")
            if cells:
                yield line, cells[file], cells[caption]
    except csv.Error as error:
        refuse(where, f"line {reader.line_num} cannot be read ({error})", _REPAIR)


def _of_json(
    where: str, lines: Iterable[str], fields: Sequence[str]
) -> Iterator[tuple[int, object, object]]:
    """Line, file and caption of each object."""
    first = True
    for line, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            entry = json.loads(text)
        except (ValueError, RecursionError):
            refuse(where, f"line {line} is no JSON", _REPAIR)
        if not isinstance(entry, dict):
            refuse(where, f"line {line} is no object", _REPAIR)
        if first:
            first = False
            for names in (_FILES, fields):
                _column(list(entry), names)
        yield line, first_of(entry, _FILES), first_of(entry, fields)
    if first:
        _column([], _FILES)


def _column(header: Sequence[str], names: Sequence[str]) -> str:
    """The first of some names that a table has."""
    for name in names:
        if name in header:
            return name
    wanted, there = " or ".join(names), ", ".join(header)[:200] or "none"
    raise NoColumn(f"no column {wanted}, only {there}")


def _inside(name: object, where: str, what: str) -> str:
    """A name as a path below the folder; raises DataError if it leads out of it."""
    if not isinstance(name, str) or not name.strip():
        refuse(where, f"{what} names no file", _REPAIR)
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        refuse(where, f"{what} names {name!r:.100}, which lies outside of the folder", _REPAIR)
    return str(path)
