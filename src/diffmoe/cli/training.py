"""The verbs that train: demo and train."""

import shlex
from pathlib import Path

from diffmoe.arguments import DemoCommand, TrainCommand, parse
from diffmoe.cli.words import config_of, first, refuse_nameless
from diffmoe.config import nearest, share_out, to_yaml
from diffmoe.console import needs_lines, program, report_lines
from diffmoe.errors import ConfigError
from diffmoe.presets import PRESETS, preset

__all__ = ["demo", "train"]


def demo(words: list[str]) -> None:
    """Train on real digits, or on scenes with captions, sample, score and report."""
    command = parse(DemoCommand, DemoCommand(), words, "diffmoe demo")
    refuse_nameless(words)
    from diffmoe.device import keep_freed_memory
    from diffmoe.experiments import demo

    keep_freed_memory()
    place = command.run or Path("runs", "demo-t2i" if command.text else "demo")
    found = demo(
        place,
        text=command.text,
        steps=command.steps,
        count=command.count,
        command=shlex.join(["diffmoe", "demo", *words]),
        progress=not command.quiet,
    )
    print("\n".join(report_lines(found)))
    asked = '--prompts "a red circle" "two stars"' if command.text else "--labels 3 3 7"
    seeds = "0 1" if command.text else "0 1 2"
    print(f"next: {program()} sample {shlex.quote(str(place))} {asked} --seeds {seeds}")


def train(words: list[str]) -> None:
    """Train a preset, or go on with a run."""
    name, rest = first(words, "train", "PRESET|RUN", TrainCommand)
    default = _preset_or_run(name)
    command = parse(TrainCommand, default, rest, f"diffmoe train {name}")
    refuse_nameless(rest)
    from diffmoe.device import is_first_process

    if command.dry_run:
        if not is_first_process():
            return
        from diffmoe.distributed import announced

        share_out(command.config, announced()[1])
        from diffmoe.experiments import needs

        print(to_yaml(command.config))
        print("\n".join(needs_lines(needs(command.config))))
        return
    from diffmoe.device import keep_freed_memory
    from diffmoe.training import train

    keep_freed_memory()
    train(
        command.config,
        command.run,
        progress=not command.quiet,
        max_seconds=command.max_seconds,
        accept_new_data=command.accept_new_data,
    )
    if not is_first_process():
        return
    print(f"trained {command.config.loop.steps} steps: {command.run}")
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
        return TrainCommand(config=config_of(name), run=folder)
    return TrainCommand(config=preset(name), run=Path("runs") / name)
