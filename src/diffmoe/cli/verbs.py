"""The verbs: each a thin function of the words behind it."""

import itertools
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffmoe.arguments import (
    AnalyzeCommand,
    BenchCommand,
    ConvertCommand,
    DemoCommand,
    ReportCommand,
    SampleCommand,
    SweepCommand,
    TrainCommand,
    parse,
)
from diffmoe.config import RunConfig, nearest, read_config, to_yaml
from diffmoe.console import (
    conversion_lines,
    needs_lines,
    preset_lines,
    program,
    report_lines,
)
from diffmoe.errors import ConfigError, DiffMoEError, ExitCode, NoRunError
from diffmoe.presets import PRESETS, preset

__all__ = ["VERBS", "verb"]


def _train(words: list[str]) -> None:
    name, rest = _first(words, "train", "PRESET|RUN", TrainCommand)
    default = _preset_or_run(name)
    command = parse(TrainCommand, default, rest, f"diffmoe train {name}")
    _refuse_nameless(rest)
    if command.dry_run:
        from diffmoe.experiments import needs

        print(to_yaml(command.config))
        print("\n".join(needs_lines(needs(command.config))))
        return
    _refuse_several_processes()
    from diffmoe.device import keep_freed_memory
    from diffmoe.training import train

    keep_freed_memory()
    steps, finished = command.config.loop.steps, _is_finished(command)
    train(command.config, command.run, progress=not command.quiet)
    print(
        f"{'nothing left to do, trained' if finished else 'trained'} {steps} steps: {command.run}"
    )
    print(f"next: {program()} report {shlex.quote(str(command.run))}")


def _preset_or_run(name: str) -> TrainCommand:
    """Where training begins: with a preset, or with the run of that name."""
    folder = Path(name)
    if name not in PRESETS and not folder.is_dir():
        if folder.name != name or nearest(name, list(PRESETS)) is None:
            raise ConfigError(
                f"there is neither a preset nor a run of the name {name!r}",
                remedy="see diffmoe presets, and give a new run's folder as --run",
            )
    elif name not in PRESETS or (folder / "config.yaml").is_file():
        return TrainCommand(config=_config_of(name), run=folder)
    return TrainCommand(config=preset(name), run=Path("runs") / name)


def _refuse_nameless(words: list[str]) -> None:
    """Raise ConfigError for an empty --run, which a path would take for the folder one is in."""
    if "--run=" in words or ("--run", "") in itertools.pairwise(words):
        raise ConfigError("--run is empty", remedy="name a folder, say runs/mine")


def _is_finished(command: TrainCommand) -> bool:
    """Whether a run has its steps; checkpoints are verified only if they say so."""
    from diffmoe.checkpoint import RunFolder, claimed_step, newest_checkpoint

    place = RunFolder(command.run).checkpoints
    if claimed_step(place) != command.config.loop.steps:
        return False
    found = newest_checkpoint(place)
    return found is not None and found[1].step == command.config.loop.steps


def _sample(words: list[str]) -> None:
    name, rest = _first(words, "sample", "RUN", SampleCommand)
    config = _config_of(name)
    default = SampleCommand(settings=config.sampling)
    command = parse(SampleCommand, default, rest, f"diffmoe sample {name}")
    from diffmoe.experiments import request, sample

    classes = config.model.num_classes
    labels, seeds = request(command.labels, command.seeds, command.count, classes)
    path = sample(
        name,
        labels,
        seeds,
        settings=command.settings,
        out=command.out,
        device=command.device,
        capture=command.capture,
        progress=not command.quiet,
    )
    print(f"{len(labels)} images: {path}")
    print(f"all at a glance: {path / 'sheet.png'}")


def _report(words: list[str]) -> None:
    name, _, shared = _of_run("report", ReportCommand, words)
    from diffmoe.experiments import report

    print("\n".join(report_lines(report(name, **shared))))


def _analyze(words: list[str]) -> None:
    name, command, shared = _of_run("analyze", AnalyzeCommand, words)
    from diffmoe.device import keep_freed_memory
    from diffmoe.experiments import analyze

    keep_freed_memory()
    found = analyze(
        name,
        classes=command.classes,
        maps=command.maps,
        frames=command.frames,
        out=command.out,
        **shared,
    )
    print("\n".join([*found.lines, f"all of it: {found.page}"]))


def _sweep(words: list[str]) -> None:
    name, command, shared = _of_run("sweep", SweepCommand, words)
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


