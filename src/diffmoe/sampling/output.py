"""Images to files: a folder of PNGs, a contact sheet and the stamp that says how to make them."""

import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from diffmoe.checkpoint import new_folder
from diffmoe.errors import StorageError

__all__ = ["contact_sheet", "refuse_place", "refuse_unwritable", "to_picture", "write_samples"]

_RECORD, _SHEET = "samples.json", "sheet.png"
_IMAGE = re.compile(r"\d{6,}-class-\d+-seed-\d+\.png")
_TILE, _GAP, _CAPTION = 64, 8, 26  # pixels: least side of a tile, between tiles, of two lines
_MOST_SHOWN = 100  # images on the contact sheet: one of 50,000 is no picture any more


def to_picture(image: Tensor, scale: int = 1) -> Image.Image:
    """A uint8 image (C, H, W) as a picture, each pixel `scale` times as large."""
    pixels = image.permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def contact_sheet(images: Tensor, columns: int, scale: int = 1, gap: int = 2) -> Image.Image:
    """uint8 images (N, C, H, W) in rows of `columns` on white."""
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


def _captioned(images: Tensor, captions: Sequence[str], columns: int = 10) -> Image.Image:
    """uint8 images (N, C, H, W) on white, small ones enlarged, each above its caption."""
    scale = -(-_TILE // min(images.shape[-2:]))
    tiles = [to_picture(image, scale) for image in images]
    columns, rows = min(columns, len(tiles)), -(-len(tiles) // columns)
    wide, high = tiles[0].width + _GAP, tiles[0].height + _CAPTION + _GAP
    sheet = Image.new(tiles[0].mode, (columns * wide + _GAP, rows * high + _GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for index, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        left, top = _GAP + index % columns * wide, _GAP + index // columns * high
        sheet.paste(tile, (left, top))
        fitting = "\n".join(_fitting(line, font, tile.width) for line in caption.split("\n"))
        pen.multiline_text((left, top + tile.height), fitting, fill="black", font=font, spacing=1)
    return sheet


def _fitting(line: str, font: Any, width: int) -> str:
    """A line of text, cut off where it would reach into the next tile."""
    while font.getlength(line) > width:
        line = line.rstrip(".")[:-1] + ".."
    return line


def write_samples(
    path: Path, images: Tensor, labels: Sequence[int], seeds: Sequence[int], stamp: dict[str, Any]
) -> None:
    """Write images and `samples.json` as the folder `path`, in one rename.

    Older samples at `path` are replaced; raises StorageError if anything else is there.
    """
    refuse_place(path)
    with new_folder(path, replace=True) as aside:
        names = []
        for index, (label, seed) in enumerate(zip(labels, seeds, strict=True)):
            names.append(f"{index:06d}-class-{label}-seed-{seed}.png")
            to_picture(images[index]).save(aside / names[-1])
        captions = [
            f"class {label}\nseed {seed}" for label, seed in zip(labels, seeds, strict=True)
        ]
        _captioned(images[:_MOST_SHOWN], captions[:_MOST_SHOWN]).save(aside / _SHEET)
        records = [
            {"file": name, "label": label, "seed": seed}
            for name, label, seed in zip(names, labels, seeds, strict=True)
        ]
        content = json.dumps({**stamp, "images": records}, indent=2)
        (aside / _RECORD).write_text(content)


def refuse_place(path: Path) -> None:
    """Raise StorageError unless `write_samples` may put a folder at `path`.

    It may if nothing is there, or an empty folder, or samples and nothing else: the images that
    their `samples.json` records, the sheet, the record.
    """
    foreign, where = _foreign(path), str(path)
    if foreign:
        raise StorageError(
            f"{foreign} was not written by a sampling and would be lost",
            where=where,
            remedy="choose another folder",
        )
    refuse_unmovable(path)
    refuse_unwritable(path.parent, path.name)


def refuse_unmovable(path: Path) -> None:
    """Raise StorageError if another folder cannot take the place of what is at `path`."""
    kind = _unmovable(path)
    if kind:
        raise StorageError(
            f"another folder cannot replace {kind}",
            where=str(path),
            remedy="choose a folder below it",
        )


def _foreign(path: Path) -> str:
    """The name of the first thing at `path` that is not of samples; empty if there is none."""
    if not path.is_dir():
        return path.name if path.exists() else ""
    ours = _recorded(path / _RECORD)
    others = (e.name for e in sorted(path.iterdir()) if e.name not in ours or not e.is_file())
    return next(others, "")


def _recorded(record: Path) -> set[str]:
    """The files of the sampling that wrote a record; none if that is a record of something else."""
    try:
        names = {image["file"] for image in json.loads(record.read_text())["images"]}
        is_ours = bool(names) and all(_IMAGE.fullmatch(name) for name in names)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return set()
    return {_RECORD, _SHEET, *names} if is_ours else set()


def _unmovable(path: Path) -> str:
    """What a folder is that another cannot take the place of; empty for any other."""
    if path.is_symlink():
        return "a link"
    if path.resolve() == Path.cwd():
        return "the folder you are in"
    return "a mount point" if path.absolute().is_mount() else ""


def refuse_unwritable(folder: Path, name: str = "") -> None:
    """Raise StorageError unless something called `name` can be made in `folder`.

    A folder that is not there yet is judged by the nearest one above it.
    """
    place = folder
    while not (place.exists() or place.is_symlink()):
        place = place.parent
    try:
        with tempfile.TemporaryDirectory(prefix=f".tmp-{name}-", dir=place):
            return
    except OSError as error:
        raise StorageError(
            f"nothing can be written here ({error.strerror})",
            where=str(folder / name),
            remedy="choose another place, or check its permissions and the free space",
        ) from error
