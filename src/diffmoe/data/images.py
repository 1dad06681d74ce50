"""One encoded image to pixels: header checked first, every colour mode defined, ADM's crop.

- Only PNG, JPEG, WebP, BMP and GIF are decoded, whatever the file is called; of an animation, the
  first frame.
- The orientation in EXIF is applied (ADM's code does not apply it), colour profiles are not.
- Transparency is laid on white, as most viewers show it; colours hidden below it do not appear.
- 16-bit grey is rounded to 8 bits; CMYK, palette and greyscale become the model's channels.
"""

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from diffmoe.errors import DataError

__all__ = ["MODES", "Notes", "centre_crop", "decode_exact", "decode_image", "unreadable"]

MODES = {1: "L", 3: "RGB"}  # channels to the colour mode of Pillow
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
PIXEL_LIMIT = 64 * 2**20  # pixels decoded at most, 192 MiB in RGB
_DEEP = ";16"  # in what Pillow calls the storage of 16-bit values, "RGB;16B" say


class _RefusedImage(Exception):
    """Says why an image that may be intact is not decoded."""


@dataclass(frozen=True)
class Notes:
    """What an image was before it became 8-bit RGB."""

    grey: bool  # it had one channel of colour
    alpha: bool  # it had transparency, laid on white now
    converted: bool  # it was 16-bit, CMYK, bilevel or had a palette


def decode_image(
    content: bytes, name: str, index: int, *, channels: int, side: int
) -> Float[Tensor, "C H W"]:
    """The centre of image `index` of a set, scaled to `side`, in [-1, 1].

    Raises DataError naming the file and its index if it cannot be decoded or is too large.
    """
    with _opened(content, name, index) as image:
        _check_scaled(image.size, side)
        image.load()
        small = centre_crop(_convert(_upright(image), MODES[channels]), side)
    pixels = torch.from_numpy(np.array(small, dtype=np.float32)).reshape(side, side, channels)
    return pixels.permute(2, 0, 1).contiguous().div_(127.5).sub_(1)


def decode_exact(
    content: bytes, name: str, index: int, side: int | None = None
) -> tuple[UInt8[Tensor, "3 H W"], Notes]:
    """Image `index` of a set as 8-bit RGB, and what it was before.

    Without `side` it is neither cropped nor scaled. Raises DataError naming the file and its index
    if it cannot be decoded or is too large.
    """
    with _opened(content, name, index) as image:
        notes = _notes(image)  # before decoding, which forgets how pixels were stored
        if side is not None:
            _check_scaled(image.size, side)
        image.load()
        colour = _convert(_upright(image), "RGB")
        if side is not None:
            colour = centre_crop(colour, side)
    return torch.from_numpy(np.array(colour)).permute(2, 0, 1).contiguous(), notes


def unreadable(index: int, name: str, error: Exception) -> DataError:
    """The error of an image that cannot be read."""
    return DataError(
        f"image {index} cannot be read ({_reason(error)})",
        where=name,
        remedy="replace or remove the file",
    )


@contextmanager
def _opened(content: bytes, name: str, index: int) -> Iterator[Image.Image]:
    """An image whose header was read; what fails inside the block fails as this image."""
    try:
        with warnings.catch_warnings(), _whole_images():
            warnings.simplefilter("ignore")  # damaged metadata harms no pixel
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if not content:
                raise _RefusedImage("the file is empty")
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                _check_size(image.size)
                yield image
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise unreadable(index, name, error) from error


@contextmanager
def _whole_images() -> Iterator[None]:
    """Have Pillow refuse cut-off images, even in a program that told it to fill them up."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _check_size(size: tuple[int, int]) -> None:
    if size[0] * size[1] > PIXEL_LIMIT:
        raise _RefusedImage(f"{size[0]} x {size[1]} pixels are too many")


def _check_scaled(size: tuple[int, int], side: int) -> None:
    """Refuse an image that becomes large when its short side is scaled up."""
    short, long = sorted(size)
    if math.ceil(side * side * long / short) > PIXEL_LIMIT:
        raise _RefusedImage(f"{size[0]} x {size[1]} pixels are too many")


def _notes(image: Image.Image) -> Notes:
    stored = " ".join(str(tile[3]) for tile in getattr(image, "tile", ()))
    odd = image.mode not in ("L", "LA", "RGB", "RGBA")
    return Notes(
        grey=image.mode in ("1", "L", "LA") or image.mode.startswith("I"),
        alpha=bool(image.has_transparency_data),
        converted=odd or _DEEP in stored,
    )


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
