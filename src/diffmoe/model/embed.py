"""Patches, positions and times to vectors, and tokens back to images."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diffmoe.model.layers import in_whole_vectors, steady

__all__ = ["PatchEmbedder", "TimeEmbedder", "position_table", "unpatchify"]

_FREQUENCIES = 256  # sinusoids of the time embedding
_MAX_PERIOD = 10_000.0


class PatchEmbedder(nn.Module):
    """One linear map of each patch, laid out (channel, row, column).

    A convolution with stride p in another order of work: its kernels treat one image unlike many.
    """

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, channels, patch, patch))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B T D"]:
        """A token for each patch, row by row."""
        patch = self.weight.shape[-1]
        tiles = x.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # B C h p w q
        rows = tiles.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return steady(lambda tiles: F.linear(tiles, self.weight.flatten(1), self.bias), rows)


class TimeEmbedder(nn.Module):
    """256 sinusoids of t and a two-layer network (SiLU)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(_FREQUENCIES, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, t: Float[Tensor, "B"]) -> Float[Tensor, "B D"]:
        """The embedding of each time, its sinusoids in float64: float32 is 1e-5 off at t = 1000."""
        half = _FREQUENCIES // 2
        index = torch.arange(half, device=t.device, dtype=torch.float64)
        angles = t[:, None].to(torch.float64) * torch.exp(-math.log(_MAX_PERIOD) / half * index)
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
        hidden = in_whole_vectors(F.silu, steady(self.fc1, waves.to(self.fc1.weight.dtype)))
        return steady(self.fc2, hidden)


def position_table(width: int, side: int) -> Float[Tensor, "1 T D"]:
    """Fixed 2-D sine-cosine positions, row-major; the first half of D encodes the column."""
    omega = 1.0 / _MAX_PERIOD ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * omega
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns = line[None].expand(side, side, -1)
    rows = line[:, None].expand(side, side, -1)
    return torch.cat([columns, rows], dim=-1).reshape(1, side * side, width).to(torch.float32)


def unpatchify(
    tokens: Float[Tensor, "B T Q"], patch: int, channels: int
) -> Float[Tensor, "B C H W"]:
    """Patches, each laid out (row, column, channel), back to an image."""
    side = math.isqrt(tokens.shape[1])
    grid = tokens.unflatten(1, (side, side)).unflatten(-1, (patch, patch, channels))
    return torch.einsum("bhwpqc->bchpwq", grid).reshape(
        tokens.shape[0], channels, side * patch, side * patch
    )
