"""Everything a run must remember between two steps, as named tensors and back."""

import copy
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from diffmoe.checkpoint import load_tensors, read_part
from diffmoe.config import RunConfig
from diffmoe.errors import StorageError
from diffmoe.model import DiT, build_model
from diffmoe.training.optimizer import build_optimizer

__all__ = ["TrainingState", "new_state", "restore", "state_parts"]


@dataclass
class TrainingState:
    """Weights, averaged weights, optimizer and the number of optimizer steps done.

    Nothing random is in it: every draw is a function of (seed, stream, sample number).
    """

    model: DiT
    average: DiT
    optimizer: torch.optim.AdamW
    step: int
    trained_on: dict[str, str] = field(default_factory=dict)  # what its codec and its data are


def new_state(config: RunConfig, device: torch.device) -> TrainingState:
    """The state before the first step."""
    model = build_model(config.model, config.training.seed, device)
    model.activation_checkpointing = config.machine.activation_checkpointing
    average = copy.deepcopy(model).requires_grad_(False)
    return TrainingState(model, average, build_optimizer(model, config.training), step=0)


def state_parts(state: TrainingState) -> dict[str, dict[str, Tensor]]:
    """The state as the parts of a checkpoint: `model`, `ema` and `optimizer`."""
    moments = {
        f"{name}/{key}": value
        for name, parameter in state.model.named_parameters()
        for key, value in state.optimizer.state.get(parameter, {}).items()
    }
    return {
        "model": state.model.state_dict(),
        "ema": state.average.state_dict(),
        "optimizer": moments,
    }


def restore(state: TrainingState, checkpoint: Path, step: int) -> None:
    """Fill `state` from a verified checkpoint."""
    load_tensors(state.model, read_part(checkpoint, "model"), where=str(checkpoint))
    load_tensors(state.average, read_part(checkpoint, "ema"), where=str(checkpoint))
    moments = _moments(checkpoint)
    parameters = dict(state.model.named_parameters())
    if step > 0 and not moments:
        raise _no_moments(checkpoint)
    for name, own in moments.items():
        if name not in parameters:
            raise _refusal(f"has {name!r}, which the model has not", checkpoint)
        _check_moments(name, own, parameters[name], checkpoint)
        device = parameters[name].device
        state.optimizer.state[parameters[name]] = {k: v.to(device) for k, v in own.items()}
    state.step = step


def _moments(checkpoint: Path) -> dict[str, dict[str, Tensor]]:
    """The optimizer state of each parameter; one that never had a gradient has none."""
    if not (checkpoint / "optimizer.safetensors").exists():
        raise _no_moments(checkpoint)
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in read_part(checkpoint, "optimizer").items():
        name, _, kind = key.rpartition("/")
        found.setdefault(name, {})[kind] = value
    return found


def _check_moments(name: str, own: dict[str, Tensor], parameter: Tensor, checkpoint: Path) -> None:
    """Raise StorageError unless AdamW can go on with these."""
    shapes = {"step": (), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
    if own.keys() != shapes.keys():
        wrong = sorted(own.keys() ^ shapes.keys())[0]
        raise _refusal(f"{'has' if wrong in own else 'lacks'} {name}/{wrong}", checkpoint)
    for kind, shape in shapes.items():
        if own[kind].shape != shape or not own[kind].is_floating_point():
            there = f"{own[kind].dtype} {list(own[kind].shape)}".removeprefix("torch.")
            raise _refusal(f"has {name}/{kind} as {there}, not as {list(shape)}", checkpoint)


def _refusal(what: str, checkpoint: Path) -> StorageError:
    return StorageError(
        f"the optimizer state {what}",
        where=str(checkpoint),
        remedy="use a checkpoint of this run, or start a new one",
    )


def _no_moments(checkpoint: Path) -> StorageError:
    return StorageError(
        "the checkpoint holds no optimizer state, so training cannot go on from it",
        where=str(checkpoint),
        remedy="sample from it, or start a new run",
    )
