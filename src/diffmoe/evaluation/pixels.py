"""Images by their pixels alone: grain and contrast, which a network of classes looks past."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffmoe.evaluation.extraction import PART, part_of, read_images
from diffmoe.evaluation.frechet import principal_components
from diffmoe.evaluation.moments import Moments
from diffmoe.evaluation.sets import ImageSet, some

__all__ = ["PIXEL_COMPONENTS", "PixelComponents"]

PIXEL_COMPONENTS = 64
_FITTED_ON = 4000  # images: the directions of more are the same


@dataclass(frozen=True)
class PixelComponents:
    """The directions in which the pixels of a set vary most."""

    centre: Float[Tensor, "D"]
    directions: Float[Tensor, "D K"]

    @classmethod
    def of(cls, images: ImageSet) -> "PixelComponents":
        """The components of a set of images."""
        flat = _flat(images, some(len(images), _FITTED_ON))
        centre, directions = principal_components(flat, PIXEL_COMPONENTS)
        return cls(centre, directions)

    def moments(self, images: ImageSet, count: int) -> Moments:
        """Mean and covariance of the first images along the components, read part by part."""
        found = Moments.none(self.directions.shape[1])
        for number in range(-(-count // PART)):
            flat = _flat(images, part_of(number, count))
            found = found.update((flat.double() - self.centre) @ self.directions)
        return found


def _flat(images: ImageSet, numbers: "list[int] | range") -> Float[Tensor, "n D"]:
    pixels, _ = read_images(images, numbers)
    return (pixels.flatten(1).to(torch.float32) / 127.5) - 1
