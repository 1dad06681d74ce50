"""The codec that changes nothing, and the rounding of pixels."""

import torch

from diffmoe.codec import build_codec, to_uint8
from diffmoe.config import PixelCodec


def test_pixels_stay_what_they_are() -> None:
    codec, pixels = build_codec(PixelCodec(), "cpu"), torch.linspace(-1, 1, 48).reshape(1, 3, 4, 4)
    assert codec.encode(pixels, None) is pixels
    assert torch.equal(codec.decode(pixels), pixels)
    assert codec.decode(3 * pixels).abs().max() == 1
    assert (codec.channels, codec.identity) == (None, "pixels")


def test_every_8_bit_value_survives() -> None:
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(to_uint8(values.float() / 127.5 - 1), values)


def test_values_are_rounded_and_clamped() -> None:
    values = torch.tensor([-7.0, -1, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1, 1, 7]).reshape(1, 1, 1, 6)
    rounded = to_uint8(values)
    assert rounded.dtype == torch.uint8 and rounded.shape == values.shape
    assert rounded.flatten().tolist() == [0, 0, 0, 1, 255, 255]
