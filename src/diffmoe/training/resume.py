"""Where a run goes on: the newest checkpoint, or step 0 if there was never one."""

import logging
from pathlib import Path

import torch

from diffmoe.checkpoint import (
    Manifest,
    RunFolder,
    newest_checkpoint,
    refuse_foreign,
)
from diffmoe.config import RunConfig
from diffmoe.errors import ConfigError, StorageError
from diffmoe.training.state import TrainingState, new_state, restore

__all__ = ["STORED", "begin"]

STORED = "none: the latents were encoded elsewhere"  # stands for the codec of stored latents

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
        _tell(folder, manifest.step, config.loop.steps)
    return state


def _tell(folder: RunFolder, step: int, steps: int) -> None:
    if step < steps:
        _LOG.info("resuming %s at step %d", folder.path, step)
    else:
        _LOG.info("nothing is left to do: %s has its %d steps", folder.path, steps)


def _refuse_lost_past(folder: RunFolder) -> None:
    """Raise StorageError if a checkpoint was written and is gone."""
    last = folder.lost_step
    if last is not None:
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
        # Another version noted a codec for latents too; whether they are the same, the data tell.
        if then != now and now != STORED:
            raise ConfigError(
                f"the {name} of this run changed from {then} to {now}",
                where=str(checkpoint),
                remedy=f"go on with the {name} it was trained on, or choose another --run",
            )
