"""Everything a run must remember between two steps, as named tensors and back."""

import copy
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffmoe.checkpoint import Content, Manifest, load_tensors, read_part
from diffmoe.config import RunConfig
from diffmoe.errors import StorageError
from diffmoe.model import DiT, build_model
from diffmoe.training.optimizer import build_optimizer

__all__ = [
    "Counters",
    "TrainingState",
    "begin_again",
    "new_state",
    "restore",
    "state_content",
    "state_parts",
]


Parts = dict[str, dict[str, Tensor]]


@dataclass
class Counters:
    """What a run has met so far; numbers, kept in the manifest of each checkpoint."""

    position: int = 0  # the next sample of the stream
    bad_steps: int = 0  # skipped, as loss or gradient were not finite
    bad_in_a_row: int = 0  # of them, those since the last sound step
    rewinds: int = 0
    spikes: int = 0
    losses: int = 0  # sound ones, by which the usual loss is known
    loss_mean: float = 0.0  # over about the last hundred
    loss_variance: float = 0.0


@dataclass
class TrainingState:
    """Weights, averaged weights, optimizer, the number of optimizer steps done, and counters.

    Also the sums that the next line of metrics is made of.

    Nothing random is in it: every draw is a function of (seed, stream, sample number).
    """

    model: DiT
    average: DiT
    optimizer: torch.optim.AdamW
    step: int
    trained_on: dict[str, str] = field(default_factory=dict)  # what its codec and its data are
    counters: Counters = field(default_factory=Counters)
    window: dict[str, Tensor] = field(default_factory=dict)


def new_state(config: RunConfig, device: torch.device) -> TrainingState:
    """The state before the first step."""
    model = build_model(config.model, config.training.seed, device)
    model.activation_checkpointing = config.machine.activation_checkpointing
    average = copy.deepcopy(model).requires_grad_(False)
    return TrainingState(model, average, build_optimizer(model, config.training), step=0)


def state_parts(state: TrainingState) -> Parts:
    """The tensors of the state as the parts of a checkpoint.

    They are `model`, `ema`, `optimizer` and `window`.
    """
    moments = {
        f"{name}/{key}": value
        for name, parameter in state.model.named_parameters()
        for key, value in state.optimizer.state.get(parameter, {}).items()
    }
    return {
        "model": state.model.state_dict(),
        "ema": state.average.state_dict(),
        "optimizer": moments,
        "window": state.window,
    }


def state_content(
    state: TrainingState, config: dict[str, Any], copies: Parts | None = None
) -> Content:
    """All of the state as a checkpoint holds it; tensors are copied into `copies`, if there.

    They lie on the host, are made where they are missing, and serve for the next time: fresh
    memory costs several times what a copy does.
    """
    parts = state_parts(state)
    if copies is not None:
        parts = {name: _copied(own, copies.setdefault(name, {})) for name, own in parts.items()}
    counters = asdict(state.counters)
    samples = state.counters.position
    return Content(state.step, samples, parts, config, dict(state.trained_on), counters)


def _copied(tensors: dict[str, Tensor], copies: dict[str, Tensor]) -> dict[str, Tensor]:
    for name, value in tensors.items():
        if name not in copies:
            copies[name] = torch.empty_like(value, device="cpu")
        copies[name].copy_(value.detach())
    return {name: copies[name] for name in tensors}


def restore(state: TrainingState, checkpoint: Path, manifest: Manifest) -> None:
    """Fill `state` from a verified checkpoint; raises StorageError where it is not whole."""
    load_tensors(state.model, read_part(checkpoint, "model"), where=str(checkpoint))
    load_tensors(state.average, read_part(checkpoint, "ema"), where=str(checkpoint))
    if "optimizer" not in manifest.tensors:
        raise _no_moments(checkpoint)
    moments = _moments(checkpoint)
    parameters = dict(state.model.named_parameters())
    if manifest.step > 0 and not moments:
        raise _no_moments(checkpoint)
    state.optimizer.state.clear()
    for name, own in moments.items():
        if name not in parameters:
            raise _refusal(f"has {name!r}, which the model has not", checkpoint)
        _check_moments(name, own, parameters[name], checkpoint)
        device = parameters[name].device
        state.optimizer.state[parameters[name]] = {k: v.to(device) for k, v in own.items()}
    state.step, state.counters = manifest.step, _counters(manifest, checkpoint)
    device = next(state.model.parameters()).device
    sums = read_part(checkpoint, "window") if "window" in manifest.tensors else {}
    state.window = {name: value.to(device) for name, value in sums.items()}


def begin_again(state: TrainingState, config: RunConfig) -> None:
    """Make `state` that before the first step."""
    device = next(state.model.parameters()).device
    fresh = new_state(config, device)
    state.model.load_state_dict(fresh.model.state_dict())
    state.average.load_state_dict(fresh.average.state_dict())
    state.optimizer.state.clear()
    state.step, state.counters, state.window = 0, Counters(), {}


def _counters(manifest: Manifest, checkpoint: Path) -> Counters:
    kinds = {entry.name: type(entry.default) for entry in fields(Counters)}
    found = {name: type(value) for name, value in manifest.state.items()}
    wrong = sorted(n for n in {**kinds, **found} if kinds.get(n) is not found.get(n))
    if wrong:
        raise _refusal(f"has no {wrong[0]} as this version has", checkpoint, "state of the run")
    return Counters(**manifest.state)  # type: ignore[arg-type]  # as the line above has found


def _moments(checkpoint: Path) -> dict[str, dict[str, Tensor]]:
    """The optimizer state of each parameter; one that never had a gradient has none."""
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


def _refusal(what: str, checkpoint: Path, subject: str = "optimizer state") -> StorageError:
    return StorageError(
        f"the {subject} {what}",
        where=str(checkpoint),
        remedy="use a checkpoint of this run, or start a new one",
    )


def _no_moments(checkpoint: Path) -> StorageError:
    return StorageError(
        "the checkpoint holds no optimizer state, so training cannot go on from it",
        where=str(checkpoint),
        remedy="sample from it, or start a new run",
    )
