"""The verbs around runs: bench, convert and presets."""

from pathlib import Path

from diffmoe.arguments import BenchCommand, ConvertCommand, parse
from diffmoe.cli.words import first
from diffmoe.config import to_yaml
from diffmoe.console import conversion_lines, preset_lines
from diffmoe.errors import ConfigError
from diffmoe.presets import preset as preset_of

__all__ = ["bench", "convert", "presets"]


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
