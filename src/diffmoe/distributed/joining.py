"""How the processes of a run meet, and part again, be it because one of them fails."""

import gc
import itertools
import logging
import os
import secrets
import signal
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from diffmoe.distributed.board import Board, Who
from diffmoe.distributed.group import ALONE, Group, announced
from diffmoe.errors import ConfigError, DiffMoEError, PeerError

__all__ = ["is_of_peers", "joined", "told_by_first"]

_LOG = logging.getLogger("diffmoe")
_STARTS = itertools.count()  # groups that this program has made, the same on all its processes
_LONG = 15.0  # seconds of waiting for others, after which it is told


@contextmanager
def told_by_first() -> Iterator[None]:
    """Let the first process alone tell of a mistake that all of them find by themselves."""
    try:
        yield
    except DiffMoEError as error:
        error.told = announced()[0] != 0
        raise


@contextmanager
def joined(device: torch.device, timeout: float) -> Iterator[Group]:
    """The group of this process, as a launcher such as torchrun has described it.

    A process that fails tells the others why; they raise PeerError, which names it and says that.
    A process that does not answer for `timeout` seconds counts as hung.
    """
    if announced()[1] == 1:
        yield ALONE
        return
    group, board = _start(device, timeout)
    level = _LOG.level
    if not group.first:
        _LOG.setLevel(logging.ERROR)  # what all of them have to say, one says
    try:
        yield group
    except BaseException as error:
        if not is_of_peers(error):
            board.fail(error, lambda: _part(error))
            raise
        _part(error)
        raise board.cause(group.place) from error
    finally:
        _LOG.setLevel(level)
        _part()


def _part(error: BaseException | None = None) -> None:
    """Close the connections: others who wait for this process notice.

    An open connection lives as long as what refers to it, such as the frames of an error.
    """
    seen = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__
    if dist.is_initialized():
        failed = error is not None and dist.is_nccl_available() and "nccl" in dist.get_backend()
        # On GPUs a kernel that waits for who is gone would be waited for, too, unless aborted.
        thread = threading.Thread(target=_abort if failed else _destroy, daemon=True)
        thread.start()
        thread.join(_LONG)
        gc.collect()


def _destroy() -> None:
    with suppress(Exception):  # of peers that are gone
        dist.destroy_process_group()


def _abort() -> None:
    with suppress(Exception):
        dist.distributed_c10d._abort_process_group()


def _start(device: torch.device, timeout: float) -> tuple[Group, Board]:
    missing = [n for n in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(n)]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise ConfigError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']} and {', '.join(missing)} {verb} not set",
            remedy="start several processes with torchrun, or unset WORLD_SIZE",
        )
    if dist.is_initialized():
        raise ConfigError(
            "this program has a process group already, and a run makes its own",
            remedy="call torch.distributed.destroy_process_group() before",
        )
    backend = "gloo"
    patience = longer = timedelta(seconds=timeout)
    if device.type == "cuda":
        backend = "cpu:gloo,cuda:nccl"
        longer += timedelta(minutes=2)  # NCCL's watchdog kills: hosts are to speak before
        torch.cuda.set_device(device)
    met = None
    # A launcher's store outlives processes that it starts again, and the first run of a program.
    attempt = f"{os.environ.get('TORCHELASTIC_RESTART_COUNT')}/{next(_STARTS)}"
    try:
        with _ended_by_signals(), _telling_that_it_waits():
            store, rank, size = next(dist.rendezvous("env://", timeout=patience))
            met = dist.PrefixStore(f"met/{attempt}", store)
            met.set(str(rank), "")
            dist.init_process_group(
                backend,
                store=dist.PrefixStore(f"tensors/{attempt}", store),
                rank=rank,
                world_size=size,
                timeout=longer,
            )
            host = dist.new_group(backend="gloo", timeout=patience)
            group = Group(rank, size, host, patience)
            run = group.gather((secrets.token_hex(8), Who.own()))
    except (dist.DistError, RuntimeError, ValueError, OSError) as error:
        _part()
        raise _unmet(error, met) from error
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")  # nothing here is in place
    # A name of its own for each start: a launcher's store outlives those it starts again.
    words = dist.PrefixStore(f"said/{run[0][0]}", store)
    return group, Board(words, rank, [who for _, who in run], timeout)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGINT end the process at once, as nothing is written yet.

    Whoever waits for processes that never come is in the middle of library code, where no handler
    of Python's is called.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, signal.SIG_DFL) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def _telling_that_it_waits() -> Iterator[None]:
    """Tell, on the first process, of others that are long in coming."""
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    words = ("waiting for %s processes at %s", os.environ["WORLD_SIZE"], address)
    timer = threading.Timer(_LONG, _LOG.warning, words)
    timer.daemon = True
    if os.environ["RANK"] == "0":
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _unmet(error: Exception, met: Any) -> PeerError:
    """That not all have come, from one of those that have; `met` has their names, if reached."""
    why, told = str(error).splitlines()[0][:200], False
    with suppress(Exception):
        everybody = range(int(os.environ["WORLD_SIZE"]))
        absent = [str(rank) for rank in everybody if not met.check([str(rank)])]
        why = f"process {', '.join(absent)} did not come" if absent else why
        own = os.environ["RANK"]
        told = met.compare_set("speaker", "", own).decode() != own
    unmet = PeerError(
        f"cannot meet the other processes ({why})",
        where=f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}",
        remedy="check the address, that the port is free, and that all of them were started",
    )
    unmet.told = told
    return unmet


def is_of_peers(error: BaseException) -> bool:
    """Whether a collective failed, and so another process."""
    if isinstance(error, dist.DistError):
        return True
    told = ("gloo", "NCCL", "ProcessGroup", "Connection closed by peer", "Connection reset")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in told)
