"""Pictures of scenes, and maps of which pixel shows which thing."""

import numpy as np
from jaxtyping import Float, Int, UInt8

from diffmoe.data.scenes.records import Scene, Thing
from diffmoe.data.scenes.shapes import shape_coverage
from diffmoe.data.scenes.words import PALETTE
from diffmoe.errors import ConfigError

__all__ = ["LEAST_SIDE", "draw_scene", "object_map", "refuse_side"]

LEAST_SIDE = 32  # pixels; in smaller pictures shapes cannot be told apart
_COLOURS = {
    name: np.array(value, dtype=np.float64)[:, None, None] for name, value in PALETTE.items()
}


def refuse_side(side: int) -> None:
    """Raise ConfigError if a picture of this side is too small to be read."""
    if side < LEAST_SIDE:
        raise ConfigError(
            f"side {side} is less than {LEAST_SIDE} pixels, too few to tell shapes apart",
            remedy=f"use a side of {LEAST_SIDE} or more",
        )


def draw_scene(scene: Scene, side: int = LEAST_SIDE) -> UInt8[np.ndarray, "3 side side"]:
    """The picture of a scene, with smooth edges; raises ConfigError if it would be too small."""
    refuse_side(side)
    picture = np.empty((3, side, side))
    picture[:] = np.array(scene.background, dtype=np.float64)[:, None, None]
    for thing in scene.things:
        window, covered = _drawn(thing, side)
        behind = picture[:, *window]
        behind += covered * (_COLOURS[thing.colour] - behind)
    return np.rint(picture).astype(np.uint8)


def object_map(scene: Scene, side: int = LEAST_SIDE) -> Int[np.ndarray, "side side"]:
    """For each pixel the number, from 1, of the thing that covers half of it or more; else 0."""
    refuse_side(side)
    shown: Int[np.ndarray, "side side"] = np.zeros((side, side), dtype=np.int64)
    for number, thing in enumerate(scene.things, 1):
        window, covered = _drawn(thing, side)
        shown[*window][covered >= 0.5] = number
    return shown


def _drawn(thing: Thing, side: int) -> tuple[tuple[slice, slice], Float[np.ndarray, "h w"]]:
    """The rows and columns around a thing, and how much of each pixel there it covers."""
    radius = thing.size * side / 2
    rows, y = _span(thing.y * side, radius, side)
    columns, x = _span(thing.x * side, radius, side)
    covered = shape_coverage(thing.shape, radius, thing.angle, x[None, :], y[:, None])
    return (rows, columns), covered


def _span(centre: float, radius: float, side: int) -> tuple[slice, Float[np.ndarray, "n"]]:
    """The pixels within a radius and one more, and how far their middles are from the centre."""
    first, last = max(0, int(centre - radius) - 1), min(side, int(centre + radius) + 2)
    return slice(first, last), np.arange(first, last) + (0.5 - centre)
