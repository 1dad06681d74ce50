"""Where a run goes on: the newest checkpoint, or step 0 if there was never one."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from diffmoe.checkpoint import (
    Manifest,
    RunFolder,
    newest_checkpoint,
    refuse_foreign,
)
from diffmoe.config import RunConfig
from diffmoe.distributed import ALONE, Group
from diffmoe.errors import ConfigError, StorageError
from diffmoe.training.material import STORED
from diffmoe.training.state import TrainingState, new_state, restore

__all__ = ["begin"]

_LOG = logging.getLogger(__name__)
_CALLED = {"text": "text encoder"}


def begin(
    config: RunConfig,
    folder: RunFolder,
    trained_on: dict[str, str],
    device: torch.device,
    group: Group = ALONE,
    *,
    accepted: Sequence[str] | None = None,
) -> TrainingState:
    """The state to go on from; nothing is written.

    `trained_on` says what the codec and the data are; other data than before are accepted if the
    names of their classes are given. Raises ConfigError if they or the length of
    the run contradict its past, StorageError if its past is damaged or lost.
    """
    found = group.first_says(lambda: _past(config, folder, trained_on, accepted))
    state = new_state(config, device, group)
    state.trained_on = trained_on
    if found is not None:
        restore(state, *found)
        _tell_of_loss(folder, state.step)
        _tell(folder, state.step, config.loop.steps)
    return state


def _past(
    config: RunConfig,
    folder: RunFolder,
    trained_on: dict[str, str],
    accepted: Sequence[str] | None,
) -> tuple[Path, Manifest] | None:
    """The checkpoint to go on from, if the run and the data are still what they were."""
    found = newest_checkpoint(folder.checkpoints)
    if found is None:
        _refuse_lost_past(folder)
        return None
    refuse_foreign(found[1], config, found[0])
    _refuse_fewer_steps(config, *found)
    if _refuse_changed_origin(trained_on, *found, accepting=accepted is not None):
        _refuse_moved_classes(folder, accepted or ())
    return found


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
    trained_on: dict[str, str], checkpoint: Path, manifest: Manifest, *, accepting: bool
) -> bool:
    """Whether the data changed and that is accepted; else ConfigError, as for another codec."""
    changed = False
    for name, now in trained_on.items():
        then = manifest.trained_on.get(name, now)
        # Another version noted a codec for latents too; whether they are the same, the data tell.
        if then == now or now == STORED:
            continue
        if name == "data" and accepting:
            _LOG.warning("the data of this run changed from %s to %s, as accepted", then, now)
            changed = True
            continue
        what = _CALLED.get(name, name)
        also = ", or accept them: --accept-new-data" if name == "data" else ""
        raise ConfigError(
            f"the {what} of this run changed from {then} to {now}",
            where=str(checkpoint),
            remedy=f"go on with the {what} it was trained on, or choose another --run{also}",
        )
    return changed


def _refuse_moved_classes(folder: RunFolder, names: Sequence[str]) -> None:
    """Raise ConfigError if a class that was trained is another one in the data that are accepted.

    The model knows classes by their numbers. New ones may come after them.
    """
    for number, before in enumerate(folder.class_names):
        now = names[number] if number < len(names) else "not there"
        if now != before:
            raise ConfigError(
                f"class {number} of this run is {before}, and {now} in the data that are there now",
                where=str(folder.path),
                remedy="bring its classes back as they were numbered, or choose another --run",
            )
