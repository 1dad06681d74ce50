"""The verbs that draw from a run: sample, report, analyze and sweep."""

from diffmoe.arguments import (
    AnalyzeCommand,
    ReportCommand,
    SampleCommand,
    SweepCommand,
    parse,
)
from diffmoe.cli.words import config_of, first, of_run, set_mode
from diffmoe.console import report_lines

__all__ = ["analyze", "report", "sample", "sweep"]


def sample(words: list[str]) -> None:
    """Draw images from a run."""
    name, rest = first(words, "sample", "RUN", SampleCommand)
    config = config_of(name)
    default = SampleCommand(settings=config.sampling)
    command = parse(SampleCommand, default, rest, f"diffmoe sample {name}")
    set_mode(command.strict)
    from diffmoe.device import is_first_process
    from diffmoe.experiments import class_numbers, draw_samples, request, trained_classes

    asked, classes = class_numbers(name, command.labels), config.model.num_classes
    labels, seeds = request(
        asked,
        command.seeds,
        command.count,
        classes if asked else trained_classes(name, classes),
        law=command.law,
        first_seed=command.seed,
    )
    found = draw_samples(
        name,
        labels,
        seeds,
        settings=command.settings,
        law="given" if asked else command.law,
        out=command.out,
        format=command.format,
        device=command.device,
        capture=command.capture,
        progress=not command.quiet,
    )
    if is_first_process():
        print("\n".join(found.lines))


def report(words: list[str]) -> None:
    """Sample a run and write its report."""
    name, _, shared = of_run("report", ReportCommand, words)
    from diffmoe.experiments import report

    print("\n".join(report_lines(report(name, **shared))))


def analyze(words: list[str]) -> None:
    """Write where the compute of a run goes."""
    name, command, shared = of_run("analyze", AnalyzeCommand, words)
    from diffmoe.device import keep_freed_memory
    from diffmoe.experiments import analyze, class_numbers

    keep_freed_memory()
    found = analyze(
        name,
        classes=class_numbers(name, command.classes),
        maps=command.maps,
        frames=command.frames,
        out=command.out,
        **shared,
    )
    print("\n".join([*found.lines, f"all of it: {found.page}"]))


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
