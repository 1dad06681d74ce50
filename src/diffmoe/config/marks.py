"""What a change of a config field means for a run that exists.

IDENTITY fields make the run what it is: a change is refused. EXTEND fields may change when a
run goes on, MACHINE fields say where it runs and change no result beyond rounding. A mark on a
group holds for all of its fields but those that carry their own.
"""

from dataclasses import dataclass

__all__ = ["EXTEND", "IDENTITY", "MACHINE", "Mark"]


@dataclass(frozen=True)
class Mark:
    """What a change of a config field means for a run that exists."""

    name: str


IDENTITY, EXTEND, MACHINE = Mark("identity"), Mark("extend"), Mark("machine")
