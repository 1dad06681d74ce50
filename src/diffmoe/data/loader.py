"""Reading ahead in worker processes that leave signals to the main process."""

import ctypes
import functools
import os
import signal
import threading
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

__all__ = ["read_ahead"]

_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


def read_ahead(
    items: Dataset[Any], order: Iterable[Any], *, workers: int, pin: bool, keep: bool = False
) -> DataLoader[Any]:
    """Items in an order, ahead of time in worker processes if there are any.

    With `keep`, workers live on when the order is at its end, for the next one.
    """
    return DataLoader(
        items,
        sampler=order,
        batch_size=None,  # what is read together is one item, so a worker reads it from end to end
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=pin,
        worker_init_fn=functools.partial(_leave_signals, os.getpid()),
        generator=torch.Generator(),  # the loader draws a number; not from the global generator
        persistent_workers=keep and workers > 0,
    )


def _as_it_is(item: Any) -> Any:
    return item


def _leave_signals(main: int, worker: int) -> None:
    """Leave interruption to the main process: it saves its work, then ends its workers.

    SIGTERM counts from the main process only. To ignore it altogether would keep the main process
    from ever ending where an exception holds on to the loader.
    """
    _end_with(main)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_told, args=(main,), daemon=True).start()


def _end_with(main: int) -> None:
    """End when the main process is killed, where the system can see to it (Linux).

    A worker has the main process's connections too: as long as it lives, nobody notices that the
    main process is gone.
    """
    try:
        prctl = ctypes.CDLL(None).prctl
    except (AttributeError, OSError, TypeError):
        return
    prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != main:  # gone before that
        os._exit(1)


def _end_when_told(main: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != main:
        pass
    os._exit(0)
