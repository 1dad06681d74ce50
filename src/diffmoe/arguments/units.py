"""Amounts with a unit, as people write them."""

import re
from collections.abc import Mapping

from diffmoe.errors import ConfigError

__all__ = ["BYTES", "OPERATIONS", "SPEEDS", "amount"]

BYTES = {
    **{f"{prefix}B": 1000.0**power for power, prefix in enumerate("KMGT", 1)},
    **{f"{prefix}iB": 1024.0**power for power, prefix in enumerate("KMGT", 1)},
}
SPEEDS = {f"{unit}/s": size for unit, size in BYTES.items()}  # bytes a second
OPERATIONS = {"GFLOPS": 1e9, "TFLOPS": 1e12, "PFLOPS": 1e15}  # a second

_AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z/]+)")


def amount(flag: str, word: str, units: Mapping[str, float]) -> float:
    """What `word` says in the basic unit; ConfigError, naming the flag, for what is no amount."""
    found = _AMOUNT.fullmatch(word.strip())
    known = {unit.lower(): size for unit, size in units.items()}
    if found is None or found[2].lower() not in known:
        raise ConfigError(
            f"{flag} {word} is no amount with a unit", remedy=f"say one of {', '.join(units)}"
        )
    value = float(found[1]) * known[found[2].lower()]
    if not value > 0:
        raise ConfigError(f"{flag} {word} is not positive", remedy="leave it out for the default")
    return value
