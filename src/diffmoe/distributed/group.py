"""The processes of a run: who they are and what they say to each other.

One process has no process group and says everything to itself.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from diffmoe.errors import ConfigError, DiffMoEError

__all__ = ["ALONE", "Group", "announced"]

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Group:
    """This process among those of its run.

    Numbers and short messages of the host go over `host`, tensors over the default group of their
    device. Every method but the properties must be called by all processes, in the same order.
    """

    rank: int = 0
    size: int = 1
    host: Any = None  # process group of the CPU
    timeout: timedelta | None = None  # after which a process that does not answer counts as hung
    _places: list[str] = field(default_factory=list, repr=False, compare=False)

    @property
    def first(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    @property
    def place(self) -> str:
        """What this process was last known to do."""
        return self._places[-1] if self._places else "the start"

    def note(self, place: str) -> None:
        """Let errors of the others say what this process does: it waits for them in `place`."""
        self._places[:] = [place]

    def gather(self, value: Any) -> list[Any]:
        """The `value` of every process, in order of rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.host)
        return found

    def largest(self, *values: int) -> tuple[int, ...]:
        """The largest of each number over all processes."""
        if self.size == 1:
            return values
        numbers = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(numbers, dist.ReduceOp.MAX, group=self.host)
        return tuple(numbers.tolist())

    def first_says(self, make: Callable[[], _Answer]) -> _Answer:
        """What `make` returns on the first process; its DiffMoEError is raised by all of them."""
        if self.size == 1:
            return make()
        said: list[Any] = [None, None]
        if self.first:
            try:
                said[0] = make()
            except DiffMoEError as error:
                said[1] = error
        dist.broadcast_object_list(said, src=0, group=self.host)
        answer, failure = said
        if failure is not None:
            raise self.spoken(failure)
        return answer

    def add_up(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Each tensor's sum over all processes: together one message of float64 numbers."""
        if self.size == 1:
            return list(tensors)
        kinds: dict[torch.dtype, list[int]] = {}  # one cast for all of a kind, not for each
        for number, tensor in enumerate(tensors):
            kinds.setdefault(tensor.dtype, []).append(number)
        flat = [torch.cat([tensors[n].detach().flatten() for n in own]) for own in kinds.values()]
        packed = torch.cat([block.double() for block in flat])
        dist.all_reduce(packed)
        found = list(tensors)
        for (kind, own), block in zip(
            kinds.items(), packed.split([len(block) for block in flat]), strict=True
        ):
            parts = block.to(kind).split([tensors[n].numel() for n in own])
            for number, part in zip(own, parts, strict=True):
                found[number] = part.view(tensors[number].shape)
        return found

    def spoken(self, error: DiffMoEError) -> DiffMoEError:
        """An error that all processes raise, to be printed by the first."""
        error.told = not self.first
        return error

    def beside(self) -> "Group":
        """The same processes with a channel of their own, for a second thread."""
        if self.size == 1:
            return self
        return replace(self, host=dist.new_group(backend="gloo", timeout=self.timeout))


ALONE = Group()


def announced() -> tuple[int, int]:
    """The rank of this process and the number of all, as a launcher has told them."""
    rank, size = (os.environ.get(name) or "0" for name in ("RANK", "WORLD_SIZE"))
    try:
        return int(rank), max(1, int(size))
    except ValueError:
        raise ConfigError(
            f"RANK {rank} and WORLD_SIZE {size} are no numbers", remedy="start it with torchrun"
        ) from None
