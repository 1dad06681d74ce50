"""Spans of time as words: as people write them, and as batch systems do."""

import re

from diffmoe.errors import ConfigError

__all__ = ["duration"]

_CLOCK = re.compile(r"(?:([0-9]+)-)?([0-9]+):([0-5][0-9]):([0-5][0-9])")
_AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhd])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}  # seconds


def duration(word: str) -> float:
    """The seconds that a word such as 90m, 1:30:00 or 2-12:00:00 says; ConfigError for another.

    Days and hours have any number of digits, minutes and seconds two, as SLURM prints them.
    """
    if clock := _CLOCK.fullmatch(word):
        days, hours, minutes, seconds = (int(part or 0) for part in clock.groups())
        return 86400 * days + 3600 * hours + 60 * minutes + seconds
    found = _AMOUNT.fullmatch(word)
    if found is None:
        raise ConfigError(
            f"--max-time {word} is no time", remedy="say 90m, 3.5h, 1d, 01:30:00 or 2-12:00:00"
        )
    return float(found[1]) * _UNITS[found[2]]
