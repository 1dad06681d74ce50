"""What a set of encoded pictures offers, whatever they lie in."""

import os
from collections.abc import Callable, Iterable
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from diffmoe.data.fingerprint import fingerprint, spread
from diffmoe.errors import DataError

__all__ = [
    "EXTENSIONS",
    "HEAD",
    "MOST_CLASSES",
    "Pictures",
    "fingerprint_of",
    "is_picture",
    "no_classes",
    "no_pictures",
    "numbered",
    "subject",
]

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
HEAD = 1 << 16  # bytes of a sampled file that count in a fingerprint
MOST_CLASSES = 10**6  # a label beyond is a mistake, and naming all below it a burden
_NO_CLASS = -1


@runtime_checkable
class Pictures(Protocol):
    """Encoded pictures, numbered from 0, each of which can be read at any time by any process."""

    labels: Int[Tensor, " N"] | None  # None where nothing names a class
    class_names: tuple[str, ...]  # empty where there are no labels

    def __len__(self) -> int: ...

    @property
    def fingerprint(self) -> str:
        """Names the pictures wherever they lie: a folder and an archive of it have the same."""

    def read(self, index: int) -> bytes:
        """The encoded picture; raises DataError naming its file and index."""

    def name(self, index: int) -> str:
        """Where a picture lies, for messages."""


def is_picture(name: str) -> bool:
    """Whether a name is that of a picture."""
    return name.lower().endswith(EXTENSIONS)


def numbered(labels: Int[Tensor, " N"]) -> tuple[str, ...]:
    """The numbers of the classes as their names."""
    return tuple(str(label) for label in range(int(labels.max()) + 1))


def fingerprint_of(
    labels: Int[Tensor, " N"] | None,
    names: Iterable[str],
    sizes: np.ndarray,
    head: Callable[[int], bytes],
) -> str:
    """Hash of labels, of all names with their sizes, and of the first bytes of a few pictures."""
    count = len(sizes)
    known = torch.full((count,), _NO_CLASS) if labels is None else labels
    joined = b"\0".join(os.fsencode(name) for name in names)
    few = (head(index) for index in spread(count))
    return fingerprint("images", known, joined, sizes.astype("<i8").tobytes(), *few)


def subject(labelled: bool) -> str:
    """What a message calls the place: only training, which needs labels, has a `data.path`."""
    return "data.path" if labelled else "the path"


def no_pictures(where: str, labelled: bool) -> DataError:
    """The error of a place without pictures."""
    kinds = ", ".join(extension[1:] for extension in EXTENSIONS)
    remedy = "put the images of each class into a sub-folder of their own"
    return DataError(
        f"{subject(labelled)} holds no images ({kinds})",
        where=where,
        remedy=remedy if labelled else "give a place that holds some",
    )


def no_classes(where: str, count: int) -> DataError:
    """The error of a place with pictures, and with nothing that names their classes."""
    return DataError(
        f"data.path holds {count} images but no class sub-folder of images",
        where=where,
        remedy="put the images of each class into a sub-folder of their own",
    )
