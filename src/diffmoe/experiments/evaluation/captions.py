"""Images against their captions, which a sampling from text records beside them."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from diffmoe.errors import ConfigError
from diffmoe.evaluation import BLOCK, PART, ClipNetwork, clip_scores, part_of, read_images
from diffmoe.experiments.evaluation.subject import Samples

__all__ = ["caption_numbers", "captions_of"]


def captions_of(path: Path, count: int) -> list[str]:
    """The captions of the first images of a folder, from its `samples.json`.

    Raises ConfigError if the folder has no record of captions, or an image has none.
    """
    try:
        entries = json.loads((path / "samples.json").read_text(encoding="utf-8"))["images"]
        found = [entry.get("caption") for entry in entries[:count]]
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
    total, cut = torch.zeros((), dtype=torch.float64), 0
    parts = range(-(-samples.count // PART))
    for number in tqdm(parts, desc="captions", unit="part", disable=not progress):
        numbers = part_of(number, samples.count)
        pixels, _ = read_images(samples.images, numbers)
        found = clip_scores(pixels, [captions[n] for n in numbers], network)
        total, cut = total + found.scores.sum(), cut + found.cut
    said = f"{cut:,} of {samples.count:,} captions were longer than the network reads, and cut"
    return {
        "values": {f"clip_score@{samples.count}": float(total / samples.count)},
        "deviations": {},
        "cautions": [said] if cut else [],
        "counted": {"samples": {"count": samples.count}, "reference": None},
        "protocol": {
            "samples": {
                "place": samples.images.place,
                "count": samples.count,
                "made": samples.record,
            },
            "reference": None,
            "network": {"name": "clip", "sha256": network.fingerprint, "block": BLOCK},
            "settings": {},
            "versions": {"diffmoe": version("diffmoe"), "torch": torch.__version__},
        },
    }
