"""Posteriors that were stored: one formula, and no way back to images."""

import pytest
import torch

from diffmoe.codec import Codec, StoredPosterior
from diffmoe.errors import ConfigError

STORED = StoredPosterior(channels=2, scale=0.5, shift=0.25, identity="some autoencoder")


def numbers(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_latents_are_drawn_by_the_formula() -> None:
    moments, noise = numbers(3, 2, 2, 4, 4, seed=0), numbers(3, 2, 4, 4, seed=1)
    drawn, mean = STORED.encode(moments, noise), STORED.encode(moments, None)
    for image in range(3):
        for place in ((0, 1, 2), (1, 3, 0)):
            average, deviation = float(moments[image, 0][place]), float(moments[image, 1][place])
            expected = (average + deviation * float(noise[image][place]) - 0.25) * 0.5
            assert float(drawn[image][place]) == pytest.approx(expected, rel=1e-5)
            assert float(mean[image][place]) == pytest.approx((average - 0.25) * 0.5, rel=1e-5)


def test_stored_posteriors_are_a_codec_that_cannot_decode() -> None:
    assert isinstance(STORED, Codec)
    assert (STORED.channels, STORED.identity) == (2, "some autoencoder")
    with pytest.raises(ConfigError, match="cannot be decoded: the autoencoder is not among them"):
        STORED.decode(numbers(1, 2, 4, 4, seed=0))
