"""Where things lie: apart from each other, inside the picture, and in clear relations."""

import math
from collections.abc import Iterator, Sequence
from itertools import combinations

from diffmoe.data.scenes.plans import Plan, make_plan, pick
from diffmoe.data.scenes.records import Scene, Thing
from diffmoe.randomness import uniforms

__all__ = ["BORDER", "CLEAR_DEGREES", "GAP", "MOST_DEGREES", "make_scene"]

_PIXEL = 1 / 32  # of the smallest picture that is drawn
GAP, BORDER = 2 * _PIXEL, 1 * _PIXEL  # of the side, at least, between circles around things
CLEAR_DEGREES, MOST_DEGREES = 35.0, 7.0  # of a relation from its axis, of a turned thing
# Diameters by the number of things; all things of these sizes fit the places of `_orderly`.
_SIZES = {1: (10, 20), 2: (9.5, 13.5), 3: (9.5, 12), 4: (9, 11.5)}
_FREE, _JITTERED = 24, 8  # tries anywhere, and around the orderly places
_SHADES = (14, 35)  # of the background, each channel on its own
_TOWARDS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}

Place = tuple[float, float]


def make_scene(seed: int, split: str, index: int) -> Scene:
    """Scene `index` of a split, a function of the three numbers alone."""
    plan = make_plan(seed, split, index)
    count = len(plan.pairs)
    width = 4 + 2 * count + 2 * count * (_FREE + _JITTERED)
    draws = iter(uniforms(seed, f"scenes/{split}/layout", index, 1, width)[0].tolist())
    shades = tuple(pick(draws, range(*_SHADES)) for _ in range(3))
    sizes = [_between(draws, *_SIZES[count]) * _PIXEL for _ in plan.pairs]
    angles = [_between(draws, -MOST_DEGREES, MOST_DEGREES) for _ in plan.pairs]
    places = _placed(draws, plan, sizes)
    things = tuple(
        Thing(*pair, *place, size, angle)
        for pair, place, size, angle in zip(plan.pairs, places, sizes, angles, strict=True)
    )
    prompt = plan.prompt
    parts = (prompt.task, prompt.caption, prompt.include, prompt.exclude)
    return Scene(*parts, things, (shades[0], shades[1], shades[2]))


def _between(draws: Iterator[float], low: float, high: float) -> float:
    return low + (high - low) * next(draws)


def _placed(draws: Iterator[float], plan: Plan, sizes: Sequence[float]) -> list[Place]:
    """The first places drawn that fit; orderly ones where none does."""
    relation = plan.prompt.include[-1].relation
    orderly = _orderly(draws, relation, len(sizes))
    anywhere: list[Place | None] = [None] * len(sizes)
    for around in [anywhere] * _FREE + [[*orderly]] * _JITTERED:
        places = [_place(draws, *each) for each in zip(sizes, around, strict=True)]
        if _fits(places, sizes) and (relation is None or _is_clear(places, relation)):
            return places
    return orderly


def _place(draws: Iterator[float], size: float, around: Place | None) -> Place:
    """A place inside the picture, anywhere or at most 3 / 16 of the side from another."""
    low = BORDER + size / 2
    if around is None:
        return _between(draws, low, 1 - low), _between(draws, low, 1 - low)
    x, y = (min(max(each + (next(draws) - 0.5) * 3 / 8, low), 1 - low) for each in around)
    return x, y


def _fits(places: Sequence[Place], sizes: Sequence[float]) -> bool:
    """Whether all circles are far enough from each other."""
    return all(
        math.dist(places[i], places[j]) >= (sizes[i] + sizes[j]) / 2 + GAP
        for i, j in combinations(range(len(sizes)), 2)
    )


def _is_clear(places: Sequence[Place], relation: str) -> bool:
    """Whether the second place is seen from the first near the axis of the relation."""
    (x, y), towards = (b - a for a, b in zip(*places, strict=True)), _TOWARDS[relation]
    along = x * towards[0] + y * towards[1]
    across = abs(x * towards[1]) + abs(y * towards[0])
    return across <= along * math.tan(math.radians(CLEAR_DEGREES))


def _orderly(draws: Iterator[float], relation: str | None, count: int) -> list[Place]:
    """Places in the middles of halves or quarters, which things of all sizes fit."""
    turn = pick(draws, range(4))
    if count < 3:
        x, y = _TOWARDS[relation] if relation else tuple(_TOWARDS.values())[turn]
        return [(0.5 - x / 4, 0.5 - y / 4), (0.5 + x / 4, 0.5 + y / 4)][:count]
    quarters = [(0.25, 0.25), (0.75, 0.25), (0.75, 0.75), (0.25, 0.75)]
    return (quarters[turn:] + quarters[:turn])[:count]
