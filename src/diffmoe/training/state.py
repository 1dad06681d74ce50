"""Everything a run must remember between two steps, as named tensors and back."""

import copy
from dataclasses import dataclass
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
    if not (checkpoint / "optimizer.safetensors").exists():
        raise StorageError(
            "the checkpoint holds no optimizer state, so training cannot go on from it",
            where=str(checkpoint),
            remedy="sample from it, or start a new run",
        )
    moments = read_part(checkpoint, "optimizer")
    for name, parameter in state.model.named_parameters():
        if parameter.requires_grad:
            state.optimizer.state[parameter] = _moments_of(name, moments, parameter, checkpoint)
    state.step = step


def _moments_of(
    name: str, moments: dict[str, Tensor], parameter: Tensor, checkpoint: Path
) -> dict[str, Tensor]:
    own = {
        key.removeprefix(f"{name}/"): value.to(parameter.device)
        for key, value in moments.items()
        if key.startswith(f"{name}/")
    }
    if not own:
        raise StorageError(f"the optimizer state lacks {name}", where=str(checkpoint))
    return own
