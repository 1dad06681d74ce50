"""What processes of one run say to each other when collectives fail: who has failed, and why.

The words lie in the store that the processes met by. The first process to say something is
believed by the others, so all of them end with one cause, told once.
"""

import json
import os
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from diffmoe.errors import DiffMoEError, ExitCode, PeerError

__all__ = ["Board", "Who"]

_PATIENCE = 1.5  # seconds that others have to say what they met, or to read what was said
_LOOK = 0.05  # seconds between two looks
_GO_ON = "look at its log; the same command goes on from the last checkpoint"


class Who(NamedTuple):
    """A process, as others can find it."""

    host: str
    pid: int
    space: str  # in which the pid counts; empty where the system does not tell

    @staticmethod
    def own() -> "Who":
        """This process."""
        space = ""
        with suppress(OSError):
            space = str(Path("/proc/self/ns/pid").readlink())
        return Who(socket.gethostname(), os.getpid(), space)

    @property
    def is_gone(self) -> bool:
        """Whether it has certainly ended: known of processes of this machine only."""
        here = Who.own()
        if not self.space or (self.host, self.space) != (here.host, here.space):
            return False
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            return True
        return state in "ZX"  # ended, and not yet fetched by what started it


class Board:
    """The words of a run's processes; `timeout` is how long a collective of theirs waits."""

    def __init__(self, store: Any, rank: int, everybody: list[Who], timeout: float) -> None:
        self._store, self._rank, self._everybody = store, rank, everybody
        self._timeout = timeout

    def fail(self, error: BaseException, part: Callable[[], None]) -> None:
        """Say why this process fails, unless another has; `told` is set if that is the same.

        Then `part` with the others: they notice, and find the words.
        """
        if getattr(error, "told", False):
            part()
            return
        own = [self._rank, _words(error), False]
        with suppress(Exception):  # what it fails of is more important
            first = self._say(own)
            error.told = first != own and first[1] == own[1]  # type: ignore[attr-defined]
        if not getattr(error, "told", False):
            _record(error)
        part()
        self._leave()

    def cause(self, place: str) -> PeerError:
        """Why a collective failed, which this process waited for in `place`."""
        try:
            found = self._cause(place)
        except Exception:  # of a store that is gone
            return self._no_word(place)
        self._leave()
        return found

    def _cause(self, place: str) -> PeerError:
        self._store.set(f"there/{self._rank}", "")
        end = time.monotonic() + _PATIENCE
        while True:
            away = [r for r in self._others if not self._store.check([f"there/{r}"])]
            gone = [r for r in away if self._everybody[r].is_gone]
            if self._store.check(["failure"]):  # after the look: who goes says so before
                return self._passed_on(*json.loads(self._store.get("failure")))
            if gone or not away or time.monotonic() > end:
                break
            time.sleep(_LOOK)
        verdict = self._verdict(gone, away, place)
        own = [self._rank, str(verdict), True]
        first = self._say(own)
        return verdict if first == own else self._passed_on(*first)

    @property
    def _others(self) -> list[int]:
        return [rank for rank in range(len(self._everybody)) if rank != self._rank]

    def _say(self, own: list[Any]) -> list[Any]:
        """What was said first, by this process or another."""
        first: list[Any] = json.loads(self._store.compare_set("failure", "", json.dumps(own)))
        return first

    def _passed_on(self, rank: int, told: str, of_peers: bool) -> PeerError:
        """What process `rank` has said: of itself, or of others, which it then tells the user."""
        if of_peers:
            error = PeerError(told)
            error.told = True
            return error
        error = PeerError(f"process {self._name(rank)} failed: {told}")
        speaker = self._store.compare_set("speaker", "", str(self._rank)).decode()
        error.told = speaker != str(self._rank)
        return error

    def _verdict(self, gone: list[int], away: list[int], place: str) -> PeerError:
        if gone:
            names, verb = self._names(gone), "is gone" if len(gone) == 1 else "are gone"
            remedy = f"killed, crashed or out of memory: {_GO_ON}"
        elif away:
            names, verb = self._names(away), "does not answer"
            verb = verb if len(away) == 1 else "do not answer"
            remedy = (
                "it hangs, cannot be reached, or worked alone for longer than machine.timeout"
                f" {self._timeout:g} s: {_GO_ON}"
            )
        else:
            names, verb = "the processes", "lost each other"
            remedy = "check the network; the same command goes on from the last checkpoint"
        return PeerError(f"{names} {verb}", where=f"waited for in {place}", remedy=remedy)

    def _no_word(self, place: str) -> PeerError:
        """What is left to say where process 0, or the launcher, took all words with it."""
        gone = [rank for rank in self._others if self._everybody[rank].is_gone]
        error = self._verdict(gone or [0] * (self._rank != 0), [], place)
        error.told = self._rank != min({0, 1} - set(gone), default=self._rank)
        return error

    def _names(self, ranks: list[int]) -> str:
        return "; ".join(f"process {self._name(rank)}" for rank in ranks)

    def _name(self, rank: int) -> str:
        who = self._everybody[rank]
        return f"{rank} ({who.host}, pid {who.pid})"

    def _leave(self) -> None:
        """Go; if the words go with this process, once the others have read them."""
        with suppress(Exception):
            self._store.set(f"left/{self._rank}", "")
            hosts = self._rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
            end = time.monotonic() + (_PATIENCE if hosts else 0.0)
            while time.monotonic() < end and not all(map(self._has_left, self._others)):
                time.sleep(_LOOK)

    def _has_left(self, rank: int) -> bool:
        return self._store.check([f"left/{rank}"]) or self._everybody[rank].is_gone


def _record(error: BaseException) -> None:
    """Give torchrun a failure for its own report; a stop that was asked for is none."""
    asked_for = getattr(error, "exit_code", None) == ExitCode.RESUMABLE
    if asked_for or "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return
    more = {"timestamp": str(int(time.time()))}
    if not isinstance(error, DiffMoEError):  # shown instead of the message, where it is there
        more["py_callstack"] = "".join(traceback.format_exception(error))
    with suppress(OSError):
        Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(
            json.dumps({"message": {"message": _words(error), "extraInfo": more}})
        )


def _words(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return str(error) if isinstance(error, DiffMoEError) else f"{type(error).__name__}: {error}"
