"""Samples read and checked one by one, a damaged one replaced where that is asked for.

What takes the place of sample n is a function of (seed, n, attempt) and the data alone, so neither
the micro-batch, the processes that read nor a resume changes it, and no other sample moves.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffmoe.config import FolderData, RunConfig
from diffmoe.data.cache import CacheSource
from diffmoe.data.digits import DigitsSource
from diffmoe.data.image_source import ImageSource
from diffmoe.data.latents import LatentSource
from diffmoe.data.scenes import ScenesSource
from diffmoe.data.source import Source
from diffmoe.errors import DataError
from diffmoe.randomness import uniforms

__all__ = ["ATTEMPTS", "Reader", "Replaced", "Samples"]

ATTEMPTS = 16  # others that are tried; at the largest share allowed in practice one is enough
_VOUCHED = (
    CacheSource,
    DigitsSource,
    ImageSource,
    LatentSource,
    ScenesSource,
)  # `load` refuses what is no number


class Replaced(NamedTuple):
    """A damaged sample, and which other was taken."""

    sample: int  # its number in the stream
    place: int  # its place in the data
    used: int  # the place that was read for it
    reason: str  # the sentence that names its file


class Samples(NamedTuple):
    """Samples, the places in the data that they were read from, and which were replaced."""

    x: Tensor
    places: Int[Tensor, " M"]
    replaced: list[Replaced]


class Reader:
    """Reads the samples of a source; none that holds NaN or infinity gets through."""

    def __init__(self, config: RunConfig, source: Source) -> None:
        data = config.data
        replaces = isinstance(data, FolderData) and data.on_bad_sample == "replace"
        self._source, self._seed = source, config.training.seed
        self._others = ATTEMPTS if replaces else 0
        self._images: Tensor | None = getattr(source, "images", None)
        self._vouched = type(source) in _VOUCHED  # a class derived from them may load otherwise
        self._shape = None if isinstance(source, CacheSource) else tuple(source.shape)

    @property
    def in_memory(self) -> bool:
        """Whether reading costs nothing worth a loader."""
        return self._images is not None

    def read(self, first: int, index: Int[Tensor, " M"], flips: list[bool]) -> Samples:
        """Samples `first .. first + M`, which lie at `index`; raises DataError naming a file."""
        if self._images is not None:
            x = self._images[index]
            if self._vouched or x.isfinite().all():
                return Samples(x, index, [])
        rows, places, replaced = list[Tensor](), list[int](), list[Replaced]()
        for number, (place, flip) in enumerate(zip(index.tolist(), flips, strict=True), first):
            x, used, damaged = self._sound(number, place, flip)
            rows.append(x)
            places.append(used)
            replaced += (Replaced(number, bad, used, str(error)) for bad, error in damaged.items())
        return Samples(torch.stack(rows), torch.tensor(places), replaced)

    def _sound(
        self, number: int, place: int, flip: bool
    ) -> tuple[Float[Tensor, "C H W"], int, dict[int, DataError]]:
        """A sample, its place, and the damaged ones that were tried before it."""
        damaged: dict[int, DataError] = {}
        for tried in (place, *(self._other(number, attempt) for attempt in range(self._others))):
            if tried not in damaged:
                try:
                    return self._load(tried, flip), tried, damaged
                except DataError as error:
                    damaged[tried] = error
        raise self._given_up(damaged[place])

    def _other(self, number: int, attempt: int) -> int:
        draw = float(uniforms(self._seed, f"replace/{attempt}", number, 1))
        return int(draw * len(self._source))

    def _given_up(self, error: DataError) -> DataError:
        if not self._others:
            return error
        return DataError(
            f"none of {self._others} samples drawn in the place of a damaged one can be read"
            " either",
            where=str(error),
        )

    def _load(self, place: int, flip: bool) -> Float[Tensor, "C H W"]:
        stored = self._images
        x = self._source.load(place, flip) if stored is None else stored[place]
        if not self._vouched:
            self._refuse_unusable(x, place)
        return x

    def _refuse_unusable(self, x: Tensor, place: int) -> None:
        if self._shape not in (None, tuple(x.shape)):
            what = f"has the shape {tuple(x.shape)}, not {self._shape}"
        elif not x.isfinite().all():
            what = "holds NaN or infinity"
        else:
            return
        raise DataError(
            f"sample {place} {what}",
            where=type(self._source).__name__,
            remedy="correct what this source gives",
        )
