"""The captions of a data set of Hugging Face: a column of texts, or of lists of them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from diffmoe.data.pictures.caption import NoCaptions, caption_of, refuse

__all__ = ["hub_captions"]

_AT_ONCE = 10_000  # rows


def hub_captions(place: Path, rows: Any, fields: Sequence[str]) -> Iterator[str]:
    """The captions of all rows, from the first of `fields` that is a column of texts.

    Raises NoCaptions if there is none, DataError naming a row without one.
    """
    column = next((name for name in fields if _is_text(rows, name)), None)
    if column is None:
        wanted, there = " or ".join(fields), ", ".join(rows.column_names)
        raise NoCaptions(str(place), len(rows), f"no column {wanted} of texts, only {there}")
    table = rows.with_format("arrow").select_columns([column])
    for first in range(0, len(rows), _AT_ONCE):
        for number, found in enumerate(_cells(place, column, table, first), first):
            yield caption_of(found, str(place), f"row {number}")


def _is_text(rows: Any, name: str) -> bool:
    from pyarrow import types  # type: ignore[import-untyped]

    if name not in rows.column_names:
        return False
    kind = rows.features.arrow_schema.field(name).type
    if types.is_list(kind) or types.is_large_list(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind))


def _cells(place: Path, column: str, table: Any, first: int) -> Iterator[object]:
    """The values of some rows; raises DataError if they are damaged."""
    number = first
    try:
        for cell in table[first : first + _AT_ONCE].column(0):
            yield cell.as_py()
            number += 1
    except UnicodeDecodeError:
        refuse(str(place), f"column {column} of row {number} is no UTF-8", "write it in UTF-8")
    except Exception as error:  # damaged tables raise nearly anything
        why = f"column {column} cannot be read ({' '.join(str(error).split())[:200]})"
        refuse(str(place), why, "copy or save it again")
