"""The front door: words in, a verb run, an exit code out."""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import NoReturn

from diffmoe.cli.verbs import VERBS, verb
from diffmoe.console import sentence, usage, versions
from diffmoe.errors import AbandonedWriteError, DiffMoEError, ExitCode, StoppedError

__all__ = ["main"]

_SHARED = ("train", "prepare", "sample", "evaluate")  # verbs whose work processes share


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit code, after one line on stderr when it failed."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    # Threads that wait by spinning make a shared machine many times slower than sleeping ones.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.basicConfig(format="%(message)s")
    logging.getLogger("diffmoe").setLevel(logging.INFO)
    if not words or words[0] in ("-h", "--help"):
        print(usage({name: row[1:] for name, row in VERBS.items()}))
        return ExitCode.DONE
    if words == ["--version"]:
        print(versions())
        return ExitCode.DONE
    if words[0] not in _SHARED and os.environ.get("RANK", "0") not in ("", "0"):
        return ExitCode.DONE  # the first process does it all
    try:
        with _stopped_by_signals(), _modes_of_one_verb():
            verb(words[0])(words[1:])
        sys.stdout.flush()  # a reader that is gone is noticed here, not when Python ends
    except DiffMoEError as error:
        return _fail(error, error.exit_code, debug)
    except BrokenPipeError:
        return _leave_quietly()
    except OSError as error:
        return _fail(error, ExitCode.STORAGE, debug)
    except AbandonedWriteError as interrupt:
        _leave_the_writer(getattr(interrupt, "told", False))
    except KeyboardInterrupt as interrupt:
        stopped = StoppedError(
            "interrupted", remedy="no half-written file is left; give the same command again"
        )
        stopped.told = getattr(interrupt, "told", False)
        return _fail(stopped, stopped.exit_code, debug)
    except SystemExit as stop:
        return int(stop.code or 0)
    return ExitCode.DONE


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """SIGTERM and SIGUSR1 end a verb as Ctrl-C does: no half-written file stays behind."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may
        return
    numbers = (signal.SIGTERM, signal.SIGUSR1)
    before = [signal.signal(number, stop) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def _modes_of_one_verb() -> Iterator[None]:
    """What a verb sets in the environment is gone behind it: a program may call the next."""
    names = ("DIFFMOE_STRICT", "MKL_CBWR")
    before = {name: os.environ[name] for name in names if name in os.environ}
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(before)


def _leave_the_writer(told: bool) -> NoReturn:
    """End the process at once: Python's own end would stop the thread that writes in mid-air."""
    if not told:
        print(
            "diffmoe: interrupted while a checkpoint was being written — the same command goes on"
            " from the one before it",
            file=sys.stderr,
            flush=True,
        )
    sys.stdout.flush()
    os._exit(ExitCode.RESUMABLE)


def _leave_quietly() -> ExitCode:
    """The exit code when nobody reads the output: whoever closed it, `head` say, knows why."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return ExitCode.STORAGE


def _fail(error: Exception, code: ExitCode, debug: bool) -> int:
    if debug:
        raise error
    kind = "" if code == ExitCode.RESUMABLE else "error: "  # a stop that was asked for is none
    if not getattr(error, "told", False):
        print(f"diffmoe: {kind}{sentence(error)}", file=sys.stderr, flush=True)
    if code == ExitCode.DISTRIBUTED:
        # A thread may still write its part of a checkpoint that will never be whole.
        sys.stdout.flush()
        os._exit(code)
    return code
