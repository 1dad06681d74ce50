"""Selection of rows: pools, the largest of them for each expert, and pairs from masks."""

import itertools
import math
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffmoe.errors import ConfigError
from diffmoe.model.routing import Pools, Routing, poisoned_rows

__all__ = [
    "blocks",
    "in_order_of_pools",
    "kth_largest",
    "padded_pairs",
    "pairs_of_mask",
    "pool_of_rows",
    "ranked",
    "rows_to_take",
    "smallest_gate",
    "smallest_known",
    "top_mask",
    "top_pairs",
    "unsound_last",
]


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
    rows = [_rows_of(members, tokens, device) for members in pools]
    return [torch.stack([own for own in rows if len(own) == size * tokens]) for size in sizes]


def _rows_of(members: tuple[int, ...], tokens: int, device: torch.device) -> Int[Tensor, "R"]:
    """Rows of the images of one pool, from ranges: a table from the host would make it wait."""
    runs: list[list[int]] = []
    for image in members:
        if runs and image == runs[-1][1]:
            runs[-1][1] += 1
        else:
            runs.append([image, image + 1])
    return torch.cat([torch.arange(a * tokens, b * tokens, device=device) for a, b in runs])


def rows_to_take(rows: int, experts: int, capacity: float) -> int:
    """K = floor(S / E * C), from one to all rows (Sec. 3.2); 0.57 * 100 counts as 57.

    Raises ConfigError for another K: to take fewer or more would be to train another model.
    """
    taken = int(rows * capacity / experts + 1e-9)
    if taken < 1:
        raise ConfigError(
            f"a pool of {rows} rows is too small for {experts} experts at capacity {capacity:g}:"
            " K would be 0",
            remedy=f"a pool needs {math.ceil(experts / capacity - 1e-9)} rows: put more images into"
            " it, or use a selection by threshold",
        )
    if taken > rows:
        raise ConfigError(
            f"a pool of {rows} rows has not the {taken} rows that each of {experts} experts would"
            f" take at capacity {capacity:g}",
            remedy=f"use a capacity of {experts} or less",
        )
    return taken


def unsound_last(values: Tensor) -> Tensor:
    """The values with -inf for what is no finite number: a topk would rank NaN first."""
    return values.nan_to_num(-torch.inf, -torch.inf, -torch.inf)


def ranked(
    values: Float[Tensor, "P E R"], keep: int, *, in_order: bool = True
) -> Int[Tensor, "P E K"]:
    """Indices of the `keep` largest values, the largest first; of equal ones the lower index.

    What is no finite number comes last. Not `in_order` they are found faster.
    """
    values = unsound_last(values)
    if values.dtype != torch.float32:
        return values.sort(dim=-1, descending=True, stable=True).indices[..., :keep]
    # Bits of floats order like integers (those of negative ones once they are turned round), and
    # an index below them tells equal ones apart. So a selection serves, where only a stable sort
    # of everything would.
    plain = values + 0.0  # 0 has two signs
    bits = plain.contiguous().view(torch.int32)
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(torch.int64)
    last = values.shape[-1] - 1
    index = torch.arange(last, -1, -1, device=values.device)
    return last - (
        ((ordered << 32) | index).topk(keep, dim=-1, sorted=in_order).values & 0xFFFFFFFF
    )


def _largest(values: Float[Tensor, "P E R"], keep: int) -> Int[Tensor, "P E K"]:
    """Indices, rising, of the `keep` largest values; of equal ones the lower index."""
    return ranked(values, keep, in_order=False).sort(dim=-1).values


def blocks(
    values: Float[Tensor, "B T E"], pools: Pools
) -> Iterator[tuple[Float[Tensor, "P E R"], Int[Tensor, "P R"]]]:
    """Values and row indices of all pools of one size, for each size (usually there is one)."""
    flat, even = values.flatten(0, 1), _even_size(pools) is not None
    for rows in _rows_by_size(pools, values.shape[1], flat.device):
        block = flat.view(*rows.shape, -1) if even else flat[rows]
        yield block.transpose(1, 2).contiguous(), rows


def top_pairs(
    affinity: Float[Tensor, "B T E"],
    pools: Pools,
    capacity: float,
    poisoned: Bool[Tensor, "B T"] | None = None,
) -> tuple[Int[Tensor, "E M"], Float[Tensor, "E M"]]:
    """Rows and gates of the top K = floor(S / E * C) of each pool, for each expert.

    Pool after pool; of equal affinities the lower row is taken. Poisoned rows, None meaning those
    whose affinities are no numbers, come last, and their gates are 0.
    """
    experts = affinity.shape[-1]
    bad = (poisoned_rows(affinity) if poisoned is None else poisoned)[..., None]
    values = affinity.detach().masked_fill(bad, -torch.inf)
    affinity = affinity.masked_fill(bad, 0)
    found = []
    for block, rows in blocks(values, pools):
        index = _largest(block, rows_to_take(rows.shape[1], experts, capacity))
        chosen = rows[:, None].expand_as(block).gather(2, index)
        found.append(chosen.transpose(0, 1).flatten(1))
    if not found:
        found = [torch.zeros(experts, 0, dtype=torch.int64, device=affinity.device)]
    token = torch.cat(found, dim=1) if len(found) > 1 else found[0]
    place = token * experts + torch.arange(experts, device=token.device)[:, None]
    return token, affinity.flatten().index_select(0, place.flatten()).view_as(token)


