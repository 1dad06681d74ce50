"""Which part of each pixel a shape covers."""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

__all__ = ["has_angle", "shape_area", "shape_coverage"]

Plane = Float[np.ndarray, "*pixels"]

_STAR_INNER = 0.5  # radius of a star's notches, of 1 at its points
_RING_INNER = 0.5  # radius of a ring's hole
_ARM = 0.32  # half the width of a cross's arm; it ends on the circle around the cross
_REACH = math.sqrt(1 - _ARM**2)


def shape_coverage(
    shape: str, radius: float | Plane, angle: float | Plane, x: Plane, y: Plane
) -> Float[np.ndarray, "*pixels"]:
    """The covered part, 0 to 1, of pixels at (x, y) from the centre of a shape, in pixels.

    `radius` is that of the circle around it, `angle` in degrees; an edge is taken for straight
    within a pixel, which is what tells a box filter's result from the distance to the edge.
    """
    return np.clip(0.5 - _distance(shape, radius, angle, x, y), 0.0, 1.0)


def shape_area(shape: str) -> float:
    """The area of a shape in a circle of radius 1."""
    return {
        "circle": math.pi,
        "square": 2.0,
        "triangle": 0.75 * math.sqrt(3),
        "star": 5 * _STAR_INNER * math.sin(math.pi / 5),
        "cross": 8 * _ARM * _REACH - 4 * _ARM**2,
        "ring": math.pi * (1 - _RING_INNER**2),
    }[shape]


def has_angle(shape: str) -> bool:
    """Whether a shape looks different when it is turned."""
    return shape not in ("circle", "ring")


def _distance(
    shape: str, radius: float | Plane, angle: float | Plane, x: Plane, y: Plane
) -> Float[np.ndarray, "*pixels"]:
    """Distance to the edge, negative inside.

    Beyond a corner the distance to its two lines is too small; there the circle ends the shape.
    """
    from_centre = np.sqrt(x * x + y * y)
    if shape in _ROUND:
        return _ROUND[shape](radius, from_centre)
    sectors, up, of_sector = _TURNED[shape]
    sector = 2 * math.pi / sectors
    turn = np.arctan2(y, x) - np.deg2rad(up + angle)
    turn = turn - sector * np.round(turn / sector)
    along, across = from_centre * np.cos(turn), from_centre * np.abs(np.sin(turn))
    return np.maximum(of_sector(radius, along, across), from_centre - radius)


def _circle(radius: float | Plane, distance: Plane) -> Plane:
    return distance - radius


def _ring(radius: float | Plane, distance: Plane) -> Plane:
    middle, half = (1 + _RING_INNER) / 2, (1 - _RING_INNER) / 2
    return np.abs(distance - middle * radius) - half * radius


def _square(radius: float | Plane, along: Plane, across: Plane) -> Plane:
    return along - radius * math.cos(math.pi / 4)


def _triangle(radius: float | Plane, along: Plane, across: Plane) -> Plane:
    return along - radius * math.cos(math.pi / 3)


def _cross(radius: float | Plane, along: Plane, across: Plane) -> Plane:
    return np.maximum(along - radius * _REACH, across - radius * _ARM)


def _star(radius: float | Plane, along: Plane, across: Plane) -> Plane:
    """The edge from a point on the axis to a notch half a sector away."""
    notch_along = _STAR_INNER * math.cos(math.pi / 5)
    notch_across = _STAR_INNER * math.sin(math.pi / 5)
    length = math.hypot(1 - notch_along, notch_across)
    return ((along - radius) * notch_across + across * (1 - notch_along)) / length


_ROUND: dict[str, Callable[..., Plane]] = {"circle": _circle, "ring": _ring}
# Sectors of equal look, the direction of the first one's axis in degrees, distance within it.
_TURNED: dict[str, tuple[int, float, Callable[..., Plane]]] = {
    "square": (4, 0.0, _square),
    "triangle": (3, 90.0, _triangle),
    "cross": (4, 0.0, _cross),
    "star": (5, -90.0, _star),
}
