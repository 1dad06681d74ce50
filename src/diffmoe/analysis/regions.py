"""Capacity by what patches show: background, the edge of an object, its inside."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8

from diffmoe.analysis.findings import RegionCapacity, RegionPictures
from diffmoe.analysis.tallies.numbers import clustered_error, ratio
from diffmoe.analysis.tallies.tokens import TokenTally
from diffmoe.errors import ConfigError

__all__ = ["MOST_OBJECTS", "REGIONS", "patch_regions", "region_capacity", "region_pictures"]

MOST_OBJECTS = 6  # told apart; pictures with more count among those with so many
REGIONS = ("background", "edge of an object", "inside of an object")


def patch_regions(objects: Int[np.ndarray, "side side"], patches: int) -> Int[np.ndarray, "T"]:
    """The region of each patch of a picture with so many patches a side, row by row.

    `objects` has the number of the object at each pixel, 0 for background. A patch without a pixel
    of an object is background, one with nothing else is its inside, any other its edge. Raises
    ConfigError if patches are not whole pixels.
    """
    side, pixels = len(objects), len(objects) // patches
    if pixels * patches != side:
        raise ConfigError(
            f"{patches} patches a side do not divide a picture of {side} pixels",
            remedy="give the picture as it was drawn",
        )
    shown = (objects > 0).reshape(patches, pixels, patches, pixels).mean(axis=(1, 3))
    return np.where(shown == 0, 0, np.where(shown == 1, 2, 1)).ravel()


def region_capacity(
    tally: TokenTally, regions: Int[np.ndarray, "N T"], objects: Int[np.ndarray, "N"]
) -> RegionCapacity | None:
    """What the regions of the first N images took; None where no image was counted.

    `objects` are how many objects each picture shows, six standing for all that are more.
    """
    count = min(len(tally.counts), len(regions))
    regions, objects = regions[:count], np.minimum(objects[:count], MOST_OBJECTS)
    counts, evaluations = tally.counts[:count], tally.evaluations[:count]
    if not evaluations.any():
        return None
    inside = regions[:, None] == np.arange(len(REGIONS))[:, None]  # N R T
    pairs = np.einsum("nqt,nrt->nrq", counts, inside, dtype=np.int64)
    rows = tally.layers * inside.sum(axis=2)[:, :, None] * evaluations[:, None]
    seen = evaluations.any(axis=0)
    mean, error = _mean(pairs.sum(axis=2), rows.sum(axis=2))
    by_level, by_level_error = _mean(pairs[:, :, seen], rows[:, :, seen])
    numbers = np.unique(objects)
    alike = objects == numbers[:, None]  # n N
    whole = [_mean(pairs[own].sum(axis=(1, 2)), rows[own].sum(axis=(1, 2))) for own in alike]
    return RegionCapacity(
        names=list(REGIONS),
        patches=inside.sum(axis=(0, 2)),
        images=inside.any(axis=2).sum(axis=0),
        capacity=mean,
        error=error,
        level=ratio(tally.level, tally.evaluations.sum(axis=0))[seen],
        by_level=by_level,
        by_level_error=by_level_error,
        objects=numbers,
        objects_images=alike.sum(axis=1),
        by_objects=np.array([float(value) for value, _ in whole]),
        by_objects_error=np.array([float(value) for _, value in whole]),
        region_by_objects=np.stack(
            [_mean(pairs[own].sum(axis=2), rows[own].sum(axis=2))[0] for own in alike]
        ),
    )


def _mean(
    pairs: Int[np.ndarray, "N *rest"], rows: Int[np.ndarray, "N *rest"]
) -> tuple[Float[np.ndarray, "*rest"], Float[np.ndarray, "*rest"]]:
    """Pairs of a row on average over all images, and its standard error over them."""
    return ratio(pairs.sum(axis=0), rows.sum(axis=0)), clustered_error(pairs, rows)


def region_pictures(
    tally: TokenTally,
    chosen: Sequence[int],
    names: Sequence[str],
    images: UInt8[np.ndarray, "I C H W"],
    objects: Int[np.ndarray, "I H W"],
) -> RegionPictures:
    """Some of the images counted, by number, with their pictures and the objects of each pixel."""
    places = list(chosen)
    patches = round(tally.counts.shape[2] ** 0.5)
    rows = tally.layers * tally.evaluations[places].sum(axis=1)
    return RegionPictures(
        names=list(names),
        images=images,
        objects=objects,
        regions=np.stack([patch_regions(each, patches) for each in objects]),
        capacity=ratio(tally.counts[places].sum(axis=1), rows[:, None]),
    )
