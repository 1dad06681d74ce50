"""The verbs that draw from a run: sample, report, analyze and sweep."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from diffmoe.arguments import (
    AnalyzeCommand,
    ReportCommand,
    SampleCommand,
    SweepCommand,
    parse,
)
from diffmoe.cli.words import config_of, first, of_run, set_mode
from diffmoe.config import RunConfig
from diffmoe.console import report_lines
from diffmoe.errors import ConfigError

if TYPE_CHECKING:
    from diffmoe.experiments import Asked

__all__ = ["analyze", "report", "sample", "sweep"]


def sample(words: list[str]) -> None:
    """Draw images from a run."""
    name, rest = first(words, "sample", "RUN", SampleCommand)
    config = config_of(name)
    default = SampleCommand(settings=config.sampling)
    command = parse(SampleCommand, default, rest, f"diffmoe sample {name}")
    set_mode(command.strict)
    from diffmoe.device import is_first_process
    from diffmoe.experiments import draw_samples

    asked = (_prompted if config.model.reads_text else _classes)(name, config, command)
    found = draw_samples(
        name,
        asked.labels,
        asked.seeds,
        settings=command.settings,
        prompts=asked.prompts,
        law=asked.law,
        out=command.out,
        format=asked.format,
        device=command.device,
        capture=command.capture,
        progress=not command.quiet,
    )
    if is_first_process():
        print("\n".join(found.lines))


def _classes(name: str, config: RunConfig, command: SampleCommand) -> "Asked":
    """Images of classes; ConfigError if prompts are given."""
    from diffmoe.experiments import Asked, class_numbers, request, trained_classes
    from diffmoe.sampling import refuse_prompts

    if command.prompts or command.prompt_file is not None or command.geneval is not None:
        refuse_prompts(config)
    asked, classes = class_numbers(name, command.labels), config.model.num_classes
    labels, seeds = request(
        asked,
        command.seeds,
        command.count,
        classes if asked else trained_classes(name, classes),
        law=command.law,
        first_seed=command.seed,
    )
    return Asked(labels, seeds, law="given" if asked else command.law, format=command.format)


def _prompted(name: str, config: RunConfig, command: SampleCommand) -> "Asked":
    """Images of prompts; ConfigError if classes are given."""
    from diffmoe.experiments import (
        asked_of_metadata,
        prompted,
        read_metadata,
        read_prompt_file,
        refuse_no_text,
    )

    if command.labels:
        raise ConfigError(
            "the run reads captions, and knows no classes", remedy="give --prompts instead"
        )
    refuse_no_text([command.settings.negative], "negative prompt")
    if command.geneval is not None:
        lines = read_metadata(command.geneval)
        return asked_of_metadata(lines, command.count_each, command.seed)
    file = command.prompt_file
    asked = prompted(
        name,
        command.prompts if file is None else read_prompt_file(file),
        command.seeds,
        command.count,
        law=command.law,
        first_seed=command.seed,
    )
    return replace(asked, format=command.format)


def report(words: list[str]) -> None:
    """Sample a run and write its report."""
    name, _, shared = of_run("report", ReportCommand, words)
    from diffmoe.experiments import report

    print("\n".join(report_lines(report(name, **shared))))


def analyze(words: list[str]) -> None:
    """Write where the compute of a run goes."""
    name, command, shared = of_run("analyze", AnalyzeCommand, words)
    from diffmoe.device import keep_freed_memory
    from diffmoe.experiments import analyze

    keep_freed_memory()
    found = analyze(
        name,
        classes=_mapped(name, command.classes),
        maps=command.maps,
        frames=command.frames,
        out=command.out,
        **shared,
    )
    print("\n".join([*found.lines, f"all of it: {found.page}"]))


def _mapped(name: str, words: Sequence[str]) -> tuple[int, ...]:
    """The classes, or the prompts, whose images are to be mapped."""
    from diffmoe.experiments import class_numbers

    if config_of(name).model.reads_text and not all(map(str.isdecimal, words)):
        raise ConfigError(
            "prompts are mapped by their numbers",
            remedy="leave --classes out, and see the table of prompts for them",
        )
    return class_numbers(name, words)


def sweep(words: list[str]) -> None:
    """Draw quality against capacity and time."""
    name, command, shared = of_run("sweep", SweepCommand, words)
    from diffmoe.device import keep_freed_memory
    from diffmoe.experiments import sweep

    keep_freed_memory()
    found = sweep(
        name,
        capacities=command.capacities or None,
        gammas=command.gammas,
        level=command.level,
        search=command.search,
        out=command.out,
        **shared,
    )
    print("\n".join(found.lines()))
