"""Where a run goes on: the newest checkpoint, or step 0 if there was never one."""

import logging
from pathlib import Path

import torch

from diffmoe.checkpoint import (
    Manifest,
    RunFolder,
    newest_checkpoint,
    read_metrics,
    refuse_foreign,
)
from diffmoe.config import RunConfig, read_config
from diffmoe.errors import ConfigError, StorageError
from diffmoe.training.state import TrainingState, new_state, restore

__all__ = ["begin"]

_LOG = logging.getLogger(__name__)


def begin(
    config: RunConfig, folder: RunFolder, trained_on: dict[str, str], device: torch.device
) -> TrainingState:
    """The state to go on from; nothing is written.

    `trained_on` says what the codec and the data are. Raises ConfigError if they or the length of
    the run contradict its past, StorageError if its past is damaged or lost.
    """
    found = newest_checkpoint(folder.checkpoints)
    if found is None:
        _refuse_lost_past(folder)
    else:
        _refuse_contradiction(config, trained_on, *found)
    state = new_state(config, device)
    state.trained_on = trained_on
    if found is not None:
        checkpoint, manifest = found
        restore(state, checkpoint, manifest.step)
        _LOG.info("resuming %s at step %d", folder.path, manifest.step)
    return state


def _refuse_lost_past(folder: RunFolder) -> None:
    """Raise StorageError if a checkpoint was written and is gone.

    A line of metrics is written after the checkpoint of its step, so lines that reach the first
    one due prove that there was one. A job killed before then left none, and begins anew.
    """
    if not folder.is_run:
        return
    loop = read_config(folder.config).loop
    last = max((line["step"] for line in read_metrics(folder.metrics)), default=0)
    if last >= min(loop.checkpoint_every, loop.steps):
        raise StorageError(
            f"the run has metrics up to step {last} but no checkpoint",
            where=str(folder.path),
            remedy="restore its checkpoints, or choose another --run",
        )


def _refuse_contradiction(
    config: RunConfig, trained_on: dict[str, str], checkpoint: Path, manifest: Manifest
) -> None:
    refuse_foreign(manifest, config, checkpoint)
    if config.loop.steps < manifest.step:
        raise ConfigError(
            f"loop.steps {config.loop.steps} is less than the {manifest.step} steps already done",
            where=str(checkpoint),
            remedy=f"set --loop.steps {manifest.step} or more, or choose another --run",
        )
    for name, now in trained_on.items():
        then = manifest.trained_on.get(name, now)
        if then != now:
            raise ConfigError(
                f"the {name} of this run changed from {then} to {now}",
                where=str(checkpoint),
                remedy=f"go on with the {name} it was trained on, or choose another --run",
            )
