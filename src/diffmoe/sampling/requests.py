"""Which images: labels and seeds, checked all at once, and labels where nobody gives any."""

from collections.abc import Iterable, Sequence
from operator import index
from typing import SupportsIndex

import numpy as np

from diffmoe.config import RunConfig
from diffmoe.errors import ConfigError
from diffmoe.randomness import uniforms

__all__ = ["balanced_labels", "check_request", "random_labels"]

_MOST_IMAGES = 10**6  # of one call: more is a slip of the keyboard


def check_request(
    config: RunConfig, labels: Sequence[int], seeds: Sequence[int], prompts: int | None = None
) -> None:
    """Raise ConfigError for a label that is no class, or a seed that is no 63-bit number.

    Where the model reads captions labels are numbers of so many `prompts`.
    """
    classes = config.model.num_classes if prompts is None else prompts
    if len(labels) == 0:
        raise ConfigError("no images are asked for", remedy="give at least one label and seed")
    if len(labels) != len(seeds):
        raise ConfigError(
            f"{_counted(len(labels), 'label')} and {_counted(len(seeds), 'seed')} do not pair up",
            remedy="give one seed for each label",
        )
    if not _all_within(labels, classes):
        _refuse_labels(labels, classes, prompted=prompts is not None)
    if not _all_within(seeds, 2**63):
        _refuse_seeds(seeds)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _all_within(values: Sequence[int], stop: int) -> bool:
    """Whether values are whole numbers of [0, stop) beyond doubt: a million in a moment."""
    try:
        found = np.asarray(values)
    except (TypeError, ValueError, OverflowError):
        return False
    whole = found.ndim == 1 and found.dtype.kind == "i"
    return bool(whole and found.min() >= 0 and found.max() < stop)


def _refuse_labels(labels: Iterable[int], classes: int, prompted: bool) -> None:
    """Raise ConfigError for the first label that is no class, or no prompt."""
    for label in (_whole("label", label) for label in labels):
        if prompted and not 0 <= label < classes:
            raise ConfigError(
                f"there is no prompt {label}", remedy=f"{classes} are given, numbered from 0"
            )
        if label == classes:
            raise ConfigError(
                f"label {label} is the null class of guidance, not a class",
                remedy=f"use 0..{classes - 1}",
            )
        if not 0 <= label < classes:
            raise ConfigError(
                f"label {label} is out of range", remedy=f"the model has classes 0..{classes - 1}"
            )


def _refuse_seeds(seeds: Iterable[int]) -> None:
    """Raise ConfigError for the first seed that is none."""
    for seed in (_whole("seed", seed) for seed in seeds):
        if not 0 <= seed < 2**63:
            raise ConfigError(f"seed {seed} is out of range", remedy="use 0..2^63 - 1")


def _whole(what: str, value: SupportsIndex) -> int:
    try:
        return int(index(value))
    except TypeError:
        raise ConfigError(f"{what} {value!r} is no whole number", remedy="such as 3") from None


def balanced_labels(count: int, classes: int) -> list[int]:
    """`count` labels, every class as often as any other, in turn."""
    _check_count(count)
    return [image % classes for image in range(count)]


def random_labels(seeds: Sequence[int], classes: int) -> list[int]:
    """A label for each seed, any class as likely as any other: a function of that seed alone."""
    _check_count(len(seeds))
    return [int(float(uniforms(int(seed), "label", 0, 1)) * classes) for seed in seeds]


def _check_count(count: int) -> None:
    if not 1 <= count <= _MOST_IMAGES:
        more = "draw more in several calls, each with seeds of its own"
        raise ConfigError(
            f"count {count} is not in [1, {_MOST_IMAGES}]",
            remedy=more if count > 0 else "draw at least one",
        )
