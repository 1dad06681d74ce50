"""The verbs that put numbers to images: evaluate and compare."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffmoe.arguments import EvaluateCommand, EvaluateRunCommand, parse
from diffmoe.cli.words import config_of, first, set_mode
from diffmoe.console import evaluation_lines
from diffmoe.errors import ConfigError

if TYPE_CHECKING:
    from diffmoe.experiments import Evaluated

__all__ = ["compare", "evaluate"]

_COMPARE = """usage: diffmoe compare A.json B.json

Put two files that diffmoe evaluate wrote side by side: first what differs in their protocols
(reference, network, number of images, settings, versions), then how the samples were made, then
each number of both. Where protocols differ, it says that the numbers are not comparable."""


def evaluate(words: list[str]) -> None:
    """Compare images, or images drawn from a run, with a reference, or with their prompts."""
    name, rest = first(words, "evaluate", "RUN|FOLDER|NPZ", EvaluateCommand)
    if (Path(name) / "config.yaml").is_file():
        _evaluate_run(name, rest)
        return
    command = parse(EvaluateCommand, EvaluateCommand(), rest, f"diffmoe evaluate {name}")
    from diffmoe.experiments import evaluate, make_statistics

    shared: dict[str, Any] = {
        "network": command.network,
        "weights": command.network_weights,
        "count": command.count,
        "device": command.device,
        "progress": not command.quiet,
    }
    if command.statistics is None:
        _refuse(command.side is not None, "--side goes with --statistics", "leave it out")
        found = evaluate(name, command.reference, crop=command.crop, out=command.out, **shared)
        _tell(_lines(found))
        return
    idle = command.reference is not None or command.out is not None or command.crop
    _refuse(
        idle,
        "--statistics makes a reference of the images and compares them with nothing",
        "leave out --reference, --crop and --out",
    )
    made = make_statistics(name, command.statistics, crop=command.side, **shared)
    _tell([f"statistics: {made}"])


def _evaluate_run(name: str, words: list[str]) -> None:
    default = EvaluateRunCommand(settings=config_of(name).sampling)
    command = parse(EvaluateRunCommand, default, words, f"diffmoe evaluate {name}")
    set_mode(command.strict)
    from diffmoe.device import keep_freed_memory
    from diffmoe.experiments import evaluate

    keep_freed_memory()
    found = evaluate(
        name,
        command.reference,
        network=command.network,
        weights=command.network_weights,
        count=command.count,
        crop=command.crop,
        settings=command.settings,
        first_seed=command.seed,
        out=command.out,
        device=command.device,
        progress=not command.quiet,
    )
    _tell(_lines(found))


def _lines(found: "Evaluated") -> list[str]:
    """What an evaluation says in its own words, or else what all do."""
    if found.summary:
        return [*found.summary, f"all of it: {found.path}"]
    return evaluation_lines(found)


def _tell(lines: list[str]) -> None:
    """Print lines, of several processes the first."""
    from diffmoe.device import is_first_process

    if is_first_process():
        print("\n".join(lines))


def _refuse(wrong: bool, what: str, remedy: str) -> None:
    if wrong:
        raise ConfigError(what, remedy=remedy)


def compare(words: list[str]) -> None:
    """Put two evaluations side by side, what differs in their protocols first."""
    if words and words[0] in ("-h", "--help"):
        print(_COMPARE)
        return
    flags = [word for word in words if word.startswith("-")]
    if flags or len(words) != 2:
        given = f"{len(words) or 'none'} {'was' if len(words) < 2 else 'were'} given"
        raise ConfigError(
            f"unknown flag {flags[0]}" if flags else f"diffmoe compare needs two files, {given}",
            remedy="see diffmoe compare --help",
        )
    from diffmoe.experiments import compare

    print("\n".join(compare(*words).lines()))
