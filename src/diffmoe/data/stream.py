"""Batches of numbered samples: what sample n is depends on (seed, n) and the data alone.

Sample n is entry n % N of the permutation of epoch n // N; its mirroring and its encoding noise
are rows n of their streams. The size of a micro-batch, the number of processes that read and the
point where a run was resumed change none of it. A sample that is damaged is an error or, where the
config says so, replaced by another one that depends on (seed, n) as well; it keeps its number.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from diffmoe.captions import Captions
from diffmoe.codec import Codec
from diffmoe.config import AutoencoderCodec, FolderData, RunConfig
from diffmoe.data.encoding import Texts, captions_of
from diffmoe.data.labels import refuse_unfit
from diffmoe.data.loader import read_ahead
from diffmoe.data.replacement import Reader, Replaced
from diffmoe.data.source import Source
from diffmoe.errors import ConfigError, DiffMoEError
from diffmoe.randomness import normals, permutation, uniforms

__all__ = ["Batch", "stream"]


class Batch(NamedTuple):
    """Samples `first .. first + M` of the endless stream of samples."""

    x: Float[Tensor, "M C H W"]  # what the model sees, float32
    label: Int[Tensor, " M"]
    first: int
    # Places in the data that the samples were read from; of a tuple, nobody needs the method.
    index: tuple[int, ...] = ()  # type: ignore[assignment]
    replaced: tuple[Replaced, ...] = ()  # the damaged samples, which others stand for here
    captions: Captions | None = None  # the condition, where it is not the label


class _Read(NamedTuple):
    """A batch as it is read: images or posteriors may still have to be encoded, with `noise`."""

    x: Tensor
    label: Tensor
    first: int
    noise: Tensor | None
    places: list[int]
    replaced: list[Replaced]
    captions: Captions | list[str] | None  # as the network reads them, or still to be encoded


def stream(
    config: RunConfig,
    source: Source,
    codec: Codec | None,
    texts: Texts | None = None,
    *,
    first: int,
    device: torch.device | str,
    rank: int = 0,
    processes: int = 1,
) -> Iterator[Batch]:
    """Endless micro-batches on a device, beginning with sample number `first`.

    Of several processes this one takes every `processes`-th of them, from the `rank`-th on.

    Samples that are encoded already need no `codec`; `texts` makes conditions of captions. Raises
    ConfigError at once if the codec does not fit the model, DataError if labels do not fit the
    samples and classes. A sample that can neither be read nor replaced raises its error when its
    batch is due.
    """
    classes = config.model.num_classes or len(source.class_names)
    refuse_unfit(source.labels, len(source), classes, type(source).__name__)
    samples = _Samples(config, source, texts if texts is not None and texts.ahead else None)
    encoder = None if source.encoded else codec
    if encoder is not None and encoder.channels not in (None, config.model.channels):
        raise ConfigError(
            f"model.channels {config.model.channels} is not that of the codec, {encoder.channels}",
            remedy=f"use {encoder.channels} or another codec.path",
        )
    micro = config.micro_batch
    firsts = itertools.count(first + rank * micro, processes * micro)
    device = torch.device(device)
    if samples.in_memory:
        return _deliver(map(samples.__getitem__, firsts), encoder, texts, device)
    pin = device.type == "cuda"
    reads = read_ahead(samples, firsts, workers=config.machine.workers, pin=pin)
    return _deliver(reads, encoder, texts, device)


def _deliver(
    reads: Iterable[_Read | DiffMoEError],
    encoder: Codec | None,
    texts: Texts | None,
    device: torch.device,
) -> Iterator[Batch]:
    for read in reads:
        if isinstance(read, DiffMoEError):
            raise read
        x, label = (part.to(device, non_blocking=True) for part in (read.x, read.label))
        if encoder is not None:
            noise = None if read.noise is None else read.noise.to(device, non_blocking=True)
            x = encoder.encode(x, noise)
        index, replaced = tuple(read.places), tuple(Replaced(*one) for one in read.replaced)
        captions = _encoded(read.captions, texts)
        told = None if captions is None else captions.to(device)
        yield Batch(x, label, read.first, index, replaced, told)


def _encoded(captions: Captions | list[str] | None, texts: Texts | None) -> Captions | None:
    """The captions as the network reads them; a loader may have made a tuple of the record."""
    if captions is None or texts is None:
        return None
    return texts.encode(captions) if isinstance(captions, list) else captions


class _Samples(Dataset[_Read | DiffMoEError]):
    """Micro-batches by the number of their first sample."""

    def __init__(self, config: RunConfig, source: Source, texts: Texts | None) -> None:
        self._texts, self._captions = (
            texts,
            captions_of(source) if config.model.reads_text else None,
        )
        self._source, self._seed, self._count = source, config.training.seed, config.micro_batch
        self._reader = Reader(config, source)
        self._flip = isinstance(config.data, FolderData) and config.data.flip
        self._order = _Order(self._seed, len(source))
        draws = not source.encoded and isinstance(config.codec, AutoencoderCodec)
        model = config.model
        self._noise = (model.channels, model.input_size, model.input_size) if draws else None

    @property
    def in_memory(self) -> bool:
        """Whether reading costs nothing worth a loader."""
        return self._reader.in_memory

    def __getitem__(self, first: int) -> _Read | DiffMoEError:
        """The micro-batch, or the error that its samples meet.

        The error is handed over, not raised: a loader would wrap it in its worker's traceback.
        """
        index = self._order.indices(first, self._count)
        try:
            x, places, replaced = self._reader.read(first, index, self._flips(first))
        except DiffMoEError as error:
            return error
        label, noise = self._source.labels[places], self._draw_noise(first)
        there = places.tolist()
        return _Read(x, label, first, noise, there, replaced, self._told(there))

    def _told(self, places: list[int]) -> Captions | list[str] | None:
        """The captions of samples, encoded here if that costs little."""
        if self._captions is None:
            return None
        found = [self._captions[place] for place in places]
        return found if self._texts is None else self._texts.encode(found)

    def _flips(self, first: int) -> list[bool]:
        if not self._flip:
            return [False] * self._count
        below: list[bool] = (uniforms(self._seed, "flip", first, self._count)[:, 0] < 0.5).tolist()
        return below

    def _draw_noise(self, first: int) -> Tensor | None:
        if self._noise is None:
            return None
        return normals(self._seed, "encode", first, self._count, self._noise)


class _Order:
    """The place in the data of each sample number; every epoch has its own permutation."""

    def __init__(self, seed: int, length: int) -> None:
        self._seed, self._length = seed, length
        self._newest: tuple[int, np.ndarray] | None = None

    def indices(self, first: int, count: int) -> Int[Tensor, " count"]:
        """Indices of samples `first .. first + count`."""
        epochs, places = np.divmod(np.arange(first, first + count), self._length)
        parts = [
            self._permutation(epoch)[places[epochs == epoch]]
            for epoch in range(int(epochs[0]), int(epochs[-1]) + 1)
        ]
        return torch.from_numpy(np.concatenate(parts))

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._newest is None or self._newest[0] != epoch:
            self._newest = epoch, permutation(self._seed, f"order/{epoch}", self._length)
        return self._newest[1]
