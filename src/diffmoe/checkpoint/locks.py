"""Locks that a process does not pass on to the processes it starts by a fork."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["unshared"]

_OWN: set[int] = set()


def _let_go() -> None:
    """In a fresh child: put nothing in the place of each locked file.

    A lock of a whole file lasts until the last process that has it open is gone: readers that
    outlive a killed job for some seconds would keep the next one out.
    """
    for handle in _OWN:
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, handle)
        os.close(nothing)
    _OWN.clear()


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def unshared(handle: int) -> Iterator[None]:
    """While it lasts, children that are forked do not get the open file `handle`."""
    _OWN.add(handle)
    try:
        yield
    finally:
        _OWN.discard(handle)
