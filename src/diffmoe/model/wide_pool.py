"""Selection from pools that go on in other processes: exact, by exchange of candidates alone.

The K-th largest value of a whole pool is among the K largest of each part. So each process tells
these values and no more: no rows, and no indices either, as of equal values the lower place's are
taken first, and at one place the lower row's. That is the order of one process, where the parts
would follow one another.

Axes beside those of `routing`: W places, M candidates, X = 2 E, affinities and then chances.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffmoe.model.routing import Peers, Pools, Routing
from diffmoe.model.selection import (
    blocks,
    in_order_of_pools,
    pairs_of_mask,
    pool_of_rows,
    ranked,
    rows_to_take,
    smallest_known,
    unsound_last,
)

__all__ = ["Scores", "wide_routing"]


class Scores(NamedTuple):
    """What a router thinks of the rows of one process."""

    affinity: Float[Tensor, "B T E"]
    demand: Float[Tensor, "B T E"]  # logits of the capacity predictor
    chances: Float[Tensor, "B T E"]  # their sigmoids, without gradient
    poisoned: Bool[Tensor, "B T"]  # rows with scores that are no numbers


class _Part(NamedTuple):
    """The own part of all pools of one size; M rows of it may be among the K of the whole."""

    rows: Int[Tensor, "P R"]
    order: Int[Tensor, "P E M"]  # the best rows of each expert, best first
    candidates: Float[Tensor, "P X M"]  # their affinities, and the largest chances
    keep: int  # K


def wide_routing(scores: Scores, pools: Pools, capacity: float, peers: Peers) -> Routing:
    """The own pairs of the top K = floor(S / E * C) of each whole pool, S its rows everywhere.

    One exchange and one read by the host: how many pairs are the own ones depends on all parts.
    """
    parts = _parts(scores, pools, capacity, peers.parts)
    mask = torch.zeros_like(scores.affinity.flatten(0, 1), dtype=torch.bool)
    smallest = []
    for part, everybody in zip(parts, _exchanged(parts, peers), strict=True):
        best = everybody.permute(1, 2, 0, 3).flatten(2).topk(part.keep, dim=-1, sorted=False).values
        smallest.append(smallest_known(best))
        number = _own_number(everybody, best, peers.place)
        mask[part.rows] = _taken(part, number).transpose(1, 2)
    lowest_gate, quantile = in_order_of_pools(smallest, pools).chunk(2, dim=1)
    gates = scores.affinity.masked_fill(scores.poisoned[..., None], 0).flatten(0, 1)
    token, gate, count, sizes = pairs_of_mask(mask, gates)
    return Routing(
        token=token,
        gate=gate,
        count=count,
        affinity=scores.affinity.flatten(0, 1),
        demand=scores.demand.flatten(0, 1),
        pool=pool_of_rows(pools, scores.affinity.shape[1], token.device),
        quantile=quantile.to(scores.demand.dtype),
        sizes=sizes,
        peers=peers,
        pools=len(pools),
        lowest_gate=lowest_gate.to(scores.affinity.dtype),
    )


def _parts(scores: Scores, pools: Pools, capacity: float, parts: int) -> list[_Part]:
    """The candidates of each size of pools: the min(K, R) largest of R rows."""
    affinity = scores.affinity.detach().masked_fill(scores.poisoned[..., None], -torch.inf)
    experts = affinity.shape[-1]
    both = unsound_last(torch.cat([affinity, scores.chances], dim=-1))
    found = []
    for block, rows in blocks(both, pools):
        keep = rows_to_take(rows.shape[1] * parts, experts, capacity)
        own, chances = block.split(experts, dim=1)
        order = ranked(own, min(keep, rows.shape[1]))
        largest = chances.topk(order.shape[-1], dim=-1, sorted=False).values
        found.append(_Part(rows, order, torch.cat([own.gather(2, order), largest], dim=1), keep))
    return found


def _exchanged(parts: list[_Part], peers: Peers) -> list[Float[Tensor, "W P X M"]]:
    """The candidates of all W places, for each size of pools; one exchange for all of them."""
    own = torch.cat([part.candidates.flatten() for part in parts])
    split = peers.gather(own).split([part.candidates.numel() for part in parts], dim=1)
    shapes = [part.candidates.shape for part in parts]
    return [values.unflatten(1, shape) for values, shape in zip(split, shapes, strict=True)]


def _own_number(
    everybody: Float[Tensor, "W P X M"], best: Float[Tensor, "P X K"], place: int
) -> Int[Tensor, "P E"]:
    """How many rows each expert takes of `place`: those above the K-th value, and ties in turn."""
    experts, keep = everybody.shape[2] // 2, best.shape[-1]
    affinity, level = everybody[:, :, :experts], best[:, :experts].amin(dim=-1)[..., None]
    above = (affinity > level).sum(dim=-1)
    ties = (affinity == level).sum(dim=-1)
    left = keep - above.sum(dim=0) - ties[:place].sum(dim=0)
    return above[place] + torch.minimum(left.clamp_min(0), ties[place])


def _taken(part: _Part, number: Int[Tensor, "P E"]) -> Bool[Tensor, "P E R"]:
    """Which rows are the first `number` in the order of each expert."""
    rank = torch.arange(part.order.shape[-1], device=number.device)
    mask = number.new_zeros(*number.shape, part.rows.shape[1], dtype=torch.bool)
    return mask.scatter_(2, part.order, rank < number[..., None])
