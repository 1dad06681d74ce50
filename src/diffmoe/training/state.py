"""Everything a run must remember between two steps, as named tensors and back."""

import copy
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffmoe.checkpoint import Content, Manifest, Piece, read_part, refuse_misfit
from diffmoe.config import RunConfig, share_out
from diffmoe.distributed import ALONE, Group
from diffmoe.errors import StorageError
from diffmoe.model import DiT, build_model
from diffmoe.training.optimizer import build_optimizer
from diffmoe.training.parallel import Parallel, averages_of, parallelize
from diffmoe.training.shares import Share

__all__ = [
    "Counters",
    "TrainingState",
    "begin_again",
    "new_state",
    "own_tensor",
    "restore",
    "state_content",
    "state_parts",
]


Named = dict[str, Tensor | Piece]
Parts = dict[str, Named]


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

    Also the sums that the next line of metrics is made of. Of several processes each has its share
    of what is large, and all have the same of what is small.

    Nothing random is in it: every draw is a function of (seed, stream, sample number).
    """

    network: Parallel  # the model as it is trained
    averaged: Parallel
    optimizer: torch.optim.AdamW
    step: int
    trained_on: dict[str, str] = field(default_factory=dict)  # what its codec and its data are
    counters: Counters = field(default_factory=Counters)
    window: dict[str, Tensor] = field(default_factory=dict)

    @property
    def model(self) -> DiT:
        """The network, without what spreads it."""
        return self.network.model

    @property
    def average(self) -> DiT:
        """The network of the averaged weights."""
        return self.averaged.model

    @property
    def device(self) -> torch.device:
        """Where it all is."""
        return next(self.model.parameters()).device


def new_state(config: RunConfig, device: torch.device, group: Group = ALONE) -> TrainingState:
    """The state before the first step."""
    model = build_model(config.model, config.training.seed)
    model.activation_checkpointing = config.machine.activation_checkpointing
    shares = share_out(config, group.size)
    twin = copy.deepcopy(model).to(device) if shares.whole else None
    low = torch.bfloat16 if config.training.precision == "bfloat16" else None
    network = parallelize(model, shares, group, device=device, low=low)
    averaged = averages_of(network, twin)
    own = [share.own for share in network.shares.values()]
    return TrainingState(network, averaged, build_optimizer(own, config.training), step=0)


def state_parts(state: TrainingState) -> Parts:
    """The tensors of the state, or this process's pieces of them, as the parts of a checkpoint.

    They are `model`, `ema`, `optimizer` and `window`.
    """
    moments = {
        f"{name}/{key}": _piece(value, share)
        for name, share in state.network.shares.items()
        for key, value in state.optimizer.state.get(share.own, {}).items()
    }
    return {
        "model": _weights(state.network),
        "ema": _weights(state.averaged),
        "optimizer": moments,
        "window": dict(state.window),
    }


def _weights(network: Parallel) -> Named:
    """The state of a network, in the order of its own."""
    shares = network.shares
    return {
        name: _piece(shares[name].own.detach(), shares[name]) if name in shares else value
        for name, value in network.model.state_dict().items()
    }


def _piece(value: Tensor, share: Share) -> Tensor | Piece:
    """A tensor of the shape of a share, or a number that belongs to it."""
    if share.place is None or value.shape != share.own.shape or value.dim() == 0:
        return value
    return Piece(value, *share.place)


def state_content(
    state: TrainingState, config: dict[str, Any], copies: dict[str, dict[str, Tensor]] | None = None
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


def _copied(tensors: Named, copies: dict[str, Tensor]) -> Named:
    return {name: _copy(value, name, copies) for name, value in tensors.items()}


def _copy(value: Tensor | Piece, name: str, copies: dict[str, Tensor]) -> Tensor | Piece:
    if isinstance(value, Piece):
        own = _copy(value.own, name, copies)
        assert isinstance(own, Tensor)
        return value._replace(own=own)
    if name not in copies:
        copies[name] = torch.empty_like(value, device="cpu")
    return copies[name].copy_(value.detach())


def restore(state: TrainingState, checkpoint: Path, manifest: Manifest) -> None:
    """Fill `state` from a verified checkpoint; raises StorageError where it is not whole.

    Of several processes each reads its own pieces, whatever pieces were written.
    """
    for part, network in (("model", state.network), ("ema", state.averaged)):
        own = _weights(network)
        shapes = {name: _shape(value) for name, value in own.items()}
        refuse_misfit(manifest, part, shapes, where=str(checkpoint))
        _fill(own, checkpoint, part)
    _restore_moments(state, checkpoint, manifest)
    state.step, state.counters = manifest.step, _counters(manifest, checkpoint)
    sums = read_part(checkpoint, "window") if "window" in manifest.tensors else {}
    state.window = {name: value.to(state.device) for name, value in sums.items()}


def _shape(value: Tensor | Piece) -> tuple[int, ...]:
    return tuple(value.shape)


@torch.no_grad()
def _fill(into: Named, checkpoint: Path, part: str) -> None:
    boxes = {
        name: (value.offsets, tuple(value.own.shape))
        for name, value in into.items()
        if isinstance(value, Piece)
    }
    for name, found in read_part(checkpoint, part, boxes or None).items():
        own_tensor(into[name]).copy_(found)


def _restore_moments(state: TrainingState, checkpoint: Path, manifest: Manifest) -> None:
    """The optimizer state of each weight; one that never had a gradient has none."""
    rows = manifest.tensors.get("optimizer")
    if rows is None or (manifest.step > 0 and not rows):
        raise _no_moments(checkpoint)
    shares = state.network.shares
    found: dict[str, dict[str, list[Any]]] = {}
    for key, row in rows.items():
        name, _, kind = key.rpartition("/")
        found.setdefault(name, {})[kind] = row
    for name, own in found.items():
        if name not in shares:
            raise _refusal(f"has {name!r}, which the model has not", checkpoint)
        _check_moments(name, own, _shape(_piece(shares[name].own, shares[name])), checkpoint)
    state.optimizer.state.clear()
    into: Named = {}
    for name, own in found.items():
        weight = shares[name].own
        moments = {
            kind: torch.empty(
                weight.shape if row[1] else (), dtype=getattr(torch, row[0]), device=weight.device
            )
            for kind, row in own.items()
        }
        state.optimizer.state[weight] = moments
        into |= {f"{name}/{kind}": _piece(value, shares[name]) for kind, value in moments.items()}
    _fill(into, checkpoint, "optimizer")


@torch.no_grad()
def begin_again(state: TrainingState, config: RunConfig) -> None:
    """Make `state` that before the first step."""
    fresh = build_model(config.model, config.training.seed).state_dict()
    for network in (state.network, state.averaged):
        for name, value in _weights(network).items():
            own_tensor(value).copy_(_cut(fresh[name], value))
    state.optimizer.state.clear()
    state.step, state.counters, state.window = 0, Counters(), {}


def _cut(whole: Tensor, like: Tensor | Piece) -> Tensor:
    """The part of a whole tensor that `like` is of its own."""
    if not isinstance(like, Piece):
        return whole
    box = zip(like.offsets, like.own.shape, strict=True)
    return whole[tuple(slice(first, first + size) for first, size in box)]


def own_tensor(value: Tensor | Piece) -> Tensor:
    """The tensor of this process."""
    return value.own if isinstance(value, Piece) else value


def _counters(manifest: Manifest, checkpoint: Path) -> Counters:
    kinds = {entry.name: type(entry.default) for entry in fields(Counters)}
    found = {name: type(value) for name, value in manifest.state.items()}
    wrong = sorted(n for n in {**kinds, **found} if kinds.get(n) is not found.get(n))
    if wrong:
        raise _refusal(f"has no {wrong[0]} as this version has", checkpoint, "state of the run")
    return Counters(**manifest.state)  # type: ignore[arg-type]  # as the line above has found


def _check_moments(
    name: str, rows: dict[str, list[Any]], shape: tuple[int, ...], checkpoint: Path
) -> None:
    """Raise StorageError unless AdamW can go on with these."""
    shapes = {"step": [], "exp_avg": list(shape), "exp_avg_sq": list(shape)}
    if rows.keys() != shapes.keys():
        wrong = sorted(rows.keys() ^ shapes.keys())[0]
        raise _refusal(f"{'has' if wrong in rows else 'lacks'} {name}/{wrong}", checkpoint)
    for kind, wanted in shapes.items():
        dtype, found, _ = rows[kind]
        if found != wanted or dtype not in ("float32", "float64", "bfloat16", "float16"):
            raise _refusal(f"has {name}/{kind} as {dtype} {found}, not as {wanted}", checkpoint)


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
