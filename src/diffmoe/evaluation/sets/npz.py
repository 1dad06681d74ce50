"""The `.npz` files of the ADM protocol: images as `arr_0`, their labels as `arr_1`."""

import hashlib
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from diffmoe.data import Notes, spread
from diffmoe.errors import DataError

__all__ = ["IMAGES", "NpzSet", "npz_arrays"]

IMAGES, LABELS = "arr_0", "arr_1"
_LOCAL_HEADER = 30  # bytes of a zip entry before its name
_NAME_LENGTHS = 26  # where in it the lengths of name and extra field stand
_COLOUR = Notes(grey=False, alpha=False, converted=False)
_GREY = Notes(grey=True, alpha=False, converted=False)


class NpzSet:
    """8-bit images (N, H, W, 3), or of one channel, mapped where they are stored uncompressed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with npz_arrays(path) as archive:
            if IMAGES not in archive:
                held = ", ".join(archive) or "nothing"
                raise DataError(
                    f"the file holds no images: {IMAGES} is not among {held}",
                    where=str(path),
                    remedy="give the .npz of a sampling; statistics alone are only a reference",
                )
            labels = archive.get(LABELS)
        self._check()
        self.labels = self._labels(labels)
        names = 0 if self.labels is None else int(self.labels.max()) + 1
        self.class_names = tuple(str(label) for label in range(names))
        self.place = str(path)

    def __len__(self) -> int:
        return len(self._array)

    @cached_property
    def _array(self) -> np.ndarray:
        return _mapped(self._path)

    @property
    def fingerprint(self) -> str:
        """Hash of shape, labels and a few images."""
        digest = hashlib.sha256(str(self._array.shape).encode())
        if self.labels is not None:
            digest.update(self.labels.numpy().astype("<i8").tobytes())
        for index in spread(len(self)):
            digest.update(np.ascontiguousarray(self._array[index]).tobytes())
        return f"{len(self)} npz sha256:{digest.hexdigest()[:16]}"

    def name(self, index: int) -> str:
        """Where an image lies, for messages."""
        return f"{self._path}[{index}]"

    def read(self, index: int) -> tuple[UInt8[Tensor, "3 H W"], Notes]:
        """One image, and whether it was grey."""
        pixels = torch.from_numpy(np.array(self._array[index])).permute(2, 0, 1)
        grey = len(pixels) == 1
        return pixels.expand(3, -1, -1).contiguous(), _GREY if grey else _COLOUR

    def _check(self) -> None:
        """Raise DataError unless the array holds 8-bit images, colours last."""
        shape, kind = self._array.shape, self._array.dtype
        if kind != np.uint8:
            raise DataError(
                f"{IMAGES} is {kind}, not uint8",
                where=str(self._path),
                remedy="round the images once: uint8 of (x + 1) * 127.5 for x in [-1, 1]",
            )
        if len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape:
            raise DataError(
                f"{IMAGES} of shape {shape} is not (N, H, W, 3)",
                where=str(self._path),
                remedy="store images with their colours in the last place",
            )

    def _labels(self, found: np.ndarray | None) -> Int[Tensor, " N"] | None:
        if found is None:
            return None
        if found.shape != (len(self),) or found.dtype.kind not in "iu" or found.min() < 0:
            raise DataError(
                f"{LABELS} of shape {found.shape} and type {found.dtype} are no labels of"
                f" {len(self)} images",
                where=str(self._path),
                remedy="store one class number for each image, or leave them out",
            )
        return torch.from_numpy(found.astype(np.int64))


@contextmanager
def npz_arrays(path: Path) -> Iterator[Any]:
    """The arrays of a file by name; DataError for a pickle, a damaged file or another kind."""
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it is a single array")
            with archive:
                yield archive
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError("there is no such file", where=str(path)) from error
    except Exception as error:  # a damaged file raises nearly anything
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    pickled = "pickle" in str(error).lower()
    reason = " ".join(str(error).split()) or type(error).__name__
    if pickled:
        reason = "it is pickled, and pickles can run code"
    return DataError(
        f"the file cannot be read ({reason})",
        where=str(path),
        remedy="store plain arrays with numpy.savez",
    )


def _mapped(path: Path) -> np.ndarray:
    """`arr_0`, without reading it if it is stored as it is."""
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            entry = archive.getinfo(f"{IMAGES}.npy")
            if entry.compress_type == zipfile.ZIP_STORED:
                file.seek(entry.header_offset + _NAME_LENGTHS)
                name, extra = struct.unpack("<HH", file.read(4))
                file.seek(entry.header_offset + _LOCAL_HEADER + name + extra)
                shape, fortran, kind = _header(file)
                if kind.hasobject:
                    raise ValueError("pickle")
                order = "F" if fortran else "C"
                mapped = np.memmap(path, kind, "r", file.tell(), shape, order)  # type: ignore[call-overload]
                return np.asarray(mapped)
    except Exception as error:
        raise _unreadable(path, error) from error
    with npz_arrays(path) as arrays:
        return np.asarray(arrays[IMAGES])


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    return read(file)
