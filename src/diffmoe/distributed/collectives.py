"""What tensors processes exchange: parts of pools, and sums in an order that is always the same."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["OrderedReduceScatter", "PoolPeers", "gathered", "mean_in_order"]


def gathered(own: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """(size, *own.shape): what every process gives, in order of rank."""
    own = own.detach().contiguous()
    parts = own.new_empty(dist.get_world_size(group), *own.shape)
    dist.all_gather(list(parts.unbind()), own, group=group)
    return parts


class PoolPeers:
    """The processes that hold the parts of one pool, in the order of the parts."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self.place, self.parts = dist.get_rank(group), dist.get_world_size(group)

    @torch.no_grad()
    def gather(self, own: Tensor) -> Tensor:
        """(parts, *own.shape): what every process gives, in order of place."""
        return gathered(own, self._group)


def tree_sum(parts: Sequence[Tensor]) -> Tensor:
    """The sum of pairs, of pairs of pairs, and so on.

    So what groups of neighbours have added up themselves and then together is the same, bit for
    bit, where their numbers are powers of two.
    """
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=False)
        parts = [a + b for a, b in pairs] + list(parts[len(parts) // 2 * 2 :])
    return parts[0]


def _share(parts: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum, over the processes, of row r of the (size, N) `parts` on process r."""
    received = torch.empty_like(parts)
    dist.all_to_all_single(received, parts, group=group)
    return tree_sum(received.unbind())


class OrderedReduceScatter:
    """A reduce-scatter for FSDP2 on the CPU that adds up in the order of ranks.

    gloo's order depends on where in the buffer an element lies, so the same gradients in other
    buffers have other sums. The bytes sent are those of a ring.
    """

    def allocate(
        self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """A temporary buffer."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> None:
        """Fill `output_tensor` with this process's share of the sum, or of the mean."""
        total = _share(input_tensor.view(dist.get_world_size(group), -1), group)
        if op == dist.ReduceOp.AVG:
            total /= dist.get_world_size(group)
        output_tensor.copy_(total.view_as(output_tensor))


def mean_in_order(
    group: dist.ProcessGroup, bucket: dist.GradBucket
) -> torch.futures.Future[Tensor]:
    """A communication hook for DDP on the CPU that adds up in the order of ranks."""
    size, flat = dist.get_world_size(group), bucket.buffer()
    room = flat.new_zeros(size * -(-len(flat) // size))
    room[: len(flat)] = flat
    total = _share(room.view(size, -1), group) / size
    whole = gathered(total, group).flatten()
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(flat.copy_(whole[: len(flat)]))
    return done
