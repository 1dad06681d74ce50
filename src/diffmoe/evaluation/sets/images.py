"""Sets of 8-bit RGB images, wherever they lie."""

import hashlib
from pathlib import Path
from typing import Protocol

from jaxtyping import Int, UInt8
from torch import Tensor

from diffmoe.codec import to_uint8
from diffmoe.data import (
    CacheSource,
    ImageSource,
    Notes,
    Pictures,
    Source,
    decode_exact,
    open_pictures,
)
from diffmoe.errors import ConfigError, DataError
from diffmoe.evaluation.sets.npz import NpzSet
from diffmoe.randomness import permutation

__all__ = [
    "ImageSet",
    "PictureSet",
    "SomeImages",
    "SourceSet",
    "images_of",
    "open_images",
    "some",
]

_COLOURS = 3
_AS_IT_IS = Notes(grey=False, alpha=False, converted=False)
_GREY = Notes(grey=True, alpha=False, converted=False)


class ImageSet(Protocol):
    """Images to evaluate, numbered from 0; any process may read any of them."""

    labels: Int[Tensor, " N"] | None  # None where nothing names a class
    class_names: tuple[str, ...]  # empty where there are no labels
    place: str  # for messages

    def __len__(self) -> int: ...

    @property
    def fingerprint(self) -> str:
        """Names the images cheaply, to tell whether a work that goes on is on the same ones."""

    def name(self, index: int) -> str:
        """Where an image lies, for messages."""

    def read(self, index: int) -> tuple[UInt8[Tensor, "3 H W"], Notes]:
        """One image, and what it was before it became 8-bit RGB."""


class PictureSet:
    """Pictures as they are, or their centres scaled to `crop` pixels in ADM's way."""

    def __init__(self, pictures: Pictures, place: str, crop: int | None = None) -> None:
        self._pictures, self._crop = pictures, crop
        self.labels, self.class_names = pictures.labels, pictures.class_names
        self.place = place

    def __len__(self) -> int:
        return len(self._pictures)

    @property
    def fingerprint(self) -> str:
        """That of the pictures, when and how large their files were written, and the crop."""
        return f"{self._pictures.fingerprint} {_state(Path(self.place))} crop {self._crop}"

    def name(self, index: int) -> str:
        """Where a picture lies."""
        return self._pictures.name(index)

    def read(self, index: int) -> tuple[UInt8[Tensor, "3 H W"], Notes]:
        """One image; raises DataError naming its file."""
        content, name = self._pictures.read(index), self._pictures.name(index)
        return decode_exact(content, name, index, self._crop)


def _state(place: Path) -> str:
    """A hash of the sizes and times of all files at a place: a changed one changes it."""
    files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
    digest = hashlib.sha256()
    for file in files:
        found = file.stat()
        digest.update(f"{file.relative_to(place)} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


class SourceSet:
    """Images a run was trained on, as the model saw them."""

    def __init__(self, source: Source, place: str) -> None:
        self._source = source
        self.labels, self.class_names, self.place = source.labels, source.class_names, place

    def __len__(self) -> int:
        return len(self._source)

    @property
    def fingerprint(self) -> str:
        """That of the data, and the size they are scaled to."""
        return f"{self._source.fingerprint} shape {self._source.shape}"

    def name(self, index: int) -> str:
        """The number of an image."""
        return f"{self.place}[{index}]"

    def read(self, index: int) -> tuple[UInt8[Tensor, "3 H W"], Notes]:
        """One image."""
        pixels = to_uint8(self._source.load(index, flip=False)[None])[0]
        return pixels.expand(3, -1, -1).contiguous(), _GREY if len(pixels) == 1 else _AS_IT_IS


class _Part:
    """The images of a set that have the numbers."""

    def __init__(self, images: ImageSet, numbers: list[int]) -> None:
        self._images, self._numbers = images, numbers
        self.labels = None if images.labels is None else images.labels[self._numbers]
        self.class_names, self.place = images.class_names, images.place

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def fingerprint(self) -> str:
        """That of the set, and how many."""
        return f"{self._images.fingerprint} of which {len(self)}"

    def name(self, index: int) -> str:
        """Where an image lies, for messages."""
        return self._images.name(self._numbers[index])

    def read(self, index: int) -> tuple[UInt8[Tensor, "3 H W"], Notes]:
        """One image, and what it was before."""
        return self._images.read(self._numbers[index])


class SomeImages(_Part):
    """Some images of a set, in its order, drawn by a seed: files often lie class by class."""

    def __init__(self, images: ImageSet, count: int) -> None:
        super().__init__(images, some(len(images), count))


class _SoundImages(_Part):
    """The images of a set that can be read; all are read once to know, and the place says it."""

    def __init__(self, images: ImageSet) -> None:
        super().__init__(images, [n for n in range(len(images)) if _is_sound(images, n)])
        self.place = f"{images.place} ({len(images) - len(self)} damaged left out)"


def _is_sound(images: ImageSet, index: int) -> bool:
    try:
        images.read(index)
    except DataError:
        return False
    return True


def some(count: int, most: int) -> list[int]:
    """The numbers of at most `most` of `count` images, drawn by a seed, in their order.

    Evenly spread ones would all be of one class where classes have their turn.
    """
    return sorted(permutation(0, "some images", count)[:most].tolist())


def images_of(source: Source, place: str, skips_damaged: bool = False) -> ImageSet:
    """The images a run was trained on, or those of them that can be read.

    Raises ConfigError if it was trained on latents, DataError if nearly none can be read.
    """
    found = _trained_on(source, place)
    if not skips_damaged:
        return found
    sound = _SoundImages(found)
    if len(sound) < 2:
        raise DataError(
            f"{len(sound)} of {len(found)} images can be read, too few to evaluate",
            where=place,
            remedy="restore them, or give --reference",
        )
    return sound if len(sound) < len(found) else found


def _trained_on(source: Source, place: str) -> ImageSet:
    if source.encoded or isinstance(source, CacheSource):
        raise ConfigError(
            "the run was trained on latents, which are no images to compare with",
            where=place,
            remedy="give --reference: images, an .npz or statistics",
        )
    if isinstance(source, ImageSource) and source.shape[0] == _COLOURS:
        return PictureSet(source.pictures, place, crop=source.shape[1])  # tells what they were
    return SourceSet(source, place)


def open_images(path: Path, crop: int | None = None) -> ImageSet:
    """The images at `path`: an `.npz` of the ADM protocol, a folder, an archive, a data set."""
    if not path.exists():
        raise ConfigError(
            "there are no images: the path does not exist",
            where=str(path.absolute()),
            remedy="give a run, a folder of images, an archive or an .npz",
        )
    if path.suffix == ".npz":
        if crop is not None:
            raise ConfigError(
                "images of an .npz are not cropped", where=str(path), remedy="leave out --crop"
            )
        return NpzSet(path)
    found = PictureSet(open_pictures(path, labelled=False), str(path), crop)
    if len(found) < 2:
        raise DataError(f"{len(found)} images are too few to evaluate", where=str(path))
    return found
