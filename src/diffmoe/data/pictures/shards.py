"""WebDataset shards: tars in which a sample is a picture, a label and a caption of one key."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from diffmoe.data.pictures.archive import ArchivePictures, Found, refuse_twins, visible
from diffmoe.data.pictures.caption import FIELDS, CaptionedPictures, NoCaptions, caption_of
from diffmoe.data.pictures.members import Member, RefusedMember, read_member
from diffmoe.data.pictures.names import class_names_of, printable
from diffmoe.data.pictures.pictures import EXTENSIONS, MOST_CLASSES, Pictures, no_pictures
from diffmoe.data.pictures.samples import recorded_names
from diffmoe.data.pictures.shard_captions import CAPTIONS, sample_caption
from diffmoe.errors import DataError

__all__ = ["has_keys", "shards"]

_LABELS = (".cls", ".json")
_FIELDS = ("label", "cls")  # of a .json
_NAMES = "classes.txt"
_MOST_BYTES = 2**20  # of a member that holds a label
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")


class _Sample(NamedTuple):
    key: str
    picture: Member
    label: int | None
    caption: str | None


def has_keys(members: Sequence[Member]) -> bool:
    """Whether a tar is a shard: some picture in it has a label of the same key beside it."""
    keys: dict[bool, set[str]] = {True: set(), False: set()}
    for member in members:
        key, extension = _split(member.name)
        if extension in (*EXTENSIONS, *_LABELS):
            keys[extension in EXTENSIONS].add(key)
    return not keys[True].isdisjoint(keys[False])


def shards(
    paths: Sequence[Path],
    walked: Iterable[list[Member]],
    *,
    labelled: bool,
    fields: Sequence[str] | None = None,
) -> Pictures:
    """The samples of shards, whose members were `walked`, in the order of their keys in each.

    Labels are integers in `key.cls` or in a field of `key.json`; a single sample without one
    leaves all without labels, or is a DataError where labels are needed. `classes.txt` beside the
    shards may name a class a line. With `fields`, captions are read, and each sample needs one.
    """
    samples: list[_Sample] = []
    for number, (path, members) in enumerate(zip(paths, walked, strict=True)):
        own = [member._replace(archive=number) for member in members]
        samples += _samples(path, own, labelled, fields)
    where = str(paths[0] if len(paths) == 1 else paths[0].parent)
    if not samples:
        raise no_pictures(where, labelled)
    labels = _joined(samples)
    names = () if labels is None else _names(paths[0].parent, labels)
    keys = ["/".join(visible(sample.picture.name)) for sample in samples]
    pictures = ArchivePictures(
        paths, Found(keys, [sample.picture for sample in samples], labels, names)
    )
    if fields is None:
        return pictures
    if all(sample.caption is None for sample in samples):
        why = f"no field {' or '.join(fields)} in any .json" if fields != FIELDS else ""
        raise NoCaptions(where, len(samples), why)
    captions = (_known(paths[sample.picture.archive], sample) for sample in samples)
    return CaptionedPictures(pictures, captions, where)


def _known(path: Path, sample: _Sample) -> str:
    """The caption of a sample; raises DataError if it has none."""
    return caption_of(sample.caption, str(path), f"sample {printable(sample.key)}")


def _split(name: str) -> tuple[str, str]:
    """Key and extension of a member: its base name is split at the first dot."""
    *folders, base = visible(name) or ("",)
    stem, dot, extension = base.partition(".")
    return "/".join([*folders, stem]), (dot + extension).lower()


def _samples(
    path: Path, members: list[Member], labelled: bool, fields: Sequence[str] | None
) -> list[_Sample]:
    """The samples of one shard in the order of their keys."""
    pictures: dict[str, Member] = {}
    notes: dict[str, Member] = {}
    texts: defaultdict[str, dict[str, Member]] = defaultdict(dict)
    shown = [member for member in members if visible(member.name)]
    refuse_twins(path, ("/".join(visible(member.name)) for member in shown))
    for member in shown:
        key, extension = _split(member.name)
        if extension in EXTENSIONS:
            if key in pictures:
                raise _damage(path, key, "has two pictures")
            pictures[key] = member
        elif extension == ".cls" or (extension == ".json" and key not in notes):
            notes[key] = member
        if fields is not None and extension in CAPTIONS:
            texts[key][extension] = member
    return [
        _Sample(
            key,
            pictures[key],
            _label(path, key, notes.get(key), labelled, lenient=fields is not None),
            None if fields is None else sample_caption(path, key, texts[key], fields),
        )
        for key in sorted(pictures)
    ]


def _label(path: Path, key: str, note: Member | None, labelled: bool, lenient: bool) -> int | None:
    """The label of a sample; None if it has none and needs none.

    Nor has it one that is no class, if that is `lenient`: its caption is what counts.
    """
    if note is None:
        found = None
    elif lenient and not labelled:
        try:
            found = _number(path, key, note) if note.size <= _MOST_BYTES else None
        except DataError:
            return None
    elif note.size > _MOST_BYTES:
        raise _damage(path, key, f"has a label of {note.size:,} bytes")
    else:
        found = _number(path, key, note)
    if found is None and labelled:
        raise _damage(path, key, "has no label")
    return found


def _number(path: Path, key: str, note: Member) -> int | None:
    try:
        content = read_member(path, note)
    except RefusedMember as error:
        raise _damage(path, key, f"has a label that cannot be read ({error})") from error
    text = content.decode("utf-8", "replace").strip()
    value = text if _split(note.name)[1] == ".cls" else _field(path, key, text)
    if value is None:
        return None
    number = int(value) if isinstance(value, str) and _INTEGER.fullmatch(value) else value
    if type(number) is not int:
        raise _damage(path, key, f"has the label {value!r:.40}, which is no integer")
    if not 0 <= number < MOST_CLASSES:
        raise _damage(path, key, f"has the label {number}, which is no class")
    return number


def _field(path: Path, key: str, text: str) -> object:
    """The label in the text of a .json; None if it tells none."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damage(path, key, "has a .json that cannot be read") from error
    known = content if isinstance(content, dict) else {}
    return next((known[name] for name in _FIELDS if known.get(name) is not None), None)


def _joined(samples: list[_Sample]) -> Int[Tensor, " N"] | None:
    labels = [sample.label for sample in samples if sample.label is not None]
    return torch.tensor(labels) if len(labels) == len(samples) else None


def _names(folder: Path, labels: Int[Tensor, " N"]) -> tuple[str, ...]:
    """The lines of `classes.txt`, else the names that sampling recorded, else numbers."""
    used, recorded = int(labels.max()) + 1, recorded_names(folder)
    if len(recorded) >= used and not (folder / _NAMES).exists():
        return recorded
    return class_names_of(folder / _NAMES, used)


def _damage(path: Path, key: str, what: str) -> DataError:
    return DataError(
        f"sample {printable(key)} {what}",
        where=str(path),
        remedy=f"write its class as an integer into {printable(key)}.cls",
    )
