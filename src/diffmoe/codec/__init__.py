"""Images to what the model sees, and back."""

from diffmoe.codec.codec import Codec, Pixels, build_codec, to_uint8

__all__ = ["Codec", "Pixels", "build_codec", "to_uint8"]
