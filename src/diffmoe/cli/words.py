"""What verbs do with their words alike."""

import itertools
import os
import shlex
from pathlib import Path
from typing import Any

from diffmoe.arguments import parse
from diffmoe.config import RunConfig, read_config
from diffmoe.errors import ConfigError, ExitCode, NoRunError

__all__ = ["config_of", "first", "of_run", "refuse_nameless", "set_mode"]


def first(words: list[str], verb: str, wanted: str, record: type) -> tuple[str, list[str]]:
    """The word a verb begins with; help without it, or an error."""
    if words and words[0] and not words[0].startswith("-"):
        return words[0], words[1:]
    if words and words[0] in ("-h", "--help"):
        print(f"usage: diffmoe {verb} {wanted} [--field.name VALUE]\n\n{record.__doc__}\n")
        print(
            f"`diffmoe {verb} {wanted} --help` with a real name lists the fields and their values."
        )
        raise SystemExit(ExitCode.DONE)
    place = " as its first word, before any flag" if words else ""
    raise ConfigError(f"diffmoe {verb} needs {wanted}{place}", remedy=f"see diffmoe {verb} --help")


def config_of(run: str) -> RunConfig:
    """The config of the run of that name; raises NoRunError if there is none."""
    path = Path(run) / "config.yaml"
    if not path.is_file():
        raise NoRunError(run)
    return read_config(path)


def of_run(verb: str, record: type, words: list[str]) -> tuple[str, Any, dict[str, Any]]:
    """The run whose images a verb looks at, the words as a record, and what all such verbs take."""
    name, rest = first(words, verb, "RUN", record)
    default = record(settings=config_of(name).sampling)
    command = parse(record, default, rest, f"diffmoe {verb} {name}")
    set_mode(command.strict)
    shared = {
        "count": command.count,
        "first_seed": command.seed,
        "settings": command.settings,
        "device": command.device,
        "command": shlex.join(["diffmoe", verb, *words]),
        "progress": not command.quiet,
    }
    return name, command, shared


def set_mode(strict: bool) -> None:
    """Turn strict sampling on for this verb, before torch loads: MKL reads its mode once."""
    if strict:
        os.environ["DIFFMOE_STRICT"] = "1"
        os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")


def refuse_nameless(words: list[str]) -> None:
    """Raise ConfigError for an empty --run, which a path would take for the folder one is in."""
    if "--run=" in words or ("--run", "") in itertools.pairwise(words):
        raise ConfigError("--run is empty", remedy="name a folder, say runs/mine")
