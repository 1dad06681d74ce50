"""What a picture shows, read by rule: no network, and no knowledge of its caption."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from diffmoe.data import SHAPES, has_angle, shape_area, shape_coverage
from diffmoe.evaluation.judge.segmentation import Blob, blobs, open_picture, smooth

__all__ = ["KNOWN", "Reading", "Seen", "read_picture", "read_pictures"]

KNOWN = 0.80  # overlap from which on a patch is a shape
_ANGLES = np.array([-7.0, -3.5, 0.0, 3.5, 7.0])[:, None, None]  # degrees that are tried
_FAINTEST, _ROUNDS = 0.6, 2  # least share of a colour's contrast; estimates of the contrast


class Seen(NamedTuple):
    """One patch: its shape, or None where none fits, colour, centre and area in pixels.

    `score` is the overlap with the shape that fits best, 0 to 1.
    """

    shape: str | None
    colour: str
    x: float
    y: float
    area: float
    score: float


Reading = tuple[Seen, ...]


def read_picture(image: UInt8[np.ndarray, "3 side side"]) -> Reading:
    """The patches of a picture, the surest first; raises ConfigError if it is none of a scene."""
    picture = open_picture(image)
    seen = [_seen(blob, image.shape[-1]) for blob in blobs(picture)]
    return tuple(sorted(seen, key=lambda each: -each.score))


def read_pictures(images: Iterable[UInt8[np.ndarray, "3 side side"]]) -> Iterator[Reading]:
    """The reading of each picture, one at a time."""
    return map(read_picture, images)


def _seen(blob: Blob, side: int) -> Seen:
    """The shape whose overlap with a blob is the largest, with equal area and centre."""
    total = blob.covered.sum()
    rows, columns = (np.arange(length) + 0.5 for length in blob.covered.shape)
    y = float(blob.covered.sum(axis=1) @ rows / total)
    x = float(blob.covered.sum(axis=0) @ columns / total)
    grid = (columns[None, None, :] - x, rows[None, :, None] - y)
    covered = blob.covered.clip(0.0, 1.0)
    scores = {shape: _overlap(shape, total, covered, grid, side) for shape in SHAPES}
    best = max(scores, key=lambda shape: scores[shape])
    shape = best if scores[best] >= KNOWN else None
    return Seen(shape, blob.colour, blob.left + x, blob.top + y, float(total), scores[best])


def _overlap(
    shape: str,
    total: float,
    covered: Float[np.ndarray, "h w"],
    grid: tuple[Float[np.ndarray, "1 1 w"], Float[np.ndarray, "1 h 1"]],
    side: int,
) -> float:
    """Intersection over union with the shape at the angle that fits best.

    The shape goes through the filter that the picture went through, and is as faint as the patch;
    what of it lies outside of the window counts as union.
    """
    upright, contrast = np.zeros((1, 1, 1)), 1.0
    if total <= 0:  # a patch of noise, darker around its core than the core is bright
        return 0.0
    for _ in range(_ROUNDS):
        drawn = _drawn(shape, total / contrast, upright, grid, side)
        if not drawn.any():  # the middle of such a patch may lie outside of its window
            return 0.0
        contrast = float((drawn * covered).sum() / (drawn**2).sum())
        contrast = min(max(contrast, _FAINTEST), 1.0)
    angles = _ANGLES if has_angle(shape) else upright
    drawn = contrast * _drawn(shape, total / contrast, angles, grid, side)
    inside = drawn.sum(axis=(1, 2))
    common = np.minimum(drawn, covered).sum(axis=(1, 2))
    union = inside + covered.sum() - common + np.maximum(total - inside, 0.0)
    return float((common / union).max())


def _drawn(
    shape: str,
    size: float,
    angles: Float[np.ndarray, "A 1 1"],
    grid: tuple[Float[np.ndarray, "1 1 w"], Float[np.ndarray, "1 h 1"]],
    side: int,
) -> Float[np.ndarray, "A h w"]:
    """A shape of this area in pixels at some angles, through the filter of the picture."""
    radius = float(np.sqrt(size / shape_area(shape)))
    return smooth(shape_coverage(shape, radius, angles, *grid), side)
