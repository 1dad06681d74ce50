"""Which pixels of a picture show something of a palette colour, and how much of them it covers."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from diffmoe.data import LEAST_SIDE, PALETTE
from diffmoe.errors import ConfigError

__all__ = ["Blob", "Picture", "blobs", "object_pixels", "open_picture", "smooth"]

_COLOURS = np.array(list(PALETTE.values()), dtype=np.float64)
_NAMES = tuple(PALETTE)
_DEVIATION = 1 / 40  # of the side: the filter's, 0.8 pixels of 32
_REACH = 1 / 16  # of the side: how far around its core the filter spreads a blob
_SHOWN = 0.45  # covered share from which on a pixel belongs to the core of a blob
_FAINT, _APART = 0.25, 1 / 16  # covered share that is shown; background that is enough, of all
_LEAST = 6 / LEAST_SIDE**2  # core of a blob, in pictures; smaller ones are dirt


class Picture(NamedTuple):
    """A picture apart from its background, seen along the rays from there to the colours."""

    covered: Float[np.ndarray, "K side side"]  # by each colour of the palette
    nearest: Int[np.ndarray, "side side"]  # the colour whose ray is nearest


class Blob(NamedTuple):
    """One connected patch of a colour: how much of each pixel it covers in a window around it."""

    colour: str
    top: int
    left: int
    covered: Float[np.ndarray, "h w"]


def open_picture(image: UInt8[np.ndarray, "3 side side"]) -> Picture:
    """The picture along the rays of the palette; ConfigError if it is none of scenes.

    A Gaussian filter takes off noise; shapes go through it too before they are compared with a
    patch. The background is the median of each channel, so it must fill half of the picture, and
    then that of the pixels apart from all that is shown, whose soft edges would lift it.
    """
    _refuse_unfit(image)
    values = smooth(image.astype(np.float64), image.shape[-1])
    first = np.median(values, axis=(1, 2))
    near = _along_rays(values, first).max(axis=0) >= _FAINT
    apart = ~_ndimage().maximum_filter(near, size=2 * _reach(near) + 1)
    enough = apart.mean() >= _APART
    background = np.median(values[:, apart], axis=1) if enough else first
    seen = _along_rays(values, background)
    length = np.linalg.norm(_COLOURS - background, axis=1)
    return Picture(seen, (seen * length[:, None, None]).argmax(axis=0))


def object_pixels(image: UInt8[np.ndarray, "3 side side"]) -> Int[np.ndarray, "side side"]:
    """For each pixel the number, from 1, of the patch whose core it is of; 0 for background."""
    cores, _ = _cores(open_picture(image))
    return cores


def _along_rays(
    values: Float[np.ndarray, "3 side side"], background: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "K side side"]:
    """How far each pixel lies along the ray to each colour, 1 at the colour itself."""
    rays = _COLOURS - background
    steps = rays / (rays**2).sum(axis=1, keepdims=True)
    along: Float[np.ndarray, "K side side"] = np.tensordot(
        steps, values - background[:, None, None], axes=1
    )
    return along


def blobs(picture: Picture) -> Iterator[Blob]:
    """The patches that are no dirt, top to bottom within a colour, each with its soft edge.

    A core is 4-connected; pixels around it count by how far they lie along the ray of its colour,
    whichever ray is nearest there: noise changes that first where a colour is faint.
    """
    cores, colours = _cores(picture)
    grown = cores
    for _ in range(_reach(cores)):
        grown = np.where(grown > 0, grown, _ndimage().maximum_filter(grown, size=3))
    for number, box in enumerate(_ndimage().find_objects(cores), 1):
        if box is None:
            continue
        rows, columns = (_wider(part, _reach(cores), len(cores)) for part in box)
        covered = picture.covered[colours[number], rows, columns]
        own = np.where(grown[rows, columns] == number, covered, 0.0)
        yield Blob(_NAMES[colours[number]], rows.start, columns.start, own)


def _cores(picture: Picture) -> tuple[Int[np.ndarray, "side side"], Int[np.ndarray, "N"]]:
    """For each pixel the number, from 1, of the core it is of, and the colour of each number."""
    shown = picture.covered >= _SHOWN
    shown &= picture.nearest == np.arange(len(_NAMES))[:, None, None]
    within: Bool[np.ndarray, "3 3 3"] = np.zeros(
        (3, 3, 3), dtype=bool
    )  # neighbours in the same colour only
    within[1] = _ndimage().generate_binary_structure(2, 1)
    labelled, count = _ndimage().label(shown, within)
    sizes = np.bincount(labelled.ravel(), minlength=count + 1)
    labelled[sizes[labelled] < _LEAST * picture.nearest.size] = 0
    colours = np.zeros(count + 1, dtype=np.int64)
    np.maximum.at(colours, labelled.ravel(), np.indices(labelled.shape)[0].ravel())
    return labelled.max(axis=0), colours


def _wider(part: slice, reach: int, side: int) -> slice:
    return slice(max(0, part.start - reach), min(side, part.stop + reach))


def _reach(plane: np.ndarray) -> int:
    """Pixels around a core that belong to a blob."""
    return round(_REACH * plane.shape[-1])


def _refuse_unfit(image: UInt8[np.ndarray, "..."]) -> None:
    """Raise ConfigError unless this is a square picture of bytes in three colours."""
    fits = image.ndim == 3 and image.shape[0] == 3 and image.shape[1] == image.shape[2]
    if not fits or image.dtype != np.uint8 or image.shape[1] < LEAST_SIDE:
        raise ConfigError(
            f"an array of shape {tuple(image.shape)} and type {image.dtype} is no picture of a"
            " scene",
            remedy=f"give bytes of shape (3, side, side), the side {LEAST_SIDE} or more",
        )


def smooth(values: Float[np.ndarray, "N h w"], side: int) -> Float[np.ndarray, "N h w"]:
    """Parts of pictures of this side, through the filter that takes off noise."""
    deviation = _DEVIATION * side
    filtered: Float[np.ndarray, "N h w"] = _ndimage().gaussian_filter(
        values, (0, deviation, deviation), truncate=3.0, mode="nearest"
    )
    return filtered


def _ndimage() -> Any:
    """SciPy's filters; it is an extra, imported when a picture is judged."""
    try:
        from scipy import ndimage  # type: ignore[import-untyped]
    except ImportError as error:
        raise ConfigError(
            "the judge of scenes needs the package scipy", remedy='pip install "diffmoe[demo]"'
        ) from error
    return ndimage
