"""Experts that live on several processes: rows travel to them and back."""

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_to_all_single_autograd

from diffmoe.distributed import gathered
from diffmoe.model import Experts

__all__ = ["SpreadExperts"]


class SpreadExperts(Experts):
    """E / n of E experts, the other ones on the n - 1 other processes of `group`.

    Process r has experts r E / n and following. What is computed is what `Experts` computes: each
    row of an expert's rows by itself. Of the batch pool every expert has exactly K rows a pool, so
    the processes have equal work, and no count is read from the device.
    """

    def __init__(self, whole: Experts, group: dist.ProcessGroup) -> None:
        nn.Module.__init__(self)
        self.group, self.parts = group, dist.get_world_size(group)
        rank, own = dist.get_rank(group), len(whole.weight1) // self.parts
        for name, weight in whole.named_parameters():
            kept = weight.detach()[rank * own : (rank + 1) * own].clone()
            setattr(self, name, nn.Parameter(kept, requires_grad=weight.requires_grad))

    def outputs(
        self,
        taken: Float[Tensor, "N D"],
        count: Tensor,
        each: int | None,
        sizes: tuple[int, ...] | None,
    ) -> Float[Tensor, "N D"]:
        """What the experts make of the rows, wherever they live; rows are sorted by expert."""
        own = len(count) // self.parts
        if torch.is_autocast_enabled(taken.device.type):  # they travel as they are multiplied
            taken = taken.to(torch.get_autocast_dtype(taken.device.type))
        if each is not None:
            there = self._exchange(taken, [own * each] * self.parts, [own * each] * self.parts)
            blocks = there.view(self.parts, own, each, -1).transpose(0, 1)
            made = self._batched(blocks.flatten(0, 2), self.parts * each)
            back = made.view(own, self.parts, each, -1).transpose(0, 1).flatten(0, 2)
            return self._exchange(back, [own * each] * self.parts, [own * each] * self.parts)
        rank = dist.get_rank(self.group)
        table = gathered(count, self.group).tolist()  # of every process, read once
        sends = [sum(table[rank][part * own : (part + 1) * own]) for part in range(self.parts)]
        coming = [row[rank * own : (rank + 1) * own] for row in table]
        receives = [sum(row) for row in coming]
        order = _by_expert(coming).to(taken.device)
        there = self._exchange(taken, receives, sends)[order]
        mine = tuple(sum(column) for column in zip(*coming, strict=True))
        made = self._grouped(there, torch.tensor(mine, device=taken.device), mine)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        return self._exchange(made[back], sends, receives)

    def _exchange(self, rows: Tensor, receives: list[int], sends: list[int]) -> Tensor:
        return all_to_all_single_autograd(rows.contiguous(), receives, sends, self.group)


def _by_expert(coming: list[list[int]]) -> Tensor:
    """Indices that sort rows that came by (process, expert) by expert, then by process."""
    counts = torch.tensor(coming)
    experts = torch.arange(counts.shape[1]).repeat(counts.shape[0])
    return experts.repeat_interleave(counts.flatten()).argsort(stable=True)
