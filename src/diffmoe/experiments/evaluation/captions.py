"""Images against their captions, which a sampling from text records beside them."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from diffmoe.data import SampledPictures
from diffmoe.errors import ConfigError
from diffmoe.evaluation import (
    BLOCK,
    PART,
    ClipNetwork,
    PictureSet,
    clip_scores,
    part_of,
    read_images,
    record_of,
)
from diffmoe.experiments.evaluation.subject import Samples

__all__ = ["caption_numbers", "captioned"]


def captioned(path: Path, count: int | None) -> tuple[Samples, list[str]]:
    """The files that `samples.json` of a folder lists, the first `count`, and their captions.

    Raises ConfigError if the folder has no record of captions, or an image has none.
    """
    captions = _captions(path)[:count]
    pictures = SampledPictures(path, labelled=False)
    images = PictureSet(pictures, str(path))
    if count is not None and not 1 <= count <= len(images):
        raise ConfigError(
            f"count {count} is not in [1, {len(images)}], the number of images", where=str(path)
        )
    return Samples(images, record_of(path)), captions


def _captions(path: Path) -> list[str]:
    try:
        entries = json.loads((path / "samples.json").read_text(encoding="utf-8"))["images"]
        found = [entry.get("caption") for entry in entries]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            "the images have no captions to be compared with",
            where=str(path),
            remedy="give a folder whose samples.json lists images with a file and a caption each",
        ) from error
    for number, caption in enumerate(found):
        if not isinstance(caption, str) or not caption.strip():
            raise ConfigError(
                f"image {number} has no caption",
                where=str(path / "samples.json"),
                remedy="give each image a caption",
            )
    return found


def caption_numbers(
    samples: Samples, captions: list[str], network: ClipNetwork, progress: bool
) -> dict[str, Any]:
    """The CLIP score of the samples, what was cut, and the protocol."""
    total, cut, count = torch.zeros((), dtype=torch.float64), 0, len(captions)
    parts = range(-(-count // PART))
    for number in tqdm(parts, desc="captions", unit="part", disable=not progress):
        numbers = part_of(number, count)
        pixels, _ = read_images(samples.images, numbers)
        found = clip_scores(pixels, [captions[n] for n in numbers], network)
        total, cut = total + found.scores.sum(), cut + found.cut
    said = f"{cut:,} of {count:,} captions were longer than the network reads, and cut"
    return {
        "values": {f"clip_score@{count}": float(total / count)},
        "deviations": {},
        "cautions": [said] if cut else [],
        "counted": {"samples": {"count": count}, "reference": None},
        "protocol": {
            "samples": {
                "place": samples.images.place,
                "count": count,
                "made": samples.record,
            },
            "reference": None,
            "network": {"name": "clip", "sha256": network.fingerprint, "block": BLOCK},
            "settings": {},
            "versions": {"diffmoe": version("diffmoe"), "torch": torch.__version__},
        },
    }
