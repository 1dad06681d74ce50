"""Stacked experts that execute a `Routing` record and know nothing of who chose.

Two executions of one function, chosen in `Experts.forward` by whether shapes are static:
a batched product when every expert has the same number of rows, a grouped product otherwise,
itself a kernel where torch has one that is right and a loop elsewhere. No buffer is larger than
the pairs themselves.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from diffmoe.model.layers import FEW_ROWS, gelu, steady
from diffmoe.model.routing import Routing

__all__ = ["Experts", "counts_stay_on_device", "grouped_linear"]

_ALIGNMENT = 16  # bytes: grouped_mm wants rows that start on such a boundary


def counts_stay_on_device(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether dynamic counts need no read by the host: torch's grouped product runs there."""
    if torch.version.cuda is None or device.type in ("cpu", "meta") or dtype != torch.bfloat16:
        return False
    return torch.cuda.get_device_capability(device)[0] in (9, 10)  # elsewhere it loops, too


def _grouped_mm_serves(rows: Tensor, weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether torch's grouped product is there and right for this device, dtype and shape."""
    sizes = (*rows.shape[1:], *weight.shape[1:])
    if rows.shape[0] == 0 or any(size * dtype.itemsize % _ALIGNMENT for size in sizes):
        return False
    return counts_stay_on_device(rows.device, dtype)


def _spans(ends: Tensor, sizes: Sequence[int] | None) -> list[tuple[int, int]]:
    """Start and end of each group; waits for the device unless the host has the sizes."""
    stops = ends.tolist() if sizes is None else list(itertools.accumulate(sizes))
    return list(zip([0, *stops[:-1]], stops, strict=True))


@torch.library.custom_op("diffmoe::grouped_linear", mutates_args=())
def grouped_linear(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ends: Tensor,
    sizes: Sequence[int] | None = None,
) -> Tensor:
    """`rows[a:b] @ weight[e] + bias[e]` for each group e; rows after the last give zeros.

    rows (N, K), weight (E, K, M), bias (E, M), ends (E,) the exclusive end of each group, sizes
    their sizes on the host; returns (N, M).
    """
    if _grouped_mm_serves(rows, weight, rows.dtype):
        group = _group_of_rows(rows, ends)
        product = F.grouped_mm(rows, weight, offs=ends.to(torch.int32))
        if bias is not None:
            product += F.embedding(group.clamp_max(len(ends) - 1), bias)
        return product.masked_fill_((group == len(ends))[:, None], 0)
    output = rows.new_empty(rows.shape[0], weight.shape[2])
    spans = _spans(ends, sizes)
    for group, (start, stop) in enumerate(spans):
        own = None if bias is None else bias[group]
        _affine(rows[start:stop], weight[group], own, out=output[start:stop])
    output[spans[-1][1] :] = 0
    return output


def _group_of_rows(rows: Tensor, ends: Tensor) -> Tensor:
    """The group of each row; rows after the last one are of group E."""
    index = torch.arange(rows.shape[0], device=rows.device)
    return torch.searchsorted(ends, index, right=True)


def _affine(rows: Tensor, weight: Tensor, bias: Tensor | None, *, out: Tensor) -> None:
    # One kernel adds the bias, whatever the rows: added later it would be rounded differently.
    if len(rows) == 0:
        return
    if len(rows) < FEW_ROWS:
        out.copy_(steady(lambda many: F.linear(many, weight.t(), bias), rows))
    elif bias is None:
        torch.mm(rows, weight, out=out)
    else:
        torch.addmm(bias, rows, weight, out=out)


@torch.library.custom_op("diffmoe::grouped_outer", mutates_args=())
def _grouped_outer(
    rows: Tensor, grads: Tensor, ends: Tensor, sizes: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """`rows[a:b].T @ grads[a:b]` and the sum of `grads[a:b]` for each group.

    (N, K), (N, M) -> (E, K, M), (E, M)
    """
    if _grouped_mm_serves(rows, grads[None], rows.dtype):
        sums = grads.new_zeros(len(ends) + 1, grads.shape[1])
        sums = sums.index_add_(0, _group_of_rows(rows, ends), grads)
        return F.grouped_mm(rows.t(), grads, offs=ends.to(torch.int32)), sums[:-1].clone()
    product = rows.new_empty(ends.shape[0], rows.shape[1], grads.shape[1])
    total = rows.new_empty(ends.shape[0], grads.shape[1])
    for group, (start, stop) in enumerate(_spans(ends, sizes)):
        torch.mm(rows[start:stop].t(), grads[start:stop], out=product[group])
        torch.sum(grads[start:stop], dim=0, out=total[group])
    return product, total


@grouped_linear.register_fake
def _(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ends: Tensor,
    sizes: Sequence[int] | None = None,
) -> Tensor:
    return rows.new_empty(rows.shape[0], weight.shape[2])


@_grouped_outer.register_fake
def _(
    rows: Tensor, grads: Tensor, ends: Tensor, sizes: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    experts, out = ends.shape[0], grads.shape[1]
    return rows.new_empty(experts, rows.shape[1], out), rows.new_empty(experts, out)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    rows, weight, bias, ends, ctx.sizes = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(rows, weight, ends)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (rows, weight, ends), sizes = ctx.saved_tensors, ctx.sizes
    grad = grad.contiguous()
    to_rows = grouped_linear(grad, weight.transpose(1, 2), None, ends, sizes)
    to_weight, to_bias = _grouped_outer(rows, grad, ends, sizes)
    return to_rows, to_weight, to_bias if ctx.has_bias else None, None, None


grouped_linear.register_autograd(_backward, setup_context=_save)


def _readable(tensor: Tensor) -> bool:
    """Whether the host may read a tensor's values: not while a graph is made of it."""
    return not (torch.compiler.is_compiling() or isinstance(tensor, FakeTensor))


class Experts(nn.Module):
    """E feed-forward networks D -> F -> D (GELU-tanh, biases) as stacked weights."""

    def __init__(self, num_experts: int, width: int, hidden: int) -> None:
        super().__init__()
        self.weight1 = nn.Parameter(torch.empty(num_experts, width, hidden))
        self.bias1 = nn.Parameter(torch.empty(num_experts, hidden))
        self.weight2 = nn.Parameter(torch.empty(num_experts, hidden, width))
        self.bias2 = nn.Parameter(torch.empty(num_experts, width))

    def initialize(self, generator: torch.Generator) -> None:
        """Xavier-uniform weights of each expert, zero biases."""
        for weight in (self.weight1, self.weight2):
            bound = (6.0 / (weight.shape[1] + weight.shape[2])) ** 0.5
            nn.init.uniform_(weight, -bound, bound, generator=generator)
        nn.init.zeros_(self.bias1)
        nn.init.zeros_(self.bias2)

    def forward(self, rows: Float[Tensor, "S D"], routing: Routing) -> Float[Tensor, "S D"]:
        """The gated sum of the outputs of the experts that took each row (Eq. 9)."""
        taken = rows.index_select(0, routing.token)
        output = self.outputs(taken, routing.count, routing.rows_per_expert, routing.sizes)
        gated = output * routing.gate[:, None]
        total = torch.zeros(rows.shape, dtype=gated.dtype, device=rows.device)
        return total.index_add(0, routing.token, gated).to(rows.dtype)

    def outputs(
        self,
        taken: Float[Tensor, "N D"],
        count: Int[Tensor, "E"],
        each: int | None,
        sizes: tuple[int, ...] | None,
    ) -> Float[Tensor, "N D"]:
        """What the experts make of rows that are sorted by expert, by `Routing`'s counts."""
        return self._grouped(taken, count, sizes) if each is None else self._batched(taken, each)

    def _batched(self, taken: Float[Tensor, "N D"], each: int) -> Float[Tensor, "N D"]:
        # As many rows as `steady` sees to: one image alone may have few for an expert.
        stacked = taken.view(len(self.weight1), each, taken.shape[1])
        if each < FEW_ROWS:
            stacked = F.pad(stacked, (0, 0, 0, FEW_ROWS - each))
        hidden = gelu(torch.baddbmm(self.bias1[:, None], stacked, self.weight1))
        output = torch.baddbmm(self.bias2[:, None], hidden, self.weight2)
        return output[:, :each].flatten(0, 1)

    def _grouped(
        self, taken: Float[Tensor, "N D"], count: Int[Tensor, "E"], sizes: tuple[int, ...] | None
    ) -> Float[Tensor, "N D"]:
        # A custom operator is opaque to autocast, so its arguments are cast here.
        device = taken.device.type
        low = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if low else taken.dtype
        ends = count.cumsum(0)
        loops = not _grouped_mm_serves(taken, self.weight1, dtype)
        if sizes is None and loops and _readable(taken):
            sizes = tuple(count.tolist())  # read once, not in each product

        def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return grouped_linear(x.to(dtype), weight.to(dtype), bias.to(dtype), ends, sizes)

        hidden = gelu(linear(taken, self.weight1, self.bias1))
        return linear(hidden, self.weight2, self.bias2)
