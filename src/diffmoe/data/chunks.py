"""Images of a source in the order they are numbered, a few at a time."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from diffmoe.data.loader import read_ahead
from diffmoe.data.source import Source
from diffmoe.errors import DataError, DiffMoEError

__all__ = ["Chunk", "ChunkReader"]


class Chunk(NamedTuple):
    """Images of a source, and those among them that could not be read."""

    images: Float[Tensor, "B C H W"]
    indices: list[int]
    damaged: list[tuple[int, DataError]]


class ChunkReader:
    """Reads runs of images, by processes that live as long as it does if there are any."""

    def __init__(
        self, source: Source, size: int, *, workers: int, pin: bool, skip_damaged: bool
    ) -> None:
        self._size, self._ranges = size, list[range]()
        items = _Chunks(source, skip_damaged)
        self._loader = read_ahead(items, self._ranges, workers=workers, pin=pin, keep=True)

    def read(self, images: range) -> Iterator[Chunk]:
        """Chunks of `size` images, counted from the first; raises DataError naming a file.

        Damaged images are left out where that was asked for.
        """
        self._ranges[:] = [
            images[first : first + self._size] for first in range(0, len(images), self._size)
        ]
        for chunk in self._loader:
            if isinstance(chunk, DiffMoEError):
                raise chunk
            yield chunk


class _Chunks(Dataset[Chunk | DiffMoEError]):
    """Chunks by the range of their images."""

    def __init__(self, source: Source, skip_damaged: bool) -> None:
        self._source, self._skip = source, skip_damaged

    def __getitem__(self, wanted: range) -> Chunk | DiffMoEError:
        """The chunk, or the error that its images meet: a loader would wrap it in a traceback."""
        images, indices, damaged = [torch.empty(0, *self._source.shape)], list[int](), []
        for index in wanted:
            try:
                images.append(self._source.load(index, flip=False)[None])
                indices.append(index)
            except DataError as error:
                if not self._skip:
                    return error
                damaged.append((index, error))
            except DiffMoEError as error:
                return error
        return Chunk(torch.cat(images), indices, damaged)
