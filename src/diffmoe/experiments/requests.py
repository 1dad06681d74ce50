"""Which images a user asks for who does not name them all."""

from collections.abc import Sequence

from diffmoe.errors import ConfigError
from diffmoe.sampling import balanced_labels, random_labels

__all__ = ["request"]

_COUNT = 16  # images when nothing says how many


def request(
    labels: Sequence[int],
    seeds: Sequence[int],
    count: int | None,
    classes: int,
    *,
    law: str = "balanced",
    first_seed: int = 0,
) -> tuple[Sequence[int], Sequence[int]]:
    """Labels and seeds to draw, as many as there are labels, or else seeds, or else `count`.

    Without seeds they are `first_seed` and those after it; without labels all classes have their
    turn, or each is a function of its seed where the law is `random`. Raises ConfigError if what
    is given contradicts itself.
    """
    _refuse_contradictions(labels, seeds, count, law, first_seed)
    number = len(labels) or len(seeds) or (_COUNT if count is None else count)
    turns = [] if len(labels) else balanced_labels(number, classes)  # refuses a bad count
    chosen = seeds if len(seeds) else range(first_seed, first_seed + number)
    if law == "random":
        return random_labels(chosen, classes), chosen
    return turns or labels, chosen


def _refuse_contradictions(
    labels: Sequence[int], seeds: Sequence[int], count: int | None, law: str, first_seed: int
) -> None:
    given = len(labels) or len(seeds)
    if given and count not in (None, given):
        _refuse(f"count {count}", f"{given} {'labels' if len(labels) else 'seeds'}")
    if len(labels) and law == "random":
        _refuse("law random", f"{len(labels)} labels")
    if len(seeds) and first_seed:
        _refuse(f"seed {first_seed}", f"{len(seeds)} seeds")


def _refuse(one: str, other: str) -> None:
    raise ConfigError(f"{one} does not go with {other}", remedy="leave one of them out")
