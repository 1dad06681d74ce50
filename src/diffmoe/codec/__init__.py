"""Images to what the model sees, and back; captions to what it reads."""

from diffmoe.codec.arithmetic import blocks, exact_arithmetic
from diffmoe.codec.autoencoder import (
    ENCODED_AT_ONCE,
    Autoencoder,
    find_autoencoder,
    open_autoencoder,
)
from diffmoe.codec.codec import Codec, Pixels, build_codec, to_uint8
from diffmoe.codec.posterior import StoredPosterior
from diffmoe.codec.pretrained import (
    CONFIG,
    WEIGHTS,
    Wanted,
    fingerprint_of,
    load_model,
    load_tokenizer,
    locate,
)
from diffmoe.codec.text import (
    OutsideEncoder,
    TextEncoder,
    Words,
    build_text_encoder,
    find_text_encoder,
    find_text_identity,
    open_text_encoder,
    quoted,
    read_prompts,
    utf8,
)

__all__ = [
    "CONFIG",
    "ENCODED_AT_ONCE",
    "WEIGHTS",
    "Autoencoder",
    "Codec",
    "OutsideEncoder",
    "Pixels",
    "StoredPosterior",
    "TextEncoder",
    "Wanted",
    "Words",
    "blocks",
    "build_codec",
    "build_text_encoder",
    "exact_arithmetic",
    "find_autoencoder",
    "find_text_encoder",
    "find_text_identity",
    "fingerprint_of",
    "load_model",
    "load_tokenizer",
    "locate",
    "open_autoencoder",
    "open_text_encoder",
    "quoted",
    "read_prompts",
    "to_uint8",
    "utf8",
]
