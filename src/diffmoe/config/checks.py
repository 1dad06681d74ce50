"""Ranges of numbers; a value outside is a ConfigError of one sentence. None is always inside."""

import math

from diffmoe.errors import ConfigError

__all__ = ["check_at_least", "check_positive", "check_within"]


def check_positive(group: str, record: object, *names: str) -> None:
    """Each named field is a finite number above 0."""
    for name in names:
        value = getattr(record, name)
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{group}.{name} {value} is not positive and finite")


def check_at_least(low: int, group: str, record: object, *names: str) -> None:
    """Each named field is a finite number, `low` or more."""
    for name in names:
        value = getattr(record, name)
        if value is not None and not low <= value < math.inf:
            raise ConfigError(
                f"{group}.{name} {value} is out of range", remedy=f"use {low} or more"
            )


def check_within(low: float, high: float, group: str, record: object, *names: str) -> None:
    """Each named field lies in [low, high]."""
    for name in names:
        value = getattr(record, name)
        if value is not None and not low <= value <= high:
            raise ConfigError(
                f"{group}.{name} {value} is not in [{low}, {high}]",
                remedy="choose a value inside of it",
            )
