"""Several processes as one run: their group, what they exchange, and how failures are told."""

from diffmoe.distributed.agreement import (
    code_fingerprint,
    refuse_broken_collectives,
    refuse_difference,
    refuse_drift,
)
from diffmoe.distributed.collectives import OrderedReduceScatter, PoolPeers, gathered, mean_in_order
from diffmoe.distributed.group import ALONE, Group, announced
from diffmoe.distributed.joining import is_of_peers, joined, told_by_first

__all__ = [
    "ALONE",
    "Group",
    "OrderedReduceScatter",
    "PoolPeers",
    "announced",
    "code_fingerprint",
    "gathered",
    "is_of_peers",
    "joined",
    "mean_in_order",
    "refuse_broken_collectives",
    "refuse_difference",
    "refuse_drift",
    "told_by_first",
]
