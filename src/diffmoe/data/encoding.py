"""What turns the images and captions of a source into what the model sees."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from diffmoe.captions import Captions
from diffmoe.codec import (
    Codec,
    TextEncoder,
    Words,
    build_codec,
    build_text_encoder,
    find_autoencoder,
    find_text_identity,
    quoted,
)
from diffmoe.config import (
    AutoencoderCodec,
    ClipEncoder,
    FeatureText,
    FolderData,
    RunConfig,
    T5Encoder,
    WordText,
)
from diffmoe.data.cache import CacheSource, open_caption_cache
from diffmoe.data.source import Source
from diffmoe.errors import ConfigError, DataError
from diffmoe.randomness import uniforms

__all__ = ["Texts", "captions_of", "some_captions", "source_codec", "source_texts"]

_KEPT = 1000  # captions drawn for a run to keep
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


@dataclass(frozen=True)
class Texts:
    """What makes conditions of captions."""

    identity: str  # names encoder, weights and tokens: equal ones give equal conditions
    encode: Callable[[Sequence[str]], Captions]
    ahead: bool  # it costs little, so that readers do it
    words: tuple[str, ...] = ()  # the vocabulary, where the network has its own table


def captions_of(source: Source) -> Sequence[str]:
    """The captions of the samples; raises ConfigError if they have none."""
    captions: Sequence[str] | None = getattr(source, "captions", None)
    if captions is None:
        raise ConfigError(
            f"the samples of {type(source).__name__} have no captions, and model.text reads some",
            remedy="set --data.path to images with captions, or train a preset of classes",
        )
    return captions


def source_texts(
    config: RunConfig, source: Source, device: torch.device | str, words: Sequence[str] = ()
) -> Texts | None:
    """What makes conditions of a source's captions; None where classes are the condition.

    `words` are the vocabulary of a run that goes on; without them it is that of the captions.
    Raises ConfigError if captions or the encoder are missing, the encoder or the cache does not fit
    the model, or the cache is of another encoder than the config's; DataError if no caption says
    anything, or one is too long where that is refused.
    """
    reads = config.model.text
    if not config.model.reads_text:
        return None
    captions = captions_of(source)
    if not any(caption.strip() for caption in captions):
        raise DataError(
            f"all {len(captions):,} captions are empty, and the model would learn from none",
            where=str(getattr(config.data, "path", "")),
            remedy="write captions, or train a preset of classes",
        )
    if isinstance(config.data, FolderData) and config.data.flip:
        _LOG.warning(
            "images are mirrored at random: what a caption calls left is right in half of them;"
            " set --data.no-flip"
        )
    if isinstance(reads, WordText) and not words:
        words = Words.of(captions, reads.words, reads.tokens).words
    cache = getattr(config.text, "cache", None)
    if cache is not None:
        return _cached(config, cache, captions)
    encoder = build_text_encoder(config.text, reads, device, words)
    assert encoder is not None  # the config's checks
    _tell_long(encoder, source, config)
    own = isinstance(reads, WordText)
    return Texts(encoder.identity, encoder.encode, own, tuple(words) if own else ())


def _tell_long(encoder: TextEncoder, source: Source, config: RunConfig) -> None:
    """Warn of captions that are cut, by a sample of them; where they are refused look at all."""
    refusing = getattr(config.text, "too_long", "cut") == "refuse"
    looked = captions_of(source) if refusing else some_captions(source)
    cut = [(caption, end) for caption in looked if (end := encoder.cut(caption))]
    if not cut:
        return
    caption, end = cut[0]
    told = f"{len(cut)} of {len(looked)} captions are longer than the {encoder.tokens} tokens that"
    verb = "would be" if refusing else "is"
    told += f" the model reads; of {quoted(caption)} the end {quoted(end)} {verb} cut"
    if refusing:
        raise DataError(told, remedy="shorten them, or set --text.too-long cut")
    _LOG.warning("%s", told)


def _cached(config: RunConfig, folder: Path, captions: Sequence[str]) -> Texts:
    """Captions that were encoded before, once each of them is known to be there."""
    reads = config.model.text
    assert isinstance(reads, FeatureText) and isinstance(config.text, T5Encoder | ClipEncoder)
    cache = open_caption_cache(folder.expanduser(), reads)
    cache.refuse_missing(captions)
    if cache.record.cut and getattr(config.text, "too_long", "cut") == "refuse":
        raise DataError(
            f"{cache.record.cut} captions of the cache are longer than its {cache.tokens} tokens",
            where=str(folder),
            remedy="shorten them and encode them again, or set --text.too-long cut",
        )
    own = find_text_identity(config.text, reads)
    if own is None:
        path = config.text.path
        _LOG.info("text.path %s is not at hand: the run notes the encoder of %s", path, folder)
    elif own != cache.identity:
        raise ConfigError(
            f"the captions' cache is of another encoder: {cache.identity} there, {own} here",
            where=str(folder),
            remedy="set --text.path to the encoder of the cache, or encode the captions again",
        )
    return Texts(cache.identity, cache.read, True)


def some_captions(source: Source) -> list[str]:
    """Some of a source's captions, of samples drawn at random, each once; none that is empty."""
    captions = captions_of(source)
    draws = uniforms(0, "captions", 0, _KEPT)[:, 0].double() * len(captions)
    return list(
        dict.fromkeys(captions[place] for place in draws.long().tolist() if captions[place].strip())
    )
