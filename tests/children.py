"""Forked children: code that is to be killed, starved or refused."""

import json
import os
import signal
import warnings
from collections.abc import Callable
from typing import Any


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
