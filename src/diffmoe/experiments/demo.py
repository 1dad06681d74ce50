"""The whole story in minutes: train on real digits, or on scenes, sample, score, report."""

import logging
from dataclasses import replace
from pathlib import Path

from diffmoe.checkpoint import RunFolder, claimed_step
from diffmoe.experiments.report import RunReport, refuse_report, refuse_unread, report
from diffmoe.presets import preset
from diffmoe.training import train

__all__ = ["demo"]

_LOG = logging.getLogger(__name__)

_DIGITS, _SCENES = 1000, 240  # samples


def demo(
    path: Path | str,
    *,
    text: bool = False,
    steps: int | None = None,
    count: int | None = None,
    command: str = "diffmoe demo",
    progress: bool = True,
) -> RunReport:
    """Train `digits-diffmoe` into `path` (or go on with it), then report on `count` samples.

    Of `text` it is `scenes-diffmoe`, which draws from captions. Without `steps` it is trained for
    as many as the preset has; a run that has more keeps them. Without `count` there are 1,000
    samples, of scenes 240.
    """
    count = (_SCENES if text else _DIGITS) if count is None else count
    refuse_report(count)  # before minutes of training
    if text:
        refuse_unread()
    config = preset("scenes-diffmoe" if text else "digits-diffmoe")
    usual = config.loop.steps
    if steps is None:
        steps = max(usual, claimed_step(RunFolder(Path(path)).checkpoints) or 0)
    config = replace(config, loop=replace(config.loop, steps=steps))
    if steps < usual:
        _LOG.warning("%d of the usual %d steps: expect noise rather than pictures", steps, usual)
    train(config, path, progress=progress)
    return report(path, count=count, command=command, device="cpu", progress=progress)
