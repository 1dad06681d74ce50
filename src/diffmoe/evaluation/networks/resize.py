"""Images as networks on a 224-pixel grid were trained to see them, by Pillow's bicubic rule."""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

__all__ = ["SIDE", "normalized", "resize_and_crop", "resize_whole"]

SIDE = 224


def resize_whole(images: UInt8[Tensor, "B 3 H W"]) -> UInt8[Tensor, "B 3 224 224"]:
    """The whole image, whatever its shape, resized to a square; Pillow rounds to 8 bits."""
    return torch.stack([_pixels(_resized(image, SIDE, SIDE)) for image in images])


def resize_and_crop(images: UInt8[Tensor, "B 3 H W"]) -> UInt8[Tensor, "B 3 224 224"]:
    """The middle square of the image, its short side resized to 224 pixels."""
    height, width = images.shape[2:]
    short = min(height, width)
    tall, wide = SIDE * height // short, SIDE * width // short
    top, left = round((tall - SIDE) / 2), round((wide - SIDE) / 2)
    resized = torch.stack([_pixels(_resized(image, tall, wide)) for image in images])
    return resized[:, :, top : top + SIDE, left : left + SIDE]


def normalized(
    images: UInt8[Tensor, "B 3 H W"],
    mean: tuple[float, float, float],
    deviation: tuple[float, float, float],
) -> Float[Tensor, "B 3 H W"]:
    """(x / 255 - mean) / deviation of each channel, float32."""
    centre, scale = (
        torch.tensor(values, device=images.device)[:, None, None] for values in (mean, deviation)
    )
    return (images.float() / 255 - centre) / scale


def _resized(image: UInt8[Tensor, "3 H W"], height: int, width: int) -> Image.Image:
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def _pixels(picture: Image.Image) -> UInt8[Tensor, "3 H W"]:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)
