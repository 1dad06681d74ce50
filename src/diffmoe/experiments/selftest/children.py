"""Forked children: code that is to be killed, starved, signalled or asked for its answer."""

import json
import logging
import os
import select
import signal
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from diffmoe.errors import DiffMoEError

__all__ = [
    "ORPHANED",
    "Answer",
    "Child",
    "begin",
    "fork",
    "kill",
    "outcome",
    "read_all",
    "wait_for",
]

_LOOK = 0.01  # seconds between two looks at a child
ORPHANED = 0.25  # seconds after which a child notices at the latest that its parent is gone


def fork(work: Callable[[int], object]) -> tuple[int, int]:
    """Run `work(pipe)` in a child that then ends; returns its id and the pipe's reading end."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of threads, which lie idle here
        child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    code = 1
    try:
        os.close(reading)
        work(writing)
        code = 0
    finally:
        os._exit(code)


def kill(child: int) -> None:
    """SIGKILL a child and wait until it is gone."""
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def read_all(pipe: int) -> bytes:
    """What a dead child has written."""
    with os.fdopen(pipe, "rb") as stream:
        return stream.read()


def outcome(work: Callable[[], Any]) -> Any:
    """What `work` returns in a child (as JSON), or [class name, message] of what it raises."""

    def report(pipe: int) -> None:
        try:
            result = work()
        except BaseException as error:
            result = [type(error).__name__, str(error)]
        os.write(pipe, json.dumps(result).encode())

    child, pipe = fork(report)
    os.waitpid(child, 0)
    return json.loads(read_all(pipe))


def wait_for(happened: Callable[[], object], seconds: float = 30.0) -> bool:
    """Whether something happened before so many seconds were over."""
    end = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > end:
            return False
        time.sleep(_LOOK)
    return True


class Answer(NamedTuple):
    """What became of a child's work: a value, an error, or a signal that killed it."""

    value: Any = None
    error: str = ""  # class of what it raised; `silence` of a child that never ended
    said: str = ""
    exit_code: int | None = None  # of an error that users are told
    signal: int = 0

    @property
    def told(self) -> str:
        """The answer in a few words."""
        if self.signal:
            return f"ended by {signal.Signals(self.signal).name}"
        what = self.said.partition(" — ")[0]
        return f"{self.error}: {what}" if self.error else "no error"


@dataclass
class Child:
    """A child at work in a process group of its own, with all that it starts."""

    pid: int
    pipe: int
    _status: int | None = None

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        if self._status is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = status if found else None
        return self._status is not None

    def wait_for(self, happened: Callable[[], object]) -> bool:
        """Whether something happened before the child ended, or was waited for in vain."""
        return wait_for(lambda: self.is_over or happened()) and bool(happened())

    def send(self, number: int) -> None:
        """Send a signal to the whole group, as schedulers do."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def end(self) -> None:
        """SIGKILL what is left of it, and wait until it is gone."""
        self.send(signal.SIGKILL)
        if self._status is None:
            self._status = os.waitpid(self.pid, 0)[1]
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1

    def answer(self, seconds: float = 60.0) -> Answer:
        """What its work came to, within so many seconds; afterwards it is gone."""
        said, end = b"", time.monotonic() + seconds
        while not self.is_over and time.monotonic() < end:
            said += self._read(_LOOK)
        while more := self._read(0):
            said += more
        silent = not self.is_over
        self.end()
        if silent:
            return Answer(error="silence", said=f"no answer within {seconds:.0f} s")
        if self._status and os.WIFSIGNALED(self._status):
            return Answer(signal=os.WTERMSIG(self._status))
        return Answer(**json.loads(said)) if said else Answer(error="nothing", said="it just ended")

    def _read(self, seconds: float) -> bytes:
        ready = select.select([self.pipe], [], [], seconds)[0]
        found = os.read(self.pipe, 1 << 16) if ready else b""
        if ready and not found:
            time.sleep(seconds)  # closed: only its end is waited for
        return found


def begin(work: Callable[[], Any]) -> Child:
    """Start `work` in a child, without its words on the terminal; it ends if its parent does."""
    parent = os.getpid()

    def answer(pipe: int) -> None:
        _settle(parent)
        try:
            found = Answer(work())
        except DiffMoEError as error:
            found = Answer(None, type(error).__name__, str(error), int(error.exit_code))
        except BaseException as error:
            found = Answer(None, type(error).__name__, str(error))
        content = json.dumps(found._asdict()).encode()
        while content:
            content = content[os.write(pipe, content) :]

    pid, pipe = fork(answer)
    with suppress(PermissionError, ProcessLookupError):
        os.setpgid(pid, pid)  # here and there: whichever comes first
    return Child(pid, pipe)


def _settle(parent: int) -> None:
    """Make a fresh child a process of its own: group, signals, silence, no accelerator."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a device cannot be used on both sides of a fork
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(ORPHANED)
    os._exit(1)
