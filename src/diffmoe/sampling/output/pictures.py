"""Images as pictures: one, many on a sheet, and a sheet that says what each of them is."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

__all__ = ["MOST_SHOWN", "captioned", "contact_sheet", "tile_sheet", "to_picture"]

MOST_SHOWN = 100  # images on the captioned sheet: one of 50,000 is no picture any more
_TILE, _WIDE = 64, 128  # pixels, at least: side of a tile, and of one above a prompt
_GAP, _LINE = 8, 13  # pixels: between tiles, of a line of text
_BROKEN, _READ = 3, 240  # lines of a prompt, and letters of it that may be shown


def to_picture(image: UInt8[Tensor, "C H W"], scale: int = 1) -> Image.Image:
    """An 8-bit image as a picture, each pixel `scale` times as large."""
    pixels = image.permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def contact_sheet(
    images: UInt8[Tensor, "N C H W"], columns: int, scale: int = 1, gap: int = 2
) -> Image.Image:
    """8-bit images in rows of `columns` on white."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    sheet = torch.full(
        (channels, rows * (height + gap) + gap, columns * (width + gap) + gap),
        255,
        dtype=torch.uint8,
    )
    for index, image in enumerate(images):
        top = gap + index // columns * (height + gap)
        left = gap + index % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    return to_picture(sheet, scale)


def captioned(
    images: UInt8[Tensor, "N C H W"],
    captions: Sequence[str],
    columns: int = 10,
    prompts: bool = False,
) -> Image.Image:
    """8-bit images on white, small ones enlarged, each above its caption of two lines.

    Where the first line is a prompt it is broken into three at most, below wider tiles.
    """
    scale = -(-(_WIDE if prompts else _TILE) // min(images.shape[-2:]))
    tiles = [to_picture(image, scale) for image in images]
    return tile_sheet(tiles, captions, (_BROKEN if prompts else 1, 1), columns)


def tile_sheet(
    tiles: Sequence[Image.Image], captions: Sequence[str], lines: Sequence[int], columns: int = 10
) -> Image.Image:
    """Pictures of one size on white, each above its caption.

    `lines` says into how many lines at most each line of a caption may be broken.
    """
    columns, rows = min(columns, len(tiles)), -(-len(tiles) // columns)
    wide = tiles[0].width + _GAP
    high = tiles[0].height + _LINE * sum(lines) + _GAP
    sheet = Image.new(tiles[0].mode, (columns * wide + _GAP, rows * high + _GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for index, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        left, top = _GAP + index % columns * wide, _GAP + index // columns * high
        sheet.paste(tile, (left, top))
        fitting = [
            part
            for line, most in zip(caption.split("\n"), lines, strict=True)
            for part in _broken(line, font, tile.width, most)
        ]
        said = "\n".join(fitting)
        pen.multiline_text((left, top + tile.height), said, fill="black", font=font, spacing=1)
    return sheet


def _broken(line: str, font: Any, width: int, most: int) -> Iterator[str]:
    """A line of text in lines of whole words, the last one cut off where there are too many."""
    words = line[:_READ].split(" ")
    for _ in range(most - 1):
        taken = 1
        while taken < len(words) and font.getlength(" ".join(words[: taken + 1])) <= width:
            taken += 1
        yield _fitting(" ".join(words[:taken]), font, width)
        words = words[taken:]
        if not words:
            return
    yield _fitting(" ".join(words), font, width)


def _fitting(line: str, font: Any, width: int) -> str:
    """A line of text, cut off where it would reach into the next tile."""
    while font.getlength(line) > width:
        line = line.rstrip(".")[:-1] + ".."
    return line
