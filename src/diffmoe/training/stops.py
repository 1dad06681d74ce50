"""When a run is asked to stop before its end: signals, and the time it was given."""

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Stop"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stop:
    """A wish to stop, from SIGINT, SIGTERM or SIGUSR1, or once `seconds` have gone by.

    A second signal acts as it did before. Handlers are set inside of the `with` block, and only
    in the main thread, which alone may set them.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds
        self._signal: int | None = None
        self._before: dict[int, Any] = {}

    @property
    def reason(self) -> str:
        """What asked to stop; empty if nothing did."""
        if self._signal is not None:
            return f"by {signal.Signals(self._signal).name}"
        return "at the end of its time" if self._end and time.monotonic() >= self._end else ""

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in _SIGNALS}
            for number in _SIGNALS:
                signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        for each, before in self._before.items():
            signal.signal(each, before)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
