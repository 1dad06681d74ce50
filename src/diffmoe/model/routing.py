"""Routing as data: the record every router returns, the plan it obeys, and selection of rows.

Axes: B images, T tokens an image, S = B*T pool rows, D width, E experts, N token-expert pairs,
P pools, K rows an expert takes of a pool, L MoE layers.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffmoe.config import LEGAL_POLICIES
from diffmoe.errors import ConfigError

__all__ = [
    "Routing",
    "RoutingPlan",
    "Selected",
    "capacity_of_images",
    "kth_largest",
    "pairs_of_mask",
    "pool_of_rows",
    "smallest_gate",
    "top_mask",
    "top_pairs",
]

Pools = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Which expert takes which rows, and with what gate; the experts need nothing else.

    Pairs are sorted by expert. The first `count.sum()` pairs are valid, any after them are
    padding (token 0, gate 0). `rows_per_expert` is set when every expert has exactly that many
    pairs and there is no padding: shapes are then static.
    """

    token: Int[Tensor, "N"]  # row of each pair
    gate: Float[Tensor, "N"]  # factor of the expert's output, raw softmax value
    count: Int[Tensor, "E"]  # pairs of each expert
    affinity: Float[Tensor, "S E"]  # softmax over experts (Eq. 4)
    demand: Float[Tensor, "S E"] | None  # logits of the capacity predictor (Eq. 10)
    pool: Int[Tensor, "S"]  # pool of each row
    quantile: Float[Tensor, "P E"] | None  # K-th largest sigmoid(demand) of each pool, training
    rows_per_expert: int | None

    @property
    def rows(self) -> int:
        """Pool rows, S."""
        return self.affinity.shape[0]

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
    """

    selection: Literal["train", "token", "pool", "gate", "image"]
    policy: Literal["ema", "constant", "static", "target"] | None = None
    thresholds: Float[Tensor, "L E"] | None = None  # None = the ones the model tracks
    pool_of_image: tuple[int, ...] | None = None  # pool of each image; None = one pool for all

    def __post_init__(self) -> None:
        if self.policy not in LEGAL_POLICIES[self.selection]:
            raise ConfigError(f"policy {self.policy} does not go with selection {self.selection}")
        if self.policy in ("constant", "target") and self.thresholds is None:
            raise ConfigError(f"policy {self.policy} needs thresholds")

    def _members(self) -> Pools:
        pools: dict[int, list[int]] = {}
        for image, pool in enumerate(self.pool_of_image or ()):
            pools.setdefault(pool, []).append(image)
        return tuple(tuple(members) for members in pools.values())

    def pools(self, images: int) -> Pools:
        """The images of each pool of a batch."""
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


@dataclass(frozen=True)
class Selected:
    """Rows selected with a static K, before they become a `Routing`."""

    token: Int[Tensor, "E M"]  # rows of each expert, pool after pool, best first
    gate: Float[Tensor, "E M"]


def _even_size(pools: Pools) -> int | None:
    """Images of a pool if all pools are consecutive and of one size, as in training.

    Their rows are then a range, which a device makes by itself: no copy from the host.
    """
    images = [image for members in pools for image in members]
    even = len({len(members) for members in pools}) == 1 and images == list(range(len(images)))
    return len(pools[0]) if even else None


def _rows_by_size(pools: Pools, tokens: int, device: torch.device) -> list[Int[Tensor, "P R"]]:
    """Row indices of the pools, one tensor for all pools of one size (usually one in all)."""
    size = _even_size(pools)
    if size is not None:
        return [torch.arange(len(pools) * size * tokens, device=device).view(len(pools), -1)]
    sizes = sorted({len(members) for members in pools}, reverse=True)
    offsets = torch.arange(tokens, device=device)
    tables = [
        torch.tensor([members for members in pools if len(members) == size], device=device)
        for size in sizes
    ]
    return [(table[:, :, None] * tokens + offsets).flatten(1) for table in tables]


def _rows_to_take(rows: int, experts: int, capacity: float) -> int:
    """K = floor(S / E * C), at least one (Sec. 3.2); 0.57 * 100 counts as 57."""
    taken = int(rows * capacity / experts + 1e-9)
    if taken < 1:
        raise ConfigError(
            f"a pool of {rows} rows is too small for {experts} experts at capacity {capacity:g}:"
            " K would be 0",
            remedy="use a larger batch, or a selection by threshold",
        )
    return min(taken, rows)


def top_pairs(affinity: Float[Tensor, "B T E"], pools: Pools, capacity: float) -> Selected:
    """The top K = floor(S / E * C) rows of each pool for each expert; ties to the lower row."""
    flat = affinity.flatten(0, 1)
    experts = flat.shape[1]
    tokens, gates = [], []
    for rows in _rows_by_size(pools, affinity.shape[1], flat.device):
        keep = _rows_to_take(rows.shape[1], experts, capacity)
        best = flat[rows].sort(dim=1, descending=True, stable=True)
        index = best.indices[:, :keep]
        chosen = rows.gather(1, index.flatten(1)).view_as(index)
        tokens.append(chosen.permute(2, 0, 1).flatten(1))
        gates.append(best.values[:, :keep].permute(2, 0, 1).flatten(1))
    return Selected(torch.cat(tokens, dim=1), torch.cat(gates, dim=1))


def kth_largest(
    values: Float[Tensor, "B T E"], pools: Pools, capacity: float
) -> Float[Tensor, "P E"]:
    """The K-th largest value of each expert in each pool (Eq. 17)."""
    flat = values.flatten(0, 1)
    found = []
    for rows in _rows_by_size(pools, values.shape[1], flat.device):
        keep = _rows_to_take(rows.shape[1], flat.shape[1], capacity)
        found.append(flat[rows].topk(keep, dim=1).values[:, -1])
    by_size = sorted(range(len(pools)), key=lambda pool: -len(pools[pool]))
    place = sorted(range(len(pools)), key=by_size.__getitem__)
    return torch.cat(found)[place] if len(found) > 1 else found[0]


def smallest_gate(routing: Routing, pools: int) -> Float[Tensor, "P E"]:
    """The K-th largest affinity of each expert in each pool: what `gate` selection tracks."""
    experts = routing.affinity.shape[1]
    place = routing.pool[routing.token] * experts + routing.expert
    gates = routing.gate.masked_fill(~routing.valid, torch.inf)
    smallest = gates.new_full((pools * experts,), torch.inf)
    return smallest.scatter_reduce(0, place, gates, "amin").view(pools, experts)


def top_mask(
    affinity: Float[Tensor, "B T E"], wanted: Bool[Tensor, "B T E"], pools: Pools
) -> Bool[Tensor, "S E"]:
    """For each pool and expert as many rows as `wanted` has, the best by affinity (Alg. 4)."""
    flat, want = affinity.flatten(0, 1), wanted.flatten(0, 1)
    mask = torch.zeros_like(want)
    for rows in _rows_by_size(pools, affinity.shape[1], flat.device):
        order = flat[rows].sort(dim=1, descending=True, stable=True).indices
        place = torch.arange(rows.shape[1], device=flat.device)[None, :, None].expand_as(order)
        rank = torch.empty_like(order).scatter_(1, order, place)
        mask[rows] = rank < want[rows].sum(dim=1, keepdim=True)
    return mask


def pairs_of_mask(
    mask: Bool[Tensor, "S E"], affinity: Float[Tensor, "S E"]
) -> tuple[Int[Tensor, "N"], Float[Tensor, "N"], Int[Tensor, "E"]]:
    """Token, gate and count of the pairs a mask names, sorted by expert (one host read)."""
    expert, token = mask.t().nonzero(as_tuple=True)
    return token, affinity[token, expert], mask.sum(dim=0)


def pool_of_rows(pools: Pools, tokens: int, device: torch.device) -> Int[Tensor, "S"]:
    """The pool of each row of a batch."""
    size = _even_size(pools)
    if size is not None:
        return torch.arange(len(pools), device=device).repeat_interleave(size * tokens)
    names = {image: pool for pool, members in enumerate(pools) for image in members}
    labels = torch.tensor([names[image] for image in range(len(names))], device=device)
    return labels.repeat_interleave(tokens)


def capacity_of_images(routing: Routing, tokens: int) -> Float[Tensor, "B"]:
    """Expert evaluations per token of each image: the capacity it was given (Eq. 15)."""
    ones = routing.valid.to(torch.float32)
    taken = torch.zeros(routing.rows, device=ones.device).index_add(0, routing.token, ones)
    return taken.view(-1, tokens).mean(dim=1)
