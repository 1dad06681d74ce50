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
    config: RunConfig,
    folder: RunFolder,
    trained_on: dict[str, str],
    device: torch.device,
    *,
    accept_new_data: bool = False,
) -> TrainingState:
    """The state to go on from; nothing is written.

    `trained_on` says what the codec and the data are. Raises ConfigError if they or the length of
    the run contradict its past, StorageError if its past is damaged or lost.
    """
    found = newest_checkpoint(folder.checkpoints)
    if found is None:
        _refuse_lost_past(folder)
    else:
        refuse_foreign(found[1], config, found[0])
        _refuse_fewer_steps(config, *found)
        _refuse_changed_origin(trained_on, *found, accepted={"data"} if accept_new_data else set())
    state = new_state(config, device)
    state.trained_on = trained_on
    if found is not None:
        restore(state, *found)
        _tell_of_loss(folder, state.step)
        _tell(folder, state.step, config.loop.steps)
    return state


def _tell(folder: RunFolder, step: int, steps: int) -> None:
    if step < steps:
        _LOG.info("resuming %s at step %d", folder.path, step)
    else:
        _LOG.info("nothing is left to do: %s has its %d steps", folder.path, steps)


def _tell_of_loss(folder: RunFolder, step: int) -> None:
    saved = folder.saved_step
    if saved is not None and saved > step:
        _LOG.warning(
            "the checkpoint of step %d, which was saved last, is gone or damaged: going on from"
            " step %d",
            *(saved, step),
        )


def _refuse_lost_past(folder: RunFolder) -> None:
    """Raise StorageError if a checkpoint was written and is gone."""
    last = folder.saved_step
    if last is not None:
        raise StorageError(
            f"the run saved a checkpoint of step {last} and has none now",
            where=str(folder.path),
            remedy="restore its checkpoints, or choose another --run",
        )


def _refuse_fewer_steps(config: RunConfig, checkpoint: Path, manifest: Manifest) -> None:
    if config.loop.steps < manifest.step:
        raise ConfigError(
            f"loop.steps {config.loop.steps} is less than the {manifest.step} steps already done",
            where=str(checkpoint),
            remedy=f"set --loop.steps {manifest.step} or more, or choose another --run",
        )


def _refuse_changed_origin(
    trained_on: dict[str, str], checkpoint: Path, manifest: Manifest, *, accepted: set[str]
) -> None:
    """Raise ConfigError where codec or data are not those of the past and that is not accepted."""
    for name, now in trained_on.items():
        then = manifest.trained_on.get(name, now)
        # Another version noted a codec for latents too; whether they are the same, the data tell.
        if then == now or now == STORED:
            continue
        if name in accepted:
            _LOG.warning("the %s of this run changed from %s to %s, as accepted", name, then, now)
            continue
        also = ", or accept them: --accept-new-data" if name == "data" else ""
        raise ConfigError(
            f"the {name} of this run changed from {then} to {now}",
            where=str(checkpoint),
            remedy=f"go on with the {name} it was trained on, or choose another --run{also}",
        )
