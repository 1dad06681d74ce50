"""The codec that turns what a source holds into what the model sees."""

import logging

import torch

from diffmoe.codec import Codec, build_codec, find_autoencoder
from diffmoe.config import AutoencoderCodec, RunConfig
from diffmoe.data.cache import CacheSource
from diffmoe.data.source import Source
from diffmoe.errors import ConfigError

__all__ = ["source_codec"]

_LOG = logging.getLogger(__name__)


def source_codec(config: RunConfig, source: Source, device: torch.device | str) -> Codec | None:
    """The codec of a config, or the source's own; None where samples are encoded already.

    Raises ConfigError if the config's autoencoder is not found, does not fit, or is not the one
    that made the cache which is the source.
    """
    if source.encoded:
        return None
    if isinstance(source, CacheSource):
        _refuse_another(config, source)
        return source.codec
    return build_codec(config.codec, device)


def _refuse_another(config: RunConfig, source: CacheSource) -> None:
    """Raise ConfigError if the config's autoencoder is at hand and did not make the cache."""
    assert isinstance(config.codec, AutoencoderCodec)  # or the cache would not have been opened
    path, made = config.codec.path, source.codec.identity
    found = find_autoencoder(config.codec)
    if found is None:
        _LOG.info("codec.path %s is not at hand: the run notes that of its cache, %s", path, made)
    elif found.identity != made:
        raise ConfigError(
            f"codec.path {path} is not the autoencoder of the cache: {found.identity}, not {made}",
            where=str(getattr(config.data, "path", "")),
            remedy=f"set --codec.path to it (it was read from {source.record.autoencoder.path}), or"
            " prepare another cache",
        )