def _of_run(verb: str, record: type, words: list[str]) -> tuple[str, Any, dict[str, Any]]:
    """The run whose images a verb looks at, the words as a record, and what all such verbs take."""
    name, rest = _first(words, verb, "RUN", record)
    default = record(settings=_config_of(name).sampling)
    command = parse(record, default, rest, f"diffmoe {verb} {name}")
    shared = {
        "count": command.count,
        "first_seed": command.seed,
        "settings": command.settings,
        "device": command.device,
        "command": shlex.join(["diffmoe", verb, *words]),
        "progress": not command.quiet,
    }
    return name, command, shared


def _demo(words: list[str]) -> None:
    command = parse(DemoCommand, DemoCommand(), words, "diffmoe demo")
    _refuse_nameless(words)
    from diffmoe.device import keep_freed_memory
    from diffmoe.experiments import demo

    keep_freed_memory()
    found = demo(
        command.run,
        steps=command.steps,
        count=command.count,
        command=shlex.join(["diffmoe", "demo", *words]),
        progress=not command.quiet,
    )
    print("\n".join(report_lines(found)))
    run = shlex.quote(str(command.run))
    print(f"next: {program()} sample {run} --labels 3 3 7 --seeds 0 1 2")


def _bench(words: list[str]) -> None:
    command = parse(BenchCommand, BenchCommand(), words, "diffmoe bench")
    from diffmoe.experiments import bench

    found = bench(
        model=command.model,
        dense=command.dense,
        images=command.images,
        rows=command.rows,
        rounds=command.rounds,
        device=command.device,
        precision=command.precision,
        threads=command.threads,
        compile=command.compile,
        out=command.out,
        progress=not command.quiet,
    )
    print("\n".join(found.lines()))
    print(f"all of it: {command.out}")


def _convert(words: list[str]) -> None:
    source, rest = _first(words, "convert", "FILE|RUN TARGET", ConvertCommand)
    target, rest = _first(rest, f"convert {source}", "TARGET", ConvertCommand)
    command = parse(ConvertCommand, ConvertCommand(), rest, "diffmoe convert FILE|RUN TARGET")
    from diffmoe.experiments import convert

    done = convert(
        Path(source),
        Path(target),
        name=command.preset,
        heads=command.heads,
        objective=command.objective,
    )
    print("\n".join(conversion_lines(done)))


def _presets(words: list[str]) -> None:
    if words and words[0] in ("-h", "--help"):
        print("usage: diffmoe presets [NAME]\n\nList the presets, or print one as YAML.")
        return
    if len(words) > 1 or (words and words[0].startswith("-")):
        raise ConfigError(f"unexpected word {words[-1]!r}", remedy="see diffmoe presets --help")
    if words:
        print(to_yaml(preset(words[0])), end="")
        return
    print("\n".join(preset_lines()))


VERBS: dict[str, tuple[Callable[[list[str]], None], str, str]] = {
    "demo": (_demo, "", "train on real digits, sample, score and report, in minutes"),
    "train": (_train, "PRESET|RUN", "train, or go on with a run"),
    "sample": (_sample, "RUN", "draw images"),
    "report": (_report, "RUN", "sample, score, capacity in short"),
    "analyze": (_analyze, "RUN", "see where compute goes: steps, classes, patches, experts"),
    "sweep": (_sweep, "RUN", "quality against capacity and time, over the whole dial"),
    "bench": (_bench, "", "measure what it costs beside a dense model, here"),
    "convert": (_convert, "FILE|RUN TARGET", "read or write checkpoints of the released layout"),
    "presets": (_presets, "[NAME]", "list the published models, or print one"),
}


def _first(words: list[str], verb: str, wanted: str, record: type) -> tuple[str, list[str]]:
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


def _config_of(run: str) -> RunConfig:
    path = Path(run) / "config.yaml"
    if not path.is_file():
        raise NoRunError(run)
    return read_config(path)


def _refuse_several_processes() -> None:
    if os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1"):
        raise DiffMoEError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but training runs in one process",
            remedy="start it without torchrun",
        )


def verb(name: str) -> Callable[[list[str]], None]:
    """The verb of that name; raises ConfigError, naming the nearest, if there is none."""
    if name not in VERBS:
        near = nearest(name, list(VERBS))
        raise ConfigError(
            f"unknown verb {name!r}",
            remedy=f"did you mean {near}?" if near else "see diffmoe --help",
        )
    return VERBS[name][0]
