"""Routing as data: the record every router returns and the plan it obeys.

Axes: B images, T tokens an image, S = B*T pool rows, D width, E experts, N token-expert pairs,
P pools, K rows an expert takes of a pool, L MoE layers.

A pool may be wider than a process: the rows of it that lie elsewhere are known through `Peers`.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffmoe.config import LEGAL_POLICIES
from diffmoe.errors import ConfigError

__all__ = ["Peers", "Pools", "Routing", "RoutingPlan", "capacity_of_images", "poisoned_rows"]

Pools = tuple[tuple[int, ...], ...]


@runtime_checkable
class Peers(Protocol):
    """The processes that hold the other parts of the same pools.

    Parts follow one another in order of images and have equally many rows of each pool. Every
    process calls `gather` for the same layers in the same order: once a layer in the forward pass,
    once more in a loss that looks at whole pools. With activation checkpointing the backward pass
    selects again, so the exchanges of the forward pass are repeated, last block first, by all.
    """

    @property
    def place(self) -> int:
        """Which part is the own one, from 0."""

    @property
    def parts(self) -> int:
        """How many parts a pool has, the own one included."""

    def gather(self, own: Tensor) -> Tensor:
        """(parts, *own.shape): everybody's, in order of place; equal shapes; no gradient."""


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Which expert takes which rows, and with what gate; the experts need nothing else.

    Pairs are sorted by expert. The first `count.sum()` pairs are valid, any after them are
    padding (token 0, gate 0). `rows_per_expert` is set when every expert has exactly that many
    pairs by construction: shapes are then static. `sizes` are the counts where they were read
    from the device already: nobody else need wait for it.

    Where pools go on at `peers`, the record holds the own pairs, and how many these are depends on
    the other parts, too; `quantile` and `lowest_gate` are those of the whole pools.
    """

    token: Int[Tensor, "N"]  # row of each pair
    gate: Float[Tensor, "N"]  # factor of the expert's output, raw softmax value
    count: Int[Tensor, "E"]  # pairs of each expert
    affinity: Float[Tensor, "S E"]  # softmax over experts (Eq. 4)
    demand: Float[Tensor, "S E"] | None  # logits of the capacity predictor (Eq. 10)
    pool: Int[Tensor, "S"]  # pool of each row
    quantile: Float[Tensor, "P E"] | None  # K-th largest sigmoid(demand) of each pool, training
    rows_per_expert: int | None = None
    sizes: tuple[int, ...] | None = None
    dropped: Int[Tensor, "B"] | None = None  # pairs an image lost to `max_capacity`
    wanted: Bool[Tensor, "S E"] | None = None  # rows above each threshold, where there is one
    peers: Peers | None = None  # who holds the other parts of the pools; None = they are whole
    pools: int | None = None  # how many pools there are, where a loss has to ask the peers
    lowest_gate: Float[Tensor, "P E"] | None = None  # K-th largest affinity, where peers had a say

    @property
    def rows(self) -> int:
        """Pool rows, S."""
        return self.affinity.shape[0]

    @cached_property
    def poisoned(self) -> Bool[Tensor, "S"]:
        """Which rows have scores that are no numbers; they take nothing from anybody else."""
        return poisoned_rows(self.affinity, self.demand)

    @property
    def expert(self) -> Int[Tensor, "N"]:
        """Expert of each pair; padding belongs to the last."""
        ends = self.count.cumsum(0)
        index = torch.arange(self.token.shape[0], device=self.token.device)
        return torch.searchsorted(ends, index, right=True).clamp_max(ends.shape[0] - 1)

    @property
    def valid(self) -> Bool[Tensor, "N"]:
        """Which pairs are no padding."""
        index = torch.arange(self.token.shape[0], device=self.token.device)
        return index < self.count.sum()

    @property
    def chosen(self) -> Bool[Tensor, "S E"]:
        """Whether each expert took each row (the predictor's label, Eq. 11)."""
        times = torch.zeros(self.affinity.shape, dtype=torch.int64, device=self.token.device)
        place, valid = (self.token, self.expert), self.valid.to(torch.int64)
        return times.index_put(place, valid, accumulate=True) > 0  # padding adds 0 to a pair


@dataclass(frozen=True, kw_only=True)
class RoutingPlan:
    """How rows are selected in one forward pass.

    `train`: top-K of each pool. `token`: rows whose demand is above a threshold (independent of
    the batch). `pool`: as many rows as are above the threshold, taken by affinity (Alg. 4), or
    top-K with policy `static`. `gate`: rows whose affinity is above a threshold. `image`: top-K
    of each image.

    `max_capacity` caps what an image may take in `token` and `gate` selection: shapes are then
    static, so nothing waits for the device; what is above the cap goes by lowest demand.

    With `peers` each pool is one part of a pool that spans `peers.parts` processes, and K is that
    of the whole; only `train` has such pools.
    """

    selection: Literal["train", "token", "pool", "gate", "image"]
    policy: Literal["ema", "constant", "static", "target"] | None = None
    thresholds: Float[Tensor, "L E"] | None = None  # None = the ones the model tracks
    pool_of_image: tuple[int, ...] | None = None  # pool of each image; None = one pool for all
    max_capacity: float | None = None  # pairs an image gets room for, times 1 / T; None = no cap
    peers: Peers | None = None  # who holds the other parts of the pools; None = they are whole

    def __post_init__(self) -> None:
        if self.policy not in LEGAL_POLICIES[self.selection]:
            raise ConfigError(f"policy {self.policy} does not go with selection {self.selection}")
        if self.policy in ("constant", "target") and self.thresholds is None:
            raise ConfigError(f"policy {self.policy} needs thresholds")
        if self.peers is not None and self.selection != "train":
            raise ConfigError(
                f"selection {self.selection} has no pools that go on in other processes",
                remedy="give `peers` with selection train only",
            )
        if self.max_capacity is not None:
            if self.selection not in ("token", "gate"):
                raise ConfigError(
                    f"max_capacity {self.max_capacity} has no meaning in selection"
                    f" {self.selection}",
                    remedy="only `token` and `gate` selection take as many rows as they like",
                )
            if not self.max_capacity > 0:
                raise ConfigError(f"max_capacity {self.max_capacity} is not positive")

    def _members(self) -> Pools:
        pools: dict[int, list[int]] = {}
        for image, pool in enumerate(self.pool_of_image or ()):
            pools.setdefault(pool, []).append(image)
        return tuple(tuple(members) for members in pools.values())

    def pools(self, images: int) -> Pools:
        """The images of each pool of a batch; a batch of none has no pools."""
        if images == 0:
            return ()
        if self.selection == "image":
            return tuple((image,) for image in range(images))
        if self.pool_of_image is None:
            return (tuple(range(images)),)
        if len(self.pool_of_image) != images:
            raise ConfigError(
                f"the plan names the pools of {len(self.pool_of_image)} images,"
                f" the batch has {images}"
            )
        return self._members()


def poisoned_rows(
    affinity: Float[Tensor, "*rows E"], demand: Float[Tensor, "*rows E"] | None = None
) -> Bool[Tensor, "*rows"]:
    """Whether any score of a row is no finite number; their sums tell, in few kernels."""
    total = affinity.detach().sum(dim=-1)
    if demand is not None:
        total = total + demand.detach().sum(dim=-1)
    return total * 0 != 0


def capacity_of_images(routing: Routing, tokens: int) -> Float[Tensor, "B"]:
    """Expert evaluations per token of each image: the capacity it was given (Eq. 15)."""
    ones = routing.valid.to(torch.float32)
    taken = torch.zeros(routing.rows, device=ones.device).index_add(0, routing.token, ones)
    return taken.view(-1, tokens).mean(dim=1)
