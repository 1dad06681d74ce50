"""What a set of encoded pictures offers, whatever they lie in."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from diffmoe.data.fingerprint import fingerprint, spread

__all__ = [
    "EXTENSIONS",
    "HEAD",
    "MOST_CLASSES",
    "NamedPictures",
    "Pictures",
    "UnfitPlace",
    "is_picture",
    "known_labels",
    "no_classes",
    "no_pictures",
    "numbered",
]

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
HEAD = 1 << 16  # bytes of a sampled file that count in a fingerprint
MOST_CLASSES = 10**6  # a label beyond is a mistake, and naming all below it a burden
_NO_CLASS = -1
_CLASSES = "put the images of each class into a sub-folder of their own"


@runtime_checkable
class Pictures(Protocol):
    """Encoded pictures, numbered from 0, each of which can be read at any time by any process."""

    labels: Int[Tensor, " N"] | None  # None where nothing names a class
    class_names: tuple[str, ...]  # empty where there are no labels
    captions: Sequence[str] | None  # None where nobody asked for them

    def __len__(self) -> int: ...

    @property
    def fingerprint(self) -> str:
        """Names the pictures wherever they lie: a folder and an archive of it have the same."""

    @property
    def listing(self) -> str:
        """Names the pictures by labels and names, whatever the pictures hold."""

    def state(self, images: range, few: Iterable[int]) -> str:
        """Names some pictures as they are now: labels, names, sizes, and how a `few` begin."""

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


def known_labels(labels: Int[Tensor, " N"] | None, count: int) -> Int[Tensor, " N"]:
    """The labels, or what stands for them where there are none."""
    return torch.full((count,), _NO_CLASS) if labels is None else labels


class NamedPictures(ABC):
    """What pictures that have names are told apart by."""

    labels: Int[Tensor, " N"] | None
    captions: Sequence[str] | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _named(self, images: range) -> Iterable[str]:
        """The names that count, of some pictures."""

    @abstractmethod
    def _sizes(self, images: range) -> np.ndarray:
        """How many bytes some pictures have."""

    @abstractmethod
    def _head(self, index: int) -> bytes:
        """The first bytes of a picture; none if it cannot be read."""

    @cached_property
    def fingerprint(self) -> str:
        """Hash of labels, of all names with their sizes, and of the first bytes of a few.

        A picture that cannot be read counts as empty here: its error is due when it is a sample.
        """
        return self.state(range(len(self)), spread(len(self)))

    @property
    def listing(self) -> str:
        """Hash of labels and names."""
        everything = range(len(self))
        return fingerprint("images", self._known(everything), self._joined(everything))

    def state(self, images: range, few: Iterable[int]) -> str:
        """Hash of what the fingerprint is made of, for some pictures."""
        sizes = self._sizes(images).astype("<i8").tobytes()
        heads = map(self._head, few)
        return fingerprint("images", self._known(images), self._joined(images), sizes, *heads)

    def _known(self, images: range) -> Int[Tensor, " n"]:
        return known_labels(self.labels, len(self))[images.start : images.stop]

    def _joined(self, images: range) -> bytes:
        return b"\0".join(os.fsencode(name) for name in self._named(images))


class UnfitPlace(Exception):
    """Says why a place is no set of pictures; who asked for it knows what it is called."""

    def __init__(self, what: str, where: str, remedy: str) -> None:
        super().__init__(what)
        self.what, self.where, self.remedy = what, where, remedy


def no_pictures(where: str, labelled: bool) -> UnfitPlace:
    """The error of a place without pictures."""
    kinds = ", ".join(extension[1:] for extension in EXTENSIONS)
    return UnfitPlace(
        f"holds no images ({kinds})",
        where,
        _CLASSES if labelled else "give a place that holds some",
    )


def no_classes(where: str, count: int) -> UnfitPlace:
    """The error of a place with pictures, and with nothing that names their classes."""
    return UnfitPlace(f"holds {count} images but no class sub-folder of images", where, _CLASSES)
