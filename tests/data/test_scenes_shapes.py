"""Shapes of scenes against their corners and definitions, sampled finely."""

import math

import numpy as np
import pytest
from matplotlib.path import Path as Polygon

from diffmoe.data.scenes import SHAPES, shape_area, shape_coverage

CORNERS = {
    "square": [(1, 45 + 90 * k) for k in range(4)],
    "triangle": [(1, -90 + 120 * k) for k in range(3)],
    "star": [(1 - 0.5 * (k % 2), -90 + 36 * k) for k in range(10)],
}


def inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether points lie in a shape of radius 1, from its corners or its definition."""
    radius = np.hypot(x, y)
    if shape in ("circle", "ring"):
        return (radius <= 1) & (radius >= (0.5 if shape == "ring" else 0))
    if shape == "cross":
        reach = math.sqrt(1 - 0.32**2)
        bars = [(reach, 0.32), (0.32, reach)]
        return np.logical_or.reduce([(abs(x) <= w) & (abs(y) <= h) for w, h in bars])
    turned = [
        (r * math.cos(math.radians(a)), r * math.sin(math.radians(a))) for r, a in CORNERS[shape]
    ]
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    return Polygon(turned).contains_points(points).reshape(x.shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("angle", [0.0, 7.0, -5.0])
def test_coverage_is_that_of_many_samples(shape: str, angle: float) -> None:
    radius, fine = 8.0, 16
    sub = (np.arange(24 * fine) + 0.5) / fine - 12
    turn = math.radians(-angle)
    x, y = np.meshgrid(sub / radius, sub / radius)
    turned = (x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn))
    expected = inside(shape, *turned).reshape(24, fine, 24, fine).mean(axis=(1, 3))
    middle = np.arange(24) - 11.5
    found = shape_coverage(shape, radius, angle, middle[None, :], middle[:, None])
    assert found.dtype == np.float64 and np.abs(found - expected).max() < 0.3
    assert np.abs(found - expected).mean() < 0.01
    assert abs(found.sum() / (shape_area(shape) * radius**2) - 1) < 0.02
