"""Blocks of the Inception network: a table of convolutions, and the module that runs a row of it.

Szegedy et al. 2015, "Rethinking the Inception Architecture", table 1, as the TensorFlow graph of
2015-12-05 built it: 5x5 convolutions kept in the 35x35 blocks, average pools that do not count the
padding, a max pool in the last block. Names are those of its weight files.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["MIXED", "STEM", "Block", "Convolution", "Mixed", "Step"]

_EPSILON = 0.001


class Step(NamedTuple):
    """A convolution by its name in the weight files."""

    name: str
    channels: int
    height: int = 1
    width: int = 1
    stride: int = 1
    padded: bool = True  # to keep height and width, where the stride is 1


class Block(NamedTuple):
    """Branches side by side: chains of steps; steps in a tuple share their input."""

    branches: tuple[tuple[Step | tuple[Step, ...], ...], ...]
    pool: str  # "average" or "max", of 3 by 3 pixels
    pooled: int = 0  # channels of branch_pool; 0 = there is none, and the block halves the grid


def _grid_35(pooled: int) -> Block:
    """Figure 5, with the 5x5 convolution that figure 5 replaces."""
    return Block(
        (
            (Step("branch1x1", 64),),
            (Step("branch5x5_1", 48), Step("branch5x5_2", 64, 5, 5)),
            (
                Step("branch3x3dbl_1", 64),
                Step("branch3x3dbl_2", 96, 3, 3),
                Step("branch3x3dbl_3", 96, 3, 3),
            ),
        ),
        pool="average",
        pooled=pooled,
    )


def _grid_17(inner: int) -> Block:
    """Figure 6 with n = 7."""
    return Block(
        (
            (Step("branch1x1", 192),),
            (
                Step("branch7x7_1", inner),
                Step("branch7x7_2", inner, 1, 7),
                Step("branch7x7_3", 192, 7, 1),
            ),
            (
                Step("branch7x7dbl_1", inner),
                Step("branch7x7dbl_2", inner, 7, 1),
                Step("branch7x7dbl_3", inner, 1, 7),
                Step("branch7x7dbl_4", inner, 7, 1),
                Step("branch7x7dbl_5", 192, 1, 7),
            ),
        ),
        pool="average",
        pooled=192,
    )


def _grid_8(pool: str) -> Block:
    """Figure 7."""
    return Block(
        (
            (Step("branch1x1", 320),),
            (
                Step("branch3x3_1", 384),
                (Step("branch3x3_2a", 384, 1, 3), Step("branch3x3_2b", 384, 3, 1)),
            ),
            (
                Step("branch3x3dbl_1", 448),
                Step("branch3x3dbl_2", 384, 3, 3),
                (Step("branch3x3dbl_3a", 384, 1, 3), Step("branch3x3dbl_3b", 384, 3, 1)),
            ),
        ),
        pool=pool,
        pooled=192,
    )


_FROM_35_TO_17 = Block(  # figure 10
    (
        (Step("branch3x3", 384, 3, 3, stride=2),),
        (
            Step("branch3x3dbl_1", 64),
            Step("branch3x3dbl_2", 96, 3, 3),
            Step("branch3x3dbl_3", 96, 3, 3, stride=2),
        ),
    ),
    pool="max",
)
_FROM_17_TO_8 = Block(
    (
        (Step("branch3x3_1", 192), Step("branch3x3_2", 320, 3, 3, stride=2)),
        (
            Step("branch7x7x3_1", 192),
            Step("branch7x7x3_2", 192, 1, 7),
            Step("branch7x7x3_3", 192, 7, 1),
            Step("branch7x7x3_4", 192, 3, 3, stride=2),
        ),
    ),
    pool="max",
)
STEM = (
    (
        Step("Conv2d_1a_3x3", 32, 3, 3, stride=2),
        Step("Conv2d_2a_3x3", 32, 3, 3, padded=False),
        Step("Conv2d_2b_3x3", 64, 3, 3),
    ),
    (Step("Conv2d_3b_1x1", 80), Step("Conv2d_4a_3x3", 192, 3, 3, padded=False)),
)
MIXED = {
    "Mixed_5b": _grid_35(32),
    "Mixed_5c": _grid_35(64),
    "Mixed_5d": _grid_35(64),
    "Mixed_6a": _FROM_35_TO_17,
    "Mixed_6b": _grid_17(128),
    "Mixed_6c": _grid_17(160),
    "Mixed_6d": _grid_17(160),
    "Mixed_6e": _grid_17(192),
    "Mixed_7a": _FROM_17_TO_8,
    "Mixed_7b": _grid_8("average"),
    "Mixed_7c": _grid_8("max"),
}


class _Statistics(nn.Module):
    """Batch normalization by stored statistics; it has no mode to forget."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.zeros(channels))

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
        moments = (self.running_mean, self.running_var)
        return functional.batch_norm(x, *moments, self.weight, self.bias, eps=_EPSILON)


class Convolution(nn.Module):
    """Convolution without bias, normalization, ReLU."""

    def __init__(self, width: int, step: Step) -> None:
        super().__init__()
        same = step.padded and step.stride == 1  # steps that halve the grid are never padded
        self.conv = nn.Conv2d(
            width,
            step.channels,
            (step.height, step.width),
            stride=step.stride,
            padding=(step.height // 2, step.width // 2) if same else 0,
            bias=False,
        )
        self.bn = _Statistics(step.channels)

    def forward(self, x: Float[Tensor, "N _ _ _"]) -> Float[Tensor, "N C H W"]:
        return functional.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """A block: its branches' outputs, then the pooled input, along the channels."""

    def __init__(self, width: int, block: Block) -> None:
        super().__init__()
        self.block, self.channels = block, block.pooled or width
        for branch in block.branches:
            inside = width
            for step in branch:
                fork = (step,) if isinstance(step, Step) else step
                for tine in fork:
                    self.add_module(tine.name, Convolution(inside, tine))
                inside = sum(tine.channels for tine in fork)
            self.channels += inside
        if block.pooled:
            self.add_module("branch_pool", Convolution(width, Step("branch_pool", block.pooled)))

    def forward(self, x: Float[Tensor, "N _ _ _"]) -> Float[Tensor, "N C H W"]:
        return torch.cat(
            [*(self._branch(x, branch) for branch in self.block.branches), self._pool(x)], 1
        )

    def _branch(self, x: Tensor, branch: tuple[Step | tuple[Step, ...], ...]) -> Tensor:
        for step in branch:
            fork = (step,) if isinstance(step, Step) else step
            x = torch.cat([self.get_submodule(tine.name)(x) for tine in fork], dim=1)
        return x

    def _pool(self, x: Tensor) -> Tensor:
        if not self.block.pooled:
            return functional.max_pool2d(x, 3, stride=2)
        average = self.block.pool == "average"
        return self.branch_pool(_average(x) if average else functional.max_pool2d(x, 3, 1, 1))


def _average(x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
    """Mean of each pixel's 3 by 3 neighbourhood, of 4 or 6 pixels at corners and borders."""
    return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
