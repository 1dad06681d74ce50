"""When a run is asked to stop before its end: signals, and the time it was given."""

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Stop", "reason"]

_TIME = 10**6
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stop:
    """A wish to stop, from SIGINT, SIGTERM or SIGUSR1, or once `seconds` have gone by.

    A second signal acts as it did before, but for one within `patience` seconds: launchers, and
    what ends them, may send the same wish twice. Handlers are set inside of the `with` block, and
    only in the main thread, which alone may set them.
    """

    def __init__(self, seconds: float | None = None, patience: float = 0.0) -> None:
        self._patience, self._asked_at = patience, 0.0
        self._end = None if seconds is None else time.monotonic() + seconds
        self._signal: int | None = None
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> int:
        """A signal by its number, or a larger one for the time; 0 if nothing asked to stop."""
        if self._signal is not None:
            return self._signal
        return _TIME if self._end and time.monotonic() >= self._end else 0

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in _SIGNALS}
            for number in _SIGNALS:
                signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._signal is None:
            self._signal, self._asked_at = number, now
            if self._patience:
                return
        elif now < self._asked_at + self._patience:
            return
        for each, before in self._before.items():
            signal.signal(each, before)
        if self._patience:  # this one is the second, and was meant
            os.kill(os.getpid(), number)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)


def reason(asked: int) -> str:
    """What asked to stop, in words."""
    return "at the end of its time" if asked == _TIME else f"by {signal.Signals(asked).name}"
