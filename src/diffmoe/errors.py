"""What can go wrong, and the exit code a user's shell sees for it."""

from collections.abc import Iterable
from enum import IntEnum

__all__ = [
    "AbandonedWriteError",
    "ConfigError",
    "DataError",
    "DiffMoEError",
    "ExitCode",
    "NoRunError",
    "NonFiniteError",
    "PeerError",
    "StoppedError",
    "StorageError",
]


class ExitCode(IntEnum):
    """Exit codes of every verb."""

    DONE = 0
    BAD_INPUT = 2
    BAD_DATA = 3
    NON_FINITE = 4
    STORAGE = 5
    DISTRIBUTED = 6
    RESUMABLE = 75


class DiffMoEError(Exception):
    """A mistake a user can mend; reads as one sentence: what, where, what to do.

    `told` if another process of the same run prints it.
    """

    exit_code = ExitCode.BAD_INPUT
    told: bool = False

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        super().__init__(" — ".join(part for part in (what, where, remedy) if part))


class ConfigError(DiffMoEError, ValueError):
    """A setting or argument is out of range, misspelt or in conflict with another.

    Of several at once, `mistakes` has a sentence for each and `head` what is to say of them all.
    """

    head: str = ""
    mistakes: tuple[str, ...] = ()

    @staticmethod
    def of(
        mistakes: Iterable[str], what: str = "", *, where: str = "", remedy: str = ""
    ) -> "ConfigError":
        """One error of all mistakes, the same told once; as text it is one line."""
        told = tuple(dict.fromkeys(mistakes))
        joined = ": ".join(filter(None, (what, "; ".join(told))))
        error = ConfigError(joined, where=where, remedy=remedy)
        if len(told) > 1:
            count = ", ".join(filter(None, (what, f"{len(told)} mistakes")))
            error.head = str(ConfigError(count, where=where, remedy=remedy))
            error.mistakes = told
        return error


class NoRunError(ConfigError):
    """The folder that was named as a run is none."""

    def __init__(self, where: str) -> None:
        super().__init__(
            "this folder is no run: it has no config.yaml",
            where=where,
            remedy="give the folder of a training run, or train one: diffmoe train PRESET",
        )


class DataError(DiffMoEError):
    """An image, latent or label cannot be used."""

    exit_code = ExitCode.BAD_DATA


class NonFiniteError(DiffMoEError):
    """Training or sampling met NaN or infinity and stopped."""

    exit_code = ExitCode.NON_FINITE


class StorageError(DiffMoEError):
    """A file cannot be written or read, or is not what its manifest says."""

    exit_code = ExitCode.STORAGE


class PeerError(DiffMoEError):
    """Another process of the same run has failed, hangs, or is not what this one is."""

    exit_code = ExitCode.DISTRIBUTED


class AbandonedWriteError(KeyboardInterrupt):
    """A user stopped twice while a checkpoint was being written in the background.

    The thread that writes is still at work: only `os._exit` ends the process without harm.
    """


class StoppedError(DiffMoEError):
    """A signal asked the run to stop; it saved a checkpoint and the same command resumes it."""

    exit_code = ExitCode.RESUMABLE
