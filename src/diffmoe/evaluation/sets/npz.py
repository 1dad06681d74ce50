"""The `.npz` files of the ADM protocol: images as `arr_0`, their labels as `arr_1`."""

import hashlib
import math
import struct
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from diffmoe.data import Notes
from diffmoe.errors import DataError

__all__ = ["IMAGES", "NpzSet", "npz_arrays"]

IMAGES, LABELS = "arr_0", "arr_1"
_MOST_CLASSES = 10**6  # a label beyond is a mistake
_BLOCK = 2**20  # bytes read at a time
_LOCAL_HEADER = 30  # bytes of a zip entry before its name
_NAME_LENGTHS = 26  # where in it the lengths of name and extra field stand
_COLOUR = Notes(grey=False, alpha=False, converted=False)
_GREY = Notes(grey=True, alpha=False, converted=False)


class NpzSet:
    """8-bit images (N, H, W, 3), or of one channel, mapped; every byte is checked beforehand.

    Compressed ones are unpacked into a temporary file of their full size, which is mapped.
    """

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
        self._array, self._sha256 = _checked(path)
        self._check()
        self.labels = self._labels(labels)
        names = 0 if self.labels is None else int(self.labels.max()) + 1
        self.class_names = tuple(str(label) for label in range(names))
        self.place = str(path)

    def __len__(self) -> int:
        return len(self._array)

    @property
    def fingerprint(self) -> str:
        """Hash of every pixel, of shape and labels."""
        digest = hashlib.sha256(f"{self._array.shape} {self._sha256}".encode())
        if self.labels is not None:
            digest.update(self.labels.numpy().astype("<i8").tobytes())
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
        if len(shape) == 4 and shape[0] < 2:
            raise DataError(f"{shape[0]} images are too few to evaluate", where=str(self._path))
        if len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape:
            raise DataError(
                f"{IMAGES} of shape {shape} is not (N, H, W, 3)",
                where=str(self._path),
                remedy="store images with their colours in the last place",
            )

    def _labels(self, found: np.ndarray | None) -> Int[Tensor, " N"] | None:
        if found is None:
            return None
        fits = found.shape == (len(self),) and found.dtype.kind in "iu"
        if not fits or found.min() < 0 or found.max() >= _MOST_CLASSES:
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


def _checked(path: Path) -> tuple[np.ndarray, str]:
    """`arr_0`, mapped, and the hash of its bytes, which are those that were written."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{IMAGES}.npy") as stream:
            shape, fortran, kind = _header(stream)
            start, entry = stream.tell(), archive.getinfo(f"{IMAGES}.npy")
            if kind.hasobject:
                raise ValueError("pickle")
            if start + kind.itemsize * math.prod(shape) != entry.file_size:
                raise ValueError(f"the sizes that {IMAGES} tells are not those of its content")
            stored = entry.compress_type == zipfile.ZIP_STORED
            place: Any = path if stored else tempfile.TemporaryFile()  # noqa: SIM115 - mapped
            digest = hashlib.sha256()
            while block := stream.read(_BLOCK):  # the archive's own checksum is verified, too
                digest.update(block)
                if not stored:
                    place.write(block)
            start = _data_offset(path, entry) + start if stored else 0
        mapped: Any = np.memmap(place, kind, "r", start, shape, "F" if fortran else "C")
        if not stored:
            place.close()  # the mapping keeps what it maps
        return np.asarray(mapped), digest.hexdigest()
    except Exception as error:
        raise _unreadable(path, error) from error


def _data_offset(path: Path, entry: zipfile.ZipInfo) -> int:
    """Where the bytes of an entry that is stored as it is begin."""
    with path.open("rb") as file:
        file.seek(entry.header_offset + _NAME_LENGTHS)
        name, extra = struct.unpack("<HH", file.read(4))
    return int(entry.header_offset + _LOCAL_HEADER + name + extra)


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    return read(file)
