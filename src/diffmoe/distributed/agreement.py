"""What processes of one run must agree on: sound collectives, code, config, data and weights."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from diffmoe.distributed.collectives import gathered
from diffmoe.distributed.group import Group
from diffmoe.errors import PeerError

__all__ = ["code_fingerprint", "refuse_broken_collectives", "refuse_difference", "refuse_drift"]

_PACKAGE = Path(__file__).parents[1]


def code_fingerprint() -> str:
    """Names the sources of this package: their digest."""
    found = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        found.update(f"{path.relative_to(_PACKAGE)}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]


def refuse_difference(group: Group, facts: Mapping[str, str]) -> None:
    """Raise PeerError with a table of rank and value unless each fact is the same everywhere."""
    told = group.gather(dict(facts))
    for name in dict.fromkeys(name for own in told for name in own):
        values = [each.get(name, "none") for each in told]
        if len(set(values)) > 1:
            raise group.spoken(
                PeerError(
                    f"the processes differ in their {name}: {_table(values)}",
                    remedy="start all of them with the same command, version and files",
                )
            )


def _table(values: Sequence[Any]) -> str:
    ranks = {value: [r for r, own in enumerate(values) if own == value] for value in values}
    rows = (f"{_ranks(own)} has {str(value)[:200]}" for value, own in ranks.items())
    return "; ".join(rows)


def _ranks(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:4])) + (", ..." if len(ranks) > 4 else "")
    return f"process {shown}"


def refuse_drift(group: Group, told: Sequence[tuple[Any, int]], step: int) -> None:
    """Raise PeerError if two processes hold the same share of the weights and not the same bits.

    `told` has for each process which share it holds, and a sum of its bits.
    """
    known: dict[Any, tuple[int, int]] = {}
    for rank, (share, bits) in enumerate(told):
        other, same = known.setdefault(share, (rank, bits))
        if same != bits:
            raise group.spoken(
                PeerError(
                    f"the weights of process {rank} are no longer those of process {other} after"
                    f" step {step}",
                    remedy="one of the two machines computes wrongly: run `diffmoe selftest` on"
                    " each; the same command goes on from the last checkpoint",
                )
            )


def refuse_broken_collectives(group: Group, device: torch.device) -> None:
    """Raise PeerError unless every collective that training uses gives a known result."""
    found = {name: make(group, device) for name, make in _COLLECTIVES.items()}
    wrong = [name for name, (there, wanted) in found.items() if there.tolist() != wanted]
    broken = group.gather(wrong)
    for rank, names in enumerate(broken):
        if names:
            raise group.spoken(
                PeerError(
                    f"{', '.join(names)} of process {rank} gives wrong numbers",
                    remedy="check the versions of torch and of its communication library on all"
                    " machines",
                )
            )


Found = tuple[Tensor, list[Any]]


def _sum(group: Group, device: torch.device) -> Found:
    value = torch.full((3,), float(group.rank + 1), device=device, dtype=torch.float64)
    dist.all_reduce(value)
    return value, [group.size * (group.size + 1) / 2] * 3


def _host_largest(group: Group, device: torch.device) -> Found:
    return torch.tensor(group.largest(group.rank, -group.rank)), [group.size - 1, 0]


def _gather(group: Group, device: torch.device) -> Found:
    own = torch.full((2,), float(group.rank), device=device)
    return gathered(own).flatten(), [float(rank) for rank in range(group.size) for _ in range(2)]


def _scatter(group: Group, device: torch.device) -> Found:
    everybody = torch.arange(2.0 * group.size, device=device) * (group.rank + 1)
    own = torch.empty(2, device=device)
    dist.reduce_scatter(own, list(everybody.split(2)))
    total = group.size * (group.size + 1) / 2
    return own, [2 * group.rank * total, (2 * group.rank + 1) * total]


def _uneven(group: Group, device: torch.device) -> Found:
    """Process r sends r rows of its number to process 0, and one to each other."""
    sends = [group.rank if other == 0 else 1 for other in range(group.size)]
    receives = [r if group.rank == 0 else 1 for r in range(group.size)]
    rows = torch.full((sum(sends),), float(group.rank), device=device)
    there = torch.empty(sum(receives), device=device)
    dist.all_to_all_single(there, rows, receives, sends)
    return there, [float(r) for r, number in enumerate(receives) for _ in range(number)]


def _broadcast(group: Group, device: torch.device) -> Found:
    value = torch.full((2,), float(group.rank + 7), device=device)
    dist.broadcast(value, src=group.size - 1)
    return value, [group.size + 6.0] * 2


_COLLECTIVES = {
    "all-reduce": _sum,
    "all-gather": _gather,
    "reduce-scatter": _scatter,
    "all-to-all": _uneven,
    "broadcast": _broadcast,
    "the host's all-reduce": _host_largest,
}