def kth_largest(
    values: Float[Tensor, "B T E"], pools: Pools, capacity: float
) -> Float[Tensor, "P E"]:
    """The K-th largest value of each expert in each pool (Eq. 17).

    Values that are no finite numbers do not count: of fewer than K the smallest, infinity of none.
    """
    if not pools:
        return values.new_zeros(0, values.shape[-1])
    found = []
    for block, rows in blocks(unsound_last(values), pools):
        keep = rows_to_take(rows.shape[1], values.shape[-1], capacity)
        found.append(smallest_known(block.topk(keep, dim=-1, sorted=False).values))
    return in_order_of_pools(found, pools)


def smallest_known(largest: Float[Tensor, "P E K"]) -> Float[Tensor, "P E"]:
    """The smallest of the largest values; -inf stands for what is no number and does not count."""
    return largest.masked_fill(largest == -torch.inf, torch.inf).amin(dim=-1)


def in_order_of_pools(found: list[Tensor], pools: Pools) -> Float[Tensor, "P E"]:
    """What was found of the pools of each size (`blocks`), pool after pool."""
    if len(found) == 1:
        return found[0]
    by_size = sorted(range(len(pools)), key=lambda pool: -len(pools[pool]))
    of_pool = dict(zip(by_size, (row for part in found for row in part), strict=True))
    return torch.stack([of_pool[pool] for pool in range(len(pools))])


def smallest_gate(routing: Routing, pools: int) -> Float[Tensor, "P E"]:
    """The K-th largest affinity of each expert in each pool: what `gate` selection tracks.

    As in `kth_largest`, rows whose scores are no numbers do not count. The pairs of one part
    of a pool do not tell it: there the record does.
    """
    if routing.lowest_gate is not None:
        return routing.lowest_gate
    experts = routing.affinity.shape[1]
    place = routing.pool[routing.token] * experts + routing.expert
    counts = routing.valid & ~routing.poisoned[routing.token]
    gates = torch.where(counts, routing.gate, torch.inf)
    smallest = gates.new_full((pools * experts,), torch.inf)
    return smallest.scatter_reduce(0, place, gates, "amin").view(pools, experts)


def top_mask(
    affinity: Float[Tensor, "B T E"], wanted: Bool[Tensor, "B T E"], pools: Pools
) -> Bool[Tensor, "S E"]:
    """For each pool and expert as many rows as `wanted` has, the best by affinity (Alg. 4)."""
    want = wanted.flatten(0, 1)
    mask = torch.zeros_like(want)
    for block, rows in blocks(unsound_last(affinity), pools):
        order = block.sort(dim=-1, descending=True, stable=True).indices
        place = torch.arange(rows.shape[1], device=order.device).expand_as(order)
        rank = torch.empty_like(order).scatter_(-1, order, place)
        number = want[rows].sum(dim=1)[..., None]
        mask[rows] = (rank < number).transpose(1, 2)
    return mask


def pairs_of_mask(
    mask: Bool[Tensor, "S E"], affinity: Float[Tensor, "S E"]
) -> tuple[Int[Tensor, "N"], Float[Tensor, "N"], Int[Tensor, "E"], tuple[int, ...]]:
    """Token, gate, count and sizes of the pairs a mask names, sorted by expert.

    The sizes are read from the device, which is the only time a layer waits for it.
    """
    count = mask.sum(dim=0)
    sizes = tuple(count.tolist())
    pairs = mask.t().nonzero_static(size=sum(sizes))
    expert, token = pairs.unbind(1)
    return token, affinity[token, expert], count, sizes


def padded_pairs(
    wanted: Bool[Tensor, "B T E"],
    demand: Float[Tensor, "B T E"],
    affinity: Float[Tensor, "B T E"],
    capacity: float,
) -> tuple[Int[Tensor, "N"], Float[Tensor, "N"], Int[Tensor, "E"], Int[Tensor, "B"]]:
    """Token, gate and count of the pairs wanted, in shapes that do not depend on them; the dropped.

    Each image has room for `capacity` pairs a token. If it wants more, those of lowest demand are
    dropped; if less, the rest is padding.
    """
    images, tokens, experts = wanted.shape
    room = min(int(tokens * capacity + 1e-9), tokens * experts)
    if room < 1:
        raise ConfigError(
            f"max_capacity {capacity:g} leaves an image of {tokens} tokens no pair",
            remedy=f"use {1 / tokens:g} or more",
        )
    score = demand.masked_fill(~wanted, -torch.inf).flatten(1)[:, None]
    index = _largest(score, room)[:, 0]
    valid = wanted.flatten(1).gather(1, index)
    gate = affinity.flatten(1).gather(1, index).masked_fill(~valid, 0)  # 0 times NaN is NaN
    first = torch.arange(images, device=index.device)[:, None] * tokens
    token = (first + index // experts).masked_fill(~valid, 0)
    expert = (index % experts).masked_fill(~valid, experts).flatten()  # padding comes last
    order = expert.argsort(stable=True)
    count = torch.zeros(experts + 1, dtype=torch.int64, device=index.device)
    count = count.index_add(0, expert, torch.ones_like(expert))[:experts]
    dropped = wanted.flatten(1).sum(dim=1) - valid.sum(dim=1)
    return token.flatten()[order], gate.flatten()[order], count, dropped


def pool_of_rows(pools: Pools, tokens: int, device: torch.device) -> Int[Tensor, "S"]:
    """The pool of each row of a batch."""
    size = _even_size(pools)
    if size is not None:
        return torch.arange(len(pools), device=device).repeat_interleave(size * tokens)
    if not pools:
        return torch.zeros(0, dtype=torch.int64, device=device)
    names = {image: pool for pool, members in enumerate(pools) for image in members}
    runs = itertools.groupby(names[image] for image in range(len(names)))
    return torch.cat(
        [torch.full((len(list(run)) * tokens,), pool, device=device) for pool, run in runs]
    )
