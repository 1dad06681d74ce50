"""Captions one a line, in the order of the samples they belong to: a .jsonl or a .txt."""

import json
from collections.abc import Iterable, Sequence

from diffmoe.data.pictures.caption import FIELDS, caption_of, first_of, refuse
from diffmoe.data.pictures.names import Names
from diffmoe.data.pictures.tables import text_lines
from diffmoe.errors import DataError

__all__ = ["listed_captions"]


def listed_captions(
    where: str, lines: Iterable[bytes], count: int, remedy: str, field: str | None = None
) -> Names:
    """The captions in a file of that name, a line each; of a .jsonl, texts or objects with one.

    Objects have it in `field`, or else in one of the usual fields.

    Raises DataError unless there are `count` of them.
    """
    texts = text_lines(where, lines)
    fields, structured = (field,) if field else FIELDS, where.endswith(".jsonl")
    found: Iterable[object] = _of_json(where, texts, fields) if structured else texts
    captions = Names(caption_of(one, where, f"line {n}") for n, one in enumerate(found, 1))
    if len(captions) != count:
        raise DataError(
            f"{len(captions)} captions do not fit {count} samples", where=where, remedy=remedy
        )
    return captions


def _of_json(where: str, texts: Iterable[str], fields: Sequence[str]) -> Iterable[object]:
    for line, text in enumerate(texts, 1):
        try:
            entry = json.loads(text)
        except (ValueError, RecursionError):
            refuse(where, f"line {line} is no JSON", "write one text a line, in quotes")
        yield first_of(entry, fields) if isinstance(entry, dict) else entry
