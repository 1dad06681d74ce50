"""The verbs around runs: bench, plan, convert and presets."""

import json
from pathlib import Path

from diffmoe.arguments import BenchCommand, ConvertCommand, PlanCommand, parse
from diffmoe.cli.words import config_of, first
from diffmoe.config import RunConfig, read_config, to_yaml
from diffmoe.console import conversion_lines, preset_lines
from diffmoe.errors import ConfigError
from diffmoe.presets import PRESETS
from diffmoe.presets import preset as preset_of

__all__ = ["bench", "convert", "plan", "presets"]


def bench(words: list[str]) -> None:
    """Measure what a DiffMoE costs beside a dense model, here."""
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


def plan(words: list[str]) -> None:
    """Say what training needs on so many GPUs."""
    name, rest = first(words, "plan", "PRESET|RUN", PlanCommand)
    command = parse(PlanCommand, PlanCommand(config=_named(name)), rest, f"diffmoe plan {name}")
    from diffmoe.checkpoint import write_file
    from diffmoe.experiments import PlannedMachine, measured, plan, plan_lines, usual_peak

    peak, source = usual_peak(command.config)
    machine = PlannedMachine(
        gpus=command.gpus,
        memory=command.amount("memory") or 0.0,
        per_node=command.per_node,
        peak=command.amount("peak") or peak,
        peak_source=source if command.peak is None else "as given",
        efficiency=command.efficiency,
        bandwidth=command.amount("bandwidth") or 0.0,
        network=command.amount("network") or 0.0,
        reserve=command.reserve,
    )
    if command.measure:
        machine = measured(machine, command.config)
    found = plan(command.config, machine, name)
    print("\n".join(plan_lines(found, _of_config(rest))))
    if command.json is not None:
        text = json.dumps(found.content(), indent=2) + "\n"
        write_file(command.json, lambda aside: aside.write_text(text))
        print(f"all of it: {command.json}")


def _named(name: str) -> RunConfig:
    """The config of a preset, of a run, or of a file."""
    path = Path(name)
    if path.is_dir() and (name not in PRESETS or (path / "config.yaml").is_file()):
        return config_of(name)
    return read_config(path) if path.is_file() else preset_of(name)


def _of_config(words: list[str]) -> list[str]:
    """The words that change the config, without those that a plan chooses itself."""
    chosen = ("shard-degree", "expert-degree", "micro-batch", "activation-checkpointing")
    own = {f"--machine.{negation}{field}" for field in chosen for negation in ("", "no-")}
    kept: list[str] = []
    inside = False
    for word in words:
        if word.startswith("--"):
            flag = word.partition("=")[0].replace("_", "-")
            inside = "." in flag and flag not in own
        kept += [word] if inside else []
    return kept


def convert(words: list[str]) -> None:
    """Read or write a checkpoint of the released layout."""
    source, rest = first(words, "convert", "FILE|RUN TARGET", ConvertCommand)
    target, rest = first(rest, f"convert {source}", "TARGET", ConvertCommand)
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


def presets(words: list[str]) -> None:
    """List the presets, or print one."""
    if words and words[0] in ("-h", "--help"):
        print("usage: diffmoe presets [NAME]\n\nList the presets, or print one as YAML.")
        return
    if len(words) > 1 or (words and words[0].startswith("-")):
        raise ConfigError(f"unexpected word {words[-1]!r}", remedy="see diffmoe presets --help")
    if words:
        print(to_yaml(preset_of(words[0])), end="")
        return
    print("\n".join(preset_lines()))
