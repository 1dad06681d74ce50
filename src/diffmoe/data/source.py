"""What a set of samples offers, and the set that a config names, checked against its model."""

import logging
from pathlib import Path
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from diffmoe.config import AutoencoderCodec, DigitsData, FolderData, RunConfig, ScenesData
from diffmoe.data.cache import CACHE, open_cache, refuse_unfinished
from diffmoe.data.digits import DigitsSource
from diffmoe.data.image_source import ImageSource
from diffmoe.data.latents import LATENTS, LatentSource
from diffmoe.data.pictures import open_pictures
from diffmoe.data.scenes import ScenesSource
from diffmoe.errors import ConfigError, DataError

__all__ = ["Source", "open_source"]

_LOG = logging.getLogger(__name__)


@runtime_checkable
class Source(Protocol):
    """Labelled samples, numbered from 0.

    A source that also has `images`, all of its samples as one tensor (N, C, H, W), is read from
    memory without a loader and is never mirrored. A latent cache holds posteriors in the place of
    images, for a codec of its own (`source_codec`).
    """

    labels: Int[Tensor, " N"]
    class_names: tuple[str, ...]
    shape: tuple[int, int, int]  # (C, H, W) of a sample
    encoded: bool  # samples are what the model sees; else images in [-1, 1], which a codec encodes

    def __len__(self) -> int: ...

    @property
    def fingerprint(self) -> str:
        """Names the samples wherever they lie: equal ones stand for the same images and labels."""

    def load(self, index: int, flip: bool) -> Float[Tensor, "C H W"]:
        """One sample, mirrored if `flip`; raises DataError naming its file and index."""


def open_source(config: RunConfig) -> Source:
    """The samples a config names.

    Raises ConfigError if they are not there or do not fit the model, DataError if they cannot be
    read, are damaged or are no samples.
    """
    try:
        source = _open(config)
    except OSError as error:
        raise DataError(
            f"data.path cannot be read ({error.strerror or error})",
            where=str(error.filename or getattr(config.data, "path", "")),
            remedy="check its permissions, or set another --data.path",
        ) from error
    if not config.model.reads_text:
        _check_classes(source, config)
    _check_shape(source, config)
    return source


def _open(config: RunConfig) -> Source:
    if isinstance(config.data, DigitsData):
        return DigitsSource()
    if isinstance(config.data, ScenesData):
        drawn = config.data
        return ScenesSource(drawn.seed, count=drawn.count, side=config.image_size)
    folder, reads = _folder(config.data), config.model.reads_text
    if _is_named(folder / CACHE):
        return open_cache(folder, config)
    refuse_unfinished(folder)
    if _is_named(folder / LATENTS):
        return LatentSource(
            folder,
            classes=config.model.num_classes,
            flip=config.data.flip,
            captioned=reads,
            caption_field=config.data.caption_field,
        )
    field = config.data.caption_field
    pictures = open_pictures(folder, captioned=reads, caption_field=field, subject="data.path")
    return ImageSource(pictures, channels=_image_channels(config), side=config.image_size)


def _is_named(path: Path) -> bool:
    """Whether a name is there, be it a link that leads nowhere: what reads it says so."""
    return path.exists() or path.is_symlink()


def _folder(data: FolderData) -> Path:
    """Where the data lie; it may be a file as well."""
    if data.path is None:
        raise ConfigError(
            "data.path is not set",
            remedy="set --data.path to a folder or archive of images, or to a folder of latents",
        )
    return Path(data.path).expanduser()  # a program may have given words


def _image_channels(config: RunConfig) -> int:
    """Channels of an image: an autoencoder takes colour, the model its own."""
    return 3 if isinstance(config.codec, AutoencoderCodec) else config.model.channels


def _check_classes(source: Source, config: RunConfig) -> None:
    """Raise ConfigError if the model knows fewer classes than the data have; warn if more."""
    classes, found = config.model.num_classes, len(source.class_names)
    used = len(source.labels.unique())
    if found > classes:
        raise ConfigError(
            f"model.num_classes {classes} is less than the {found} classes of the data",
            where=str(getattr(config.data, "path", "")),
            remedy=f"set --model.num-classes {found}",
        )
    if used < classes:
        _LOG.warning(
            "the data have samples of %d classes, fewer than model.num_classes %d: the others"
            " stay untrained",
            *(used, classes),
        )


def _check_shape(source: Source, config: RunConfig) -> None:
    """Raise ConfigError unless samples have the shape that the model or its codec takes."""
    if source.encoded:
        taker, side, channels = "the model", config.model.input_size, config.model.channels
    else:
        taker, side, channels = "the codec", config.image_size, _image_channels(config)
    if tuple(source.shape) != (channels, side, side):
        raise ConfigError(
            f"samples of shape {tuple(source.shape)} do not fit {taker}, which takes"
            f" {(channels, side, side)}",
            where=str(getattr(config.data, "path", "")),
            remedy="set model.input_size, model.channels and the codec as the data are",
        )
