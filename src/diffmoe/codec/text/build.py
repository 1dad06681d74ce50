"""The text encoder that a config names."""

import json
from collections.abc import Sequence

import torch

from diffmoe.codec.pretrained import CONFIG, folder_of, locate
from diffmoe.codec.text.outside import (
    ENCODERS,
    EncoderKind,
    OutsideEncoder,
    identity_of,
    load_outside,
)
from diffmoe.codec.text.prompts import TextEncoder
from diffmoe.codec.text.words import Words
from diffmoe.config import (
    ClipEncoder,
    EncoderConfig,
    FeatureText,
    T5Encoder,
    TextConfig,
    WordEncoder,
    WordText,
)
from diffmoe.errors import ConfigError

__all__ = ["build_text_encoder", "find_text_encoder", "find_text_identity", "open_text_encoder"]


def build_text_encoder(
    config: EncoderConfig,
    reads: TextConfig,
    device: torch.device | str,
    words: Sequence[str] | None = None,
) -> TextEncoder | None:
    """The encoder of a config for a model that `reads` what it gives; None where text is not read.

    `words` are those of the run's vocabulary, which an encoder of words needs. Raises ConfigError
    if the encoder is not found or does not fit the model, StorageError if its files are damaged.
    """
    if isinstance(config, T5Encoder | ClipEncoder) and isinstance(reads, FeatureText):
        return _outside(config, reads, device)
    if isinstance(config, WordEncoder) and isinstance(reads, WordText):
        return _words(words, reads)
    return None


def find_text_encoder(
    config: EncoderConfig,
    reads: TextConfig,
    device: torch.device | str = "cpu",
    words: Sequence[str] | None = None,
) -> TextEncoder | None:
    """The same, None also where the encoder is not at hand."""
    if isinstance(config, T5Encoder | ClipEncoder) and not folder_of(config.path).is_dir():
        return None
    if isinstance(config, WordEncoder) and words is None:
        return None
    return build_text_encoder(config, reads, device, words)


def find_text_identity(config: T5Encoder | ClipEncoder, reads: FeatureText) -> str | None:
    """The identity of an outside encoder, which is not loaded for it; None if it is not at hand."""
    if not folder_of(config.path).is_dir():
        return None
    kind = _kind(config)
    return identity_of(kind, locate(config.path, ENCODERS[kind]), reads.tokens)


def open_text_encoder(place: str, tokens: int, device: torch.device | str) -> OutsideEncoder:
    """The outside encoder in a folder or of a hub name, of the kind that its own config says."""
    return load_outside(_kind_of(place), place, tokens, device)


def _outside(
    config: T5Encoder | ClipEncoder, reads: FeatureText, device: torch.device | str
) -> OutsideEncoder:
    encoder = load_outside(_kind(config), config.path, reads.tokens, device)
    if encoder.width != reads.width:
        raise ConfigError(
            f"model.text.width {reads.width} is not that of the encoder's vectors, {encoder.width}",
            where=str(encoder.folder.absolute()),
            remedy=f"set --model.text.width {encoder.width}, or --text.path to another encoder",
        )
    return encoder


def _kind(config: T5Encoder | ClipEncoder) -> EncoderKind:
    return "t5" if isinstance(config, T5Encoder) else "clip"


def _words(words: Sequence[str] | None, reads: WordText) -> Words:
    if words is None:
        raise ConfigError(
            "the words that the model knows are not given",
            remedy="give those of words.txt in the run folder",
        )
    known = Words(words, reads.tokens)
    if known.rows > reads.words:
        raise ConfigError(
            f"{len(words)} words need {known.rows} rows, and model.text.words is {reads.words}",
            remedy=f"set --model.text.words {known.rows}, or give the words of this run",
        )
    return known


def _kind_of(place: str) -> EncoderKind:
    """The kind of an encoder by its config; where that cannot be read, what its name suggests."""
    try:
        found = json.loads((folder_of(place) / CONFIG).read_text("utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError, RecursionError):
        found = "clip" if "clip" in place.lower() else "t5"
    return "clip" if found in ENCODERS["clip"].kinds else "t5"
