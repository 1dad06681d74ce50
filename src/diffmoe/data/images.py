"""One image file to pixels: header checked first, every colour mode defined, ADM's centre crop.

- Only PNG, JPEG, WebP, BMP and GIF are decoded, whatever the file is called; of an animation, the
  first frame.
- The orientation in EXIF is applied, colour profiles are not.
- Transparency is laid on white, as most viewers show it; colours hidden below it do not appear.
- 16-bit grey is rounded to 8 bits; CMYK, palette and greyscale become the model's channels.
"""

import math
import warnings
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from diffmoe.errors import DataError

__all__ = ["MODES", "centre_crop", "read_image"]

MODES = {1: "L", 3: "RGB"}  # channels to the colour mode of Pillow
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
PIXEL_LIMIT = 64 * 2**20  # pixels decoded at most, 192 MiB in RGB


class _RefusedImage(Exception):
    """Says why an image that may be intact is not decoded."""


def read_image(path: Path, index: int, *, channels: int, side: int) -> Float[Tensor, "C H W"]:
    """The centre of image `index` of a set, scaled to `side`, in [-1, 1].

    Raises DataError naming the file and its index if it cannot be decoded or is too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged metadata harms no pixel
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = _decode(path, MODES[channels], side)
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise DataError(
            f"image {index} cannot be read ({_reason(error)})",
            where=str(path),
            remedy="replace or remove the file",
        ) from error
    pixels = torch.from_numpy(np.array(image, dtype=np.float32)).reshape(side, side, channels)
    return pixels.permute(2, 0, 1).contiguous().div_(127.5).sub_(1)


def _decode(path: Path, mode: str, side: int) -> Image.Image:
    if path.stat().st_size == 0:
        raise _RefusedImage("the file is empty")
    with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
        _check_size(image.size, side)
        image.load()
        return centre_crop(_convert(_upright(image), mode), side)


def _check_size(size: tuple[int, int], side: int) -> None:
    """Refuse an image that is large, or that becomes so when its short side is scaled up."""
    short, long = sorted(size)
    scaled = math.ceil(side * side * long / short)
    if short * long > PIXEL_LIMIT or scaled > PIXEL_LIMIT:
        raise _RefusedImage(f"{size[0]} x {size[1]} pixels are too many")


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF asks; an EXIF that cannot be read asks nothing."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # the pixels are decoded already: only metadata can be damaged here
        return image


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip it
        deep = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((deep + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def centre_crop(image: Image.Image, side: int) -> Image.Image:
    """The central square of an image, its short side scaled to `side` in ADM's way.

    The image is halved by box filtering while it is at least twice too large, then scaled with
    a bicubic filter. Reference statistics were made this way; another filter moves the FID.
    """
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _reason(error: Exception) -> str:
    """Why an image cannot be read, in a few words on one line."""
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(FORMATS)}"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"more than {PIXEL_LIMIT:,} pixels are too many"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
