"""The caption of a sample of a WebDataset shard: `key.txt`, else a field of `key.json`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from diffmoe.data.pictures.caption import (
    FIELDS,
    MOST_BYTES,
    caption_of,
    decoded,
    first_of,
    refuse,
)
from diffmoe.data.pictures.members import Member, RefusedMember, read_member
from diffmoe.data.pictures.names import printable

__all__ = ["CAPTIONS", "sample_caption"]

CAPTIONS = (".txt", ".json")


def sample_caption(
    path: Path, key: str, notes: Mapping[str, Member], fields: Sequence[str]
) -> str | None:
    """The caption of a sample with these members by extension; None if it has none.

    A field that was asked for by name counts alone. Raises DataError naming shard and key.
    """
    what = f"sample {printable(key)}"
    if ".txt" in notes and tuple(fields) == FIELDS:
        return caption_of(_read(path, what, notes[".txt"]), str(path), what)
    if ".json" not in notes:
        return None
    try:
        entry = json.loads(_read(path, what, notes[".json"]))
    except (ValueError, RecursionError):
        refuse(str(path), f"{what} has a .json that cannot be read", "pack it again")
    found = first_of(entry, fields)
    return None if found is None else caption_of(found, str(path), what)


def _read(path: Path, what: str, note: Member) -> str:
    if note.size > MOST_BYTES:
        refuse(str(path), f"{what} has a caption of {note.size:,} bytes", "shorten it")
    try:
        content = read_member(path, note)
    except RefusedMember as error:
        refuse(str(path), f"{what} has a caption that cannot be read ({error})", "pack it again")
    return decoded(content, str(path), f"the caption of {what}")
