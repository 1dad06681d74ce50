"""A sheet of scenes with their captions, task by task."""

import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffmoe.data.scenes.drawing import LEAST_SIDE, draw_scene
from diffmoe.data.scenes.layout import make_scene
from diffmoe.data.scenes.plans import tasks_of

__all__ = ["scene_sheet"]

_TILE, _GAP, _LINES, _LINE = 128, 14, 3, 15  # pixels; lines of a caption
_NAME = 104  # pixels for the name of a task


def scene_sheet(
    seed: int = 0, split: str = "validation", columns: int = 6, side: int = LEAST_SIDE
) -> Image.Image:
    """The first scenes of each task of a split, a row a task, enlarged without smoothing."""
    tasks = tasks_of(split)
    high, wide = _TILE + _LINES * _LINE + _GAP, _TILE + _GAP
    size = (_NAME + 2 * _GAP + columns * wide, _GAP + len(tasks) * high)
    page = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for row, task in enumerate(tasks):
        top = _GAP + row * high
        pen.text((_GAP, top + _TILE // 2), task, fill="black", font=font, anchor="lm")
        for column in range(columns):
            scene = make_scene(seed, split, column * len(tasks) + row)
            left = _NAME + _GAP + column * wide
            page.paste(_enlarged(draw_scene(scene, side)), (left, top))
            words = "\n".join(textwrap.wrap(scene.caption, 21)[:_LINES])
            pen.multiline_text((left, top + _TILE + 2), words, fill="#444444", font=font, spacing=2)
    return page


def _enlarged(picture: np.ndarray) -> Image.Image:
    tile = Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))
    return tile.resize((_TILE, _TILE), Image.Resampling.NEAREST)
