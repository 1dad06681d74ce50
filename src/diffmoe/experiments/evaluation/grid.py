"""Verdicts at a glance: pictures in green or red frames above their prompts."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageOps, PngImagePlugin

from diffmoe.evaluation import Verdict
from diffmoe.experiments.evaluation.gallery import Gallery, picture_of
from diffmoe.experiments.evaluation.work import FORMAT
from diffmoe.sampling import tile_sheet, to_picture

__all__ = ["GRID_MARK", "is_grid", "verdict_grid"]

_SHOWN, _COLUMNS, _SIDE, _FRAME = 36, 6, 128, 5  # prompts; pixels of a picture, of its frame
_RIGHT, _WRONG = "#2e9e4f", "#d23b3b"
_LINES = (3, 3)  # of a prompt, of what is wrong
_SOFTWARE = "Software"

GRID_MARK = PngImagePlugin.PngInfo()
GRID_MARK.add_text(_SOFTWARE, FORMAT)


def verdict_grid(gallery: Gallery, verdicts: Sequence[Verdict]) -> Image.Image:
    """The first image of some prompts, spread over all: green is right by GenEval's rule.

    `verdicts` are those on all images, in order. Below the prompt stands what is wrong, be it by
    the strict rule only.
    """
    count = len(gallery.shown)
    numbers = [n * count // min(count, _SHOWN) for n in range(min(count, _SHOWN))]
    firsts = [0]
    for each in gallery.shown:
        firsts.append(firsts[-1] + len(each.files))
    tiles, captions = [], []
    for number in numbers:
        verdict = verdicts[firsts[number]]
        tiles.append(_framed(gallery.shown[number].files[0], verdict.lenient))
        captions.append(f"{' '.join(verdict.prompt.caption.split())}\n{_said(verdict)}")
    return tile_sheet(tiles, captions, _LINES, _COLUMNS)


def _framed(file: Path, right: bool) -> Image.Image:
    """A picture of a scene, enlarged without smoothing, in the frame of its verdict."""
    pixels = torch.from_numpy(picture_of(file))
    picture = to_picture(pixels).resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
    return ImageOps.expand(picture, _FRAME, _RIGHT if right else _WRONG)


def _said(verdict: Verdict) -> str:
    """What is wrong with a picture, if anything is."""
    if verdict.strict:
        return ""
    return f"{'but' if verdict.lenient else 'wrong:'} {verdict.reason}"


def is_grid(path: Path) -> bool:
    """Whether a file is such a picture, as far as it says so."""
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            return bool(picture.info.get(_SOFTWARE) == FORMAT)
    except (OSError, ValueError, SyntaxError):
        return False
