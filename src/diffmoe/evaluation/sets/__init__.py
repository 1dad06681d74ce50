"""Sets of images to evaluate, and what is known of a set to evaluate against."""

from diffmoe.evaluation.sets.images import (
    ImageSet,
    PictureSet,
    SomeImages,
    SourceSet,
    images_of,
    open_images,
    some,
)
from diffmoe.evaluation.sets.npz import NpzSet, npz_arrays
from diffmoe.evaluation.sets.record import record_of
from diffmoe.evaluation.sets.reference import (
    ADM_IMAGES,
    Reference,
    open_reference,
    write_statistics,
)

__all__ = [
    "ADM_IMAGES",
    "ImageSet",
    "NpzSet",
    "PictureSet",
    "Reference",
    "SomeImages",
    "SourceSet",
    "images_of",
    "npz_arrays",
    "open_images",
    "open_reference",
    "record_of",
    "some",
    "write_statistics",
]
