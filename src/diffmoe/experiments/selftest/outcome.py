"""What a drill is, and what came of it."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

__all__ = ["Drill", "NotTriedError", "Outcome", "Trial", "brief", "tallied"]

_KINDS = 4  # of what was seen are told


class Trial(NamedTuple):
    """One fault that was tried: whether the promise held, and what was seen."""

    held: bool
    seen: str


class NotTriedError(Exception):
    """A drill cannot run on this machine or file system; says why."""


Work = Callable[[Path, int, int], Iterable[Trial]]  # (an empty folder, seed, how many)


@dataclass(frozen=True)
class Drill:
    """A fault that is caused on purpose, as often as `count` says, and what then holds."""

    name: str
    promise: str
    work: Work
    count: int
    is_storage: bool = False  # a break of it is the disk's or file system's, or their handling


@dataclass(frozen=True)
class Outcome:
    """What came of a drill: a promise is kept where it held as often as it was tried."""

    name: str
    promise: str
    tried: int
    held: int
    seen: str
    is_storage: bool
    not_tried: str = ""  # why; then nothing is known
    seconds: float = 0.0

    @property
    def is_broken(self) -> bool:
        """Whether the promise was not kept, or nothing at all was tried without a reason."""
        return not self.not_tried and not 0 < self.held == self.tried


def tallied(drill: Drill, folder: Path, seed: int) -> Outcome:
    """The outcome of a drill; what its work raises is a trial that did not hold."""
    facts = (drill.name, drill.promise)
    trials: list[Trial] = []
    try:
        trials.extend(_guarded(drill.work(folder, seed, drill.count)))
    except NotTriedError as reason:
        return Outcome(*facts, 0, 0, "", drill.is_storage, not_tried=str(reason))
    broken = [trial for trial in trials if not trial.held]
    told = broken or trials
    return Outcome(
        *facts,
        tried=len(trials),
        held=len(trials) - len(broken),
        seen=_summary(trial.seen for trial in told),
        is_storage=drill.is_storage,
    )


def _guarded(trials: Iterable[Trial]) -> Iterator[Trial]:
    try:
        yield from trials
    except NotTriedError:
        raise
    except Exception as error:
        yield Trial(False, f"{type(error).__name__}: {brief(error)}")


def brief(error: Exception) -> str:
    """What an error says, without where and what to do, on a line that is not too long."""
    return " ".join(str(error).partition(" — ")[0].split())[:200]


def _summary(seen: Iterable[str]) -> str:
    """What was seen and how often, the most frequent first."""
    counted = Counter(seen).most_common()
    told = [f"{times} x {what}" if times > 1 else what for what, times in counted[:_KINDS]]
    more = len(counted) - len(told)
    return ", ".join(told) + (f" and {more} other things" if more > 0 else "")
