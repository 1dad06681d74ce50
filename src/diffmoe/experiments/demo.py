"""The whole story in minutes: train on real digits, sample, score, report."""

from dataclasses import replace
from pathlib import Path

from diffmoe.checkpoint import RunFolder, claimed_step
from diffmoe.experiments.report import RunReport, refuse_report, report
from diffmoe.presets import preset
from diffmoe.training import train

__all__ = ["demo"]


def demo(
    path: Path | str,
    *,
    steps: int | None = None,
    count: int = 1000,
    command: str = "diffmoe demo",
    progress: bool = True,
) -> RunReport:
    """Train `digits-diffmoe` into `path` (or go on with it), then report on `count` samples.

    Without `steps` it is trained for as many as the preset has; a run that has more keeps them.
    """
    refuse_report(count)  # before minutes of training
    config = preset("digits-diffmoe")
    if steps is None:
        steps = max(config.loop.steps, claimed_step(RunFolder(Path(path)).checkpoints) or 0)
    config = replace(config, loop=replace(config.loop, steps=steps))
    train(config, path, progress=progress)
    return report(path, count=count, command=command, device="cpu", progress=progress)
