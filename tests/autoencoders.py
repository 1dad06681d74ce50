"""An autoencoder small enough to encode in a test."""

import warnings
from typing import Any

import torch

from diffmoe.config import AutoencoderCodec


def autoencoder(seed: int = 0, **changes: Any) -> Any:
    """A random AutoencoderKL of factor 2 with 5 latent channels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import AutoencoderKL

    options = {
        "block_out_channels": (4, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": 5,
        "norm_num_groups": 2,
        "scaling_factor": 0.5,
        "shift_factor": 0.25,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoencoderKL(**(options | changes)).eval()


def codec_config(path: object) -> AutoencoderCodec:
    """The codec of that autoencoder."""
    return AutoencoderCodec(path=str(path), factor=2, scale=0.5, shift=0.25)
