"""Images to files: a folder of PNGs, a contact sheet and the stamp that says how to make them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from diffmoe.checkpoint import new_folder
from diffmoe.errors import StorageError

__all__ = ["contact_sheet", "to_picture", "write_samples"]

_RECORD = "samples.json"


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


def write_samples(
    path: Path, images: Tensor, labels: Sequence[int], seeds: Sequence[int], stamp: dict[str, Any]
) -> None:
    """Write images and `samples.json` as the folder `path`, in one rename.

    Older samples at `path` are replaced; raises StorageError if anything else is there.
    """
    if path.exists() and not (path / _RECORD).is_file() and not _is_empty(path):
        raise StorageError(
            "this place holds something else than samples",
            where=str(path),
            remedy="choose another folder",
        )
    with new_folder(path, replace=True) as aside:
        names = []
        for index, (label, seed) in enumerate(zip(labels, seeds, strict=True)):
            names.append(f"{index:06d}-class-{label}-seed-{seed}.png")
            to_picture(images[index]).save(aside / names[-1])
        scale = max(1, 64 // images.shape[-1])
        contact_sheet(images, columns=min(10, len(images)), scale=scale).save(aside / "sheet.png")
        records = [
            {"file": name, "label": label, "seed": seed}
            for name, label, seed in zip(names, labels, seeds, strict=True)
        ]
        content = json.dumps({**stamp, "images": records}, indent=2)
        (aside / _RECORD).write_text(content)


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())
