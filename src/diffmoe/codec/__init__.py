"""Images to what the model sees, and back."""

from diffmoe.codec.autoencoder import (
    ENCODED_AT_ONCE,
    Autoencoder,
    find_autoencoder,
    open_autoencoder,
)
from diffmoe.codec.codec import Codec, Pixels, build_codec, to_uint8
from diffmoe.codec.posterior import StoredPosterior

__all__ = [
    "ENCODED_AT_ONCE",
    "Autoencoder",
    "Codec",
    "Pixels",
    "StoredPosterior",
    "build_codec",
    "find_autoencoder",
    "open_autoencoder",
    "to_uint8",
]
