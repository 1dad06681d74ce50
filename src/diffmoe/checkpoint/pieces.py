"""Tensors that lie in pieces: which process holds what, and how they are put together again."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from diffmoe.checkpoint.manifest import RESTORE, Manifest
from diffmoe.errors import StorageError

__all__ = ["Boxes", "Piece", "dtype_name", "read_pieces", "reading"]

# Of a tensor, where to begin and how far to go on every axis.
Boxes = Mapping[str, tuple[Sequence[int], Sequence[int]]]


class Piece(NamedTuple):
    """A process's part of a tensor: `own` lies at `offsets` in a tensor of `shape`."""

    own: Tensor
    offsets: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def fits(self) -> bool:
        """Whether it lies inside of its tensor."""
        box = _Box(tuple(self.offsets), tuple(self.own.shape))
        return box.lies_in(self.shape)


class _Box(NamedTuple):
    """Where a part of a tensor begins and how far it goes, on every axis."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    def lies_in(self, shape: Sequence[int]) -> bool:
        """Whether a tensor of `shape` has all of it."""
        return len(self.offsets) == len(self.sizes) == len(shape) and all(
            offset >= 0 and size >= 0 and offset + size <= length
            for offset, size, length in zip(self.offsets, self.sizes, shape, strict=True)
        )

    def shared_with(self, other: "_Box") -> "_Box | None":
        """What lies in both; None if nothing does."""
        begins = tuple(map(max, zip(self.offsets, other.offsets, strict=True)))
        ends = map(min, zip(self.ends, other.ends, strict=True))
        sizes = tuple(end - begin for begin, end in zip(begins, ends, strict=True))
        return _Box(begins, sizes) if all(size > 0 for size in sizes) else None

    @property
    def ends(self) -> list[int]:
        return [offset + size for offset, size in zip(self.offsets, self.sizes, strict=True)]

    def within(self, outer: "_Box") -> tuple[slice, ...]:
        """Its place, counted from where `outer` begins."""
        begins = [a - b for a, b in zip(self.offsets, outer.offsets, strict=True)]
        return tuple(slice(a, a + n) for a, n in zip(begins, self.sizes, strict=True))


@dataclass
class _Stored:
    """A tensor of a checkpoint, and in which file each box of it lies."""

    dtype: str
    shape: tuple[int, ...]
    places: dict[str, list[int]]
    boxes: dict[str, _Box] = field(default_factory=dict)

    @property
    def whole(self) -> _Box:
        return _Box((0,) * len(self.shape), self.shape)


def read_pieces(
    path: Path, manifest: Manifest, part: str, boxes: Boxes | None = None
) -> dict[str, Tensor]:
    """The tensors of one part of a verified checkpoint, or the `boxes` of them that are asked for.

    Raises StorageError unless the pieces of each tensor fill it, each element once.
    """
    stored = _look(path, manifest, part)
    wanted = {key: each.whole for key, each in stored.items() if len(each.places) > 1}
    wanted |= _wanted(stored, boxes or {}, path)
    found = {
        key: torch.empty(box.sizes, dtype=getattr(torch, stored[key].dtype))
        for key, box in wanted.items()
    }
    for file, keys in _by_file(stored).items():
        pieces = {key: stored[key].boxes[file] for key in keys}
        with _opened(path, file) as content:
            for key, piece in pieces.items():
                if key in wanted:
                    _copy(content, key, piece, wanted[key], found[key])
                else:
                    found[key] = content.get_tensor(key)
    return {key: found[key] for key in stored}


def _by_file(stored: dict[str, _Stored]) -> dict[str, list[str]]:
    """What each file has to hold, by name."""
    held: dict[str, list[str]] = {}
    for key, each in stored.items():
        for file in each.places:
            held.setdefault(file, []).append(key)
    return dict(sorted(held.items()))


def _wanted(
    stored: dict[str, _Stored],
    boxes: Boxes,
    path: Path,
) -> dict[str, _Box]:
    """The boxes to read; raises StorageError where there is no such tensor or it is smaller."""
    wanted = {}
    for key, (offsets, sizes) in boxes.items():
        if key not in stored:
            raise _unfit(f"lacks {key}", path)
        wanted[key] = _Box(tuple(offsets), tuple(sizes))
        shape = stored[key].shape
        if not wanted[key].lies_in(shape):
            what = f"{tuple(sizes)} at {tuple(offsets)}"
            raise _unfit(f"has {key} of shape {shape}, in which no {what} lies", path)
    return wanted


def _unfit(what: str, path: Path) -> StorageError:
    return StorageError(
        f"the checkpoint {what}", where=str(path), remedy="it belongs to another model"
    )


def _look(path: Path, manifest: Manifest, part: str) -> dict[str, _Stored]:
    """The tensors of a part by the manifest and the headers of its files; no number is read."""
    stored = {
        key: _Stored(dtype, tuple(shape), manifest.pieces(part, key))
        for key, (dtype, shape, _) in manifest.tensors[part].items()
    }
    for file, keys in _by_file(stored).items():
        with _opened(path, file) as content:
            wrong = sorted(set(keys) ^ set(content.keys()))
            if wrong:
                raise _unlike(f"{file} {'lacks' if wrong[0] in keys else 'has'} {wrong[0]}", path)
            for key in keys:
                stored[key].boxes[file] = _box(content, key, stored[key], file, path)
    for key, each in stored.items():
        _require_each_once(key, each, path)
    return stored


def _require_each_once(key: str, each: _Stored, path: Path) -> None:
    """Raise StorageError unless the pieces of a tensor hold each of its elements once."""
    boxes = list(each.boxes.values())
    if sum(math.prod(box.sizes) for box in boxes) != math.prod(each.shape):
        raise _unlike(f"the pieces of {key} do not fill it", path)
    if not all(box.lies_in(each.shape) for box in boxes) or _overlap(boxes):
        raise _unlike(f"the pieces of {key} do not fit together", path)


def _box(content: Any, key: str, stored: _Stored, file: str, path: Path) -> _Box:
    """Where the piece of a tensor that a file holds lies."""
    piece = content.get_slice(key)
    sizes = tuple(piece.get_shape())
    if len(sizes) != len(stored.shape):
        raise _unlike(f"the pieces of {key} do not fill it", path)
    nothing = piece[(slice(0, 0),) * len(sizes)]
    if dtype_name(nothing.dtype) != stored.dtype:
        raise _unlike(f"{key} is not {stored.dtype}", path)
    return _Box(tuple(stored.places[file]), sizes)


def dtype_name(dtype: torch.dtype) -> str:
    """How a manifest calls a type of numbers."""
    return str(dtype).removeprefix("torch.")


def _overlap(boxes: list[_Box]) -> bool:
    """Whether any two boxes share an element; most pieces lie in a row, so few pairs are tried."""
    if len(boxes) < 2:
        return False
    begins = zip(*(box.offsets for box in boxes), strict=True)
    axis = max(enumerate(begins), key=lambda each: len(set(each[1])))[0]
    near: list[_Box] = []
    for box in sorted(boxes, key=lambda each: each.offsets[axis]):
        near = [other for other in near if other.ends[axis] > box.offsets[axis]]
        if any(other.shared_with(box) for other in near):
            return True
        near.append(box)
    return False


def _copy(content: Any, key: str, piece: _Box, box: _Box, target: Tensor) -> None:
    """Fill what a piece has of a box."""
    shared = piece.shared_with(box)
    if shared is not None:
        target[shared.within(box)] = content.get_slice(key)[shared.within(piece)]


def _unlike(what: str, path: Path) -> StorageError:
    return StorageError(
        f"the checkpoint is not as its manifest says: {what}", where=str(path), remedy=RESTORE
    )


@contextmanager
def _opened(path: Path, file: str) -> Iterator[Any]:
    """A file of tensors, of which only what is asked for is read."""
    with reading(file, path), safe_open(path / file, framework="pt") as content:
        yield content


@contextmanager
def reading(name: str, path: Path) -> Iterator[None]:
    """Turn the errors of a damaged or missing file into one sentence."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"cannot read {name} ({error})", where=str(path), remedy=RESTORE
        ) from error
