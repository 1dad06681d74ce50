"""What the patches of drawn scenes show, read by the judge, and what they took."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int, UInt8

from diffmoe.analysis import (
    RegionCapacity,
    RegionPictures,
    patch_regions,
    region_capacity,
    region_pictures,
)
from diffmoe.evaluation import object_pixels
from diffmoe.experiments.analysis.draw import Drawn
from diffmoe.experiments.draw import Drawing
from diffmoe.experiments.turns import Turns

__all__ = ["regions_of"]

_AT_ONCE = 32  # pictures decoded
_SHOWN = 4  # pictures with other numbers of objects


def regions_of(
    drawing: Drawing, drawn: Drawn, turns: Turns
) -> tuple[RegionCapacity | None, RegionPictures | None]:
    """Capacity by what patches show, and a few pictures of it; None of what are no scenes."""
    tally, model = drawn.trace.tokens, drawing.run.config.model
    if not turns.scenes or not drawn.trace.capacity.rows.any():
        return None, None
    patches = model.input_size // model.patch_size
    regions, objects = [], []
    for picture in _pictures(drawing, drawn):
        found = object_pixels(picture)
        regions.append(patch_regions(found, patches))
        objects.append(len(np.unique(found[found > 0])))
    numbers = np.array(objects)
    chosen = _spread(numbers)
    images = drawn.pictures(drawing, chosen)
    shown = region_pictures(
        tally,
        chosen,
        [turns.prompts[drawing.labels[image]] for image in chosen],
        images,
        np.stack([object_pixels(image) for image in images]),
    )
    return region_capacity(tally, np.stack(regions), numbers), shown


def _pictures(drawing: Drawing, drawn: Drawn) -> Iterator[UInt8[np.ndarray, "3 side side"]]:
    """The pictures whose patches were counted and that are kept, one at a time."""
    count = min(len(drawn.latents), len(drawn.trace.tokens.counts))
    for first in range(0, count, _AT_ONCE):
        yield from drawn.pictures(drawing, range(first, min(first + _AT_ONCE, count)))


def _spread(objects: Int[np.ndarray, "N"]) -> list[int]:
    """The first picture with each number of objects, from one on where there are enough."""
    numbers, first = np.unique(objects, return_index=True)
    some = first[numbers > 0] if (numbers > 0).any() else first
    return [int(image) for image in some[:_SHOWN]]
