"""Stacked experts that execute a `Routing` record and know nothing of who chose.

Two executions of one function, chosen in `Experts.forward` by whether shapes are static:
a batched product when every expert has the same number of rows, a grouped product otherwise.
No buffer is larger than the pairs themselves.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffmoe.model.layers import steady
from diffmoe.model.routing import Routing

__all__ = ["Experts", "grouped_product"]

_ALIGNMENT = 16  # bytes: grouped_mm wants rows that start on such a boundary


def _grouped_mm_serves(rows: Tensor, weight: Tensor) -> bool:
    """Whether torch's grouped product is there and right for this device, dtype and shape."""
    if rows.device.type == "cpu":  # a loop over the experts there, too
        return False
    sizes = (*rows.shape[1:], *weight.shape[1:])
    if rows.shape[0] == 0 or any(size * rows.element_size() % _ALIGNMENT for size in sizes):
        return False
    return rows.dtype == torch.bfloat16 and torch.cuda.get_device_capability(rows.device) >= (9, 0)


def _spans(ends: Tensor) -> list[tuple[int, int]]:
    stops = ends.tolist()
    return list(zip([0, *stops[:-1]], stops, strict=True))


@torch.library.custom_op("diffmoe::grouped_product", mutates_args=())
def grouped_product(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """`rows[a:b] @ weight[e]` for each group e of rows; rows after the last group give zeros.

    rows (N, K), weight (E, K, M), ends (E,) the exclusive end of each group; returns (N, M).
    """
    if _grouped_mm_serves(rows, weight):
        product = F.grouped_mm(rows, weight, offs=ends.to(torch.int32))
        index = torch.arange(rows.shape[0], device=rows.device)
        return product.masked_fill_((index >= ends[-1])[:, None], 0)
    spans = _spans(ends)
    parts = [steady(m.__rmatmul__, rows[a:b]) for m, (a, b) in zip(weight, spans, strict=True)]
    return torch.cat([*parts, rows.new_zeros(rows.shape[0] - spans[-1][1], weight.shape[2])])


@torch.library.custom_op("diffmoe::grouped_outer", mutates_args=())
def _grouped_outer(rows: Tensor, grads: Tensor, ends: Tensor) -> Tensor:
    """`rows[a:b].T @ grads[a:b]` for each group; (N, K), (N, M) -> (E, K, M)."""
    product = rows.new_zeros(ends.shape[0], rows.shape[1], grads.shape[1])
    for expert, (start, stop) in enumerate(_spans(ends)):
        torch.mm(rows[start:stop].t(), grads[start:stop], out=product[expert])
    return product


@grouped_product.register_fake
def _(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[0], weight.shape[2])


@_grouped_outer.register_fake
def _(rows: Tensor, grads: Tensor, ends: Tensor) -> Tensor:
    return rows.new_empty(ends.shape[0], rows.shape[1], grads.shape[1])


def _save(
    ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor
) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
    rows, weight, ends = ctx.saved_tensors
    grad = grad.contiguous()
    to_rows = grouped_product(grad, weight.transpose(1, 2), ends)
    return to_rows, _grouped_outer(rows, grad, ends), None


grouped_product.register_autograd(_backward, setup_context=_save)


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
        each = routing.rows_per_expert
        output = self._grouped(taken, routing) if each is None else self._batched(taken, each)
        gated = output * routing.gate[:, None]
        total = torch.zeros(rows.shape, dtype=gated.dtype, device=rows.device)
        return total.index_add(0, routing.token, gated).to(rows.dtype)

    def _batched(self, taken: Float[Tensor, "N D"], each: int) -> Float[Tensor, "N D"]:
        stacked = taken.view(-1, each, taken.shape[1])
        hidden = F.gelu(
            torch.baddbmm(self.bias1[:, None], stacked, self.weight1), approximate="tanh"
        )
        return torch.baddbmm(self.bias2[:, None], hidden, self.weight2).flatten(0, 1)

    def _grouped(self, taken: Float[Tensor, "N D"], routing: Routing) -> Float[Tensor, "N D"]:
        expert, ends = routing.expert, routing.count.cumsum(0)
        hidden = F.gelu(
            _grouped_linear(taken, self.weight1, self.bias1, expert, ends), approximate="tanh"
        )
        return _grouped_linear(hidden, self.weight2, self.bias2, expert, ends)


def _grouped_linear(
    rows: Float[Tensor, "N K"],
    weight: Float[Tensor, "E K M"],
    bias: Float[Tensor, "E M"],
    expert: Int[Tensor, "N"],
    ends: Int[Tensor, "E"],
) -> Float[Tensor, "N M"]:
    # A custom operator is opaque to autocast, so its arguments are cast here.
    device = rows.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else rows.dtype
    product = grouped_product(rows.to(dtype), weight.to(dtype), ends)
    return product + F.embedding(expert, bias.to(dtype))
