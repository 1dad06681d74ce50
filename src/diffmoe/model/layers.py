"""The dense networks of a block: attention, feed-forward, modulation (DiT), capacity predictor."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

__all__ = [
    "FEW_ROWS",
    "Attention",
    "CapacityPredictor",
    "CrossAttention",
    "FeedForward",
    "Modulate",
    "Modulation",
    "attend",
    "gelu",
    "in_whole_vectors",
    "linear_high",
    "modulated_norm",
    "steady",
]

FEW_ROWS = 16
_VECTOR = 32  # float32 values that kernels of CPUs take at once, at most


def steady(
    product: Callable[[Tensor], Tensor], rows: Float[Tensor, "*rows K"]
) -> Float[Tensor, "*rows M"]:
    """`product(rows)`, computed on at least 16 rows.

    BLAS adds up a few rows in another order than many: without this an image alone and the same
    image in a batch would differ in the last bits.
    """
    if rows.numel() >= FEW_ROWS * rows.shape[-1]:
        return product(rows)
    leading = rows.shape[:-1]
    padded = F.pad(rows.flatten(0, -2), (0, 0, 0, FEW_ROWS - leading.numel()))
    return product(padded)[: leading.numel()].unflatten(0, leading)


def in_whole_vectors(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`function(x)`, where `function` looks at each value by itself.

    Kernels of CPUs compute what is left behind the last whole vector by another formula: without
    this a value would depend, in its last bit, on how many others there are. Usual widths are
    whole vectors.
    """
    if x.shape[-1] % _VECTOR == 0 or x.numel() % _VECTOR == 0:
        return function(x)
    return function(F.pad(x.flatten(), (0, -x.numel() % _VECTOR)))[: x.numel()].view_as(x)


class Modulation(NamedTuple):
    """What the condition does to one branch of a block, each (B, 1, D)."""

    shift: Tensor
    scale: Tensor
    gate: Tensor


class Modulate(nn.Module):
    """SiLU and a zero-initialised projection of the condition to `parts` vectors (adaLN-Zero)."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.proj = nn.Linear(width, parts * width)

    def forward(self, condition: Float[Tensor, "B D"]) -> tuple[Tensor, ...]:
        """`parts` tensors (B, 1, D)."""
        parts = steady(self.proj, in_whole_vectors(F.silu, condition))
        return parts[:, None].chunk(self.parts, dim=-1)


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Float[Tensor, "B T D"]:
    """LayerNorm without affine parameters, then `* (1 + scale) + shift`."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def attend(
    queries: Float[Tensor, "B T H d"],
    keys: Float[Tensor, "B N H d"],
    values: Float[Tensor, "B N H d"],
    mask: Bool[Tensor, "B N"] | None = None,
) -> Float[Tensor, "B T H*d"]:
    """Mixtures of values, of those in `mask` if there is one, by likeness of query and key."""
    mixed = F.scaled_dot_product_attention(
        queries.transpose(1, 2),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        attn_mask=None if mask is None else mask[:, None, None],
    )
    return mixed.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Multi-head self-attention with a bias on queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Each token's mixture of all tokens of its image or caption, of those in `mask` if any."""
        queries, keys, values = steady(self.qkv, x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        return steady(self.proj, attend(queries, keys, values, mask))


class CrossAttention(nn.Module):
    """Multi-head attention of an image's tokens to those of its caption."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "B T D"], text: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"]
    ) -> Float[Tensor, "B T D"]:
        """Each token's mixture of the caption's tokens, of which `mask` says which are real."""
        queries = steady(self.query, x).unflatten(-1, (self.heads, -1))
        keys, values = steady(self.key_value, text).unflatten(-1, (2, self.heads, -1)).unbind(2)
        return steady(self.proj, attend(queries, keys, values, mask))


class FeedForward(nn.Module):
    """The dense FFN: D -> F -> D with GELU-tanh and biases."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        """Each row through the network, by itself."""
        return steady(self.fc2, gelu(steady(self.fc1, x)))


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form, as DiT has it."""
    return in_whole_vectors(functools.partial(F.gelu, approximate="tanh"), x)


def linear_high(
    x: Float[Tensor, "*rows D"], weight: Float[Tensor, "E D"], bias: Tensor | None = None
) -> Float[Tensor, "*rows E"]:
    """A linear map in at least float32, whatever autocast or the dtype of the weights say.

    Decisions who computes what hang on these values; bfloat16 would make ties of near misses.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        high = weight.to(dtype), None if bias is None else bias.to(dtype)
        return steady(lambda rows: F.linear(rows, *high), x.to(dtype))


class CapacityPredictor(nn.Module):
    """Linear, SiLU, Linear: one logit for each row and expert (Eq. 10)."""

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width)
        self.output = nn.Linear(width, experts)

    def initialize(self, generator: torch.Generator) -> None:
        """Xavier-uniform weights, zero biases."""
        for layer in (self.hidden, self.output):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, rows: Float[Tensor, "B T D"]) -> Float[Tensor, "B T E"]:
        """Logits in at least float32; the large product runs in the compute dtype.

        The rows are detached: what the predictor learns reaches nothing but the predictor.
        """
        hidden = in_whole_vectors(F.silu, steady(self.hidden, rows.detach()))
        return linear_high(hidden, self.output.weight, self.output.bias)
