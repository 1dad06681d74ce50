"""Boxes in pixels that marks, lines and names take of a figure: left, bottom, right and top."""

from itertools import pairwise
from typing import Any

from diffmoe.analysis.figures.canvas import Axes

__all__ = ["box", "outside", "segments", "shared"]


def box(axes: Axes, centre: Any, width: float, height: float) -> tuple[float, float, float, float]:
    """Left, bottom, right and top, in pixels, of something that is so many points large."""
    scale = axes.figure.dpi / 72
    x, y = scale * width / 2, scale * height / 2
    return centre[0] - x, centre[1] - y, centre[0] + x, centre[1] + y


def segments(axes: Axes, line: Any) -> list[Any]:
    """Boxes along a stepped line."""
    ends = axes.transData.transform(line.get_xydata())
    boxes = []
    for (left, high), (right, low) in pairwise(ends):
        boxes.append((left, high - 2, right, high + 2))
        boxes.append((right - 2, low, right + 2, high))
    return boxes


def shared(one: Any, other: Any) -> float:
    """Area that two boxes share."""
    x = min(one[2], other[2]) - max(one[0], other[0])
    y = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, x) * max(0.0, y)


def outside(box: Any, frame: Any) -> float:
    """How far a box stands out of the axes, weighed as if all of it were covered."""
    beyond = max(frame.x0 - box[0], box[2] - frame.x1, frame.y0 - box[1], box[3] - frame.y1)
    return 100.0 * max(0.0, beyond)
