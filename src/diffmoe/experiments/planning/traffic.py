"""Bytes that one GPU sends in an optimizer step, by collective."""

from dataclasses import dataclass

from diffmoe.config import RunConfig
from diffmoe.experiments.planning.layout import Layout
from diffmoe.experiments.planning.memory import candidates, product_bytes
from diffmoe.experiments.planning.sizes import capacity_of, reported, sizes_of

__all__ = ["Collective", "break_even", "traffic"]

_BYTES = 4  # of a gradient
_REPORTED = 8  # losses, norms and statistics are summed in float64


@dataclass(frozen=True)
class Collective:
    """What is sent, how much of it, and among how many consecutive processes."""

    name: str
    sent: float  # bytes of one GPU and optimizer step, by algorithms on a ring
    span: int  # from the first to the last process of a group: which wires it takes


def traffic(
    config: RunConfig, layout: Layout, micro_batch: int, recompute: bool
) -> list[Collective]:
    """The collectives of one optimizer step, those that send nothing left out."""
    steps = config.training.global_batch // (layout.gpus * micro_batch)
    found = [*_weights(config, layout, steps), *_rows(config, layout, recompute)]
    found += _pools(config, layout, micro_batch, steps * (2 if recompute else 1))
    found.append(
        Collective(
            "sums of losses and statistics",
            2 * _over(layout.gpus) * _REPORTED * reported(config),
            layout.gpus,
        )
    )
    return [each for each in found if each.sent]


def _over(processes: int) -> float:
    """The share of a tensor that a ring of processes sends once round."""
    return (processes - 1) / processes


def _weights(config: RunConfig, layout: Layout, steps: int) -> list[Collective]:
    """Gradients, and under FSDP2 the weights, of the dense part and of the experts.

    Copies are summed up once, after the last micro-batch. Where one is shared, FSDP2 gathers blocks
    for forward and again for backward of each micro-batch, everything else once, and scatters the
    gradients of each. Processes that share the dense part are consecutive; those that share experts
    lie an expert group apart.
    """
    sizes, low = sizes_of(config.model), product_bytes(config)
    if not layout.fully_sharded:
        trained = sizes.total - sizes.fixed
        return [_all_reduce("gradients: all-reduce", trained, layout.gpus, layout.gpus)]
    always = _BYTES * (sizes.routers + sizes.outside)
    found = []
    for what, size, gathered, shard, spread in (
        ("dense", sizes.dense, 2 * low * sizes.blocks + always, layout.shard, 1),
        ("experts", sizes.experts, 2 * low * sizes.experts, layout.expert_shard, layout.expert),
    ):
        own, copies = size / spread, layout.gpus // (shard * spread)
        times = steps * _over(shard)
        found += [
            Collective(f"{what}: all-gather", times * gathered / spread, shard * spread),
            Collective(f"{what}: reduce-scatter", times * own * _BYTES, shard * spread),
            _all_reduce(f"{what}: all-reduce", own / shard, copies, layout.gpus),
        ]
    return found


def _all_reduce(name: str, numbers: float, copies: int, span: int) -> Collective:
    return Collective(name, 2 * _over(copies) * numbers * _BYTES, span)


def _row_bytes(config: RunConfig, recompute: bool) -> int:
    """Bytes of one value of a row on all its ways: there and back, forward and backward.

    They and their gradients travel in the dtype of products.
    """
    return (3 if recompute else 2) * 2 * product_bytes(config)


def _rows(config: RunConfig, layout: Layout, recompute: bool) -> list[Collective]:
    """Rows to their experts and back, forward and backward, and again where it is recomputed."""
    model, images = config.model, config.training.global_batch // layout.gpus
    rows = images * model.tokens * capacity_of(model) * len(model.moe_blocks)
    sent = _over(layout.expert) * rows * model.width * _row_bytes(config, recompute)
    return [Collective("rows to experts and back: all-to-all", sent, layout.expert)]


def _pools(config: RunConfig, layout: Layout, images: int, passes: int) -> list[Collective]:
    """The best scores of each process, to the others that hold a part of the same pool."""
    processes = max(1, config.model.pool_images // images)
    own = candidates(config, images) * len(config.model.moe_blocks)
    sent = float(passes * (processes - 1) * own)
    return [Collective("candidates of wide pools: all-gather", sent, processes)]


def break_even(config: RunConfig) -> float | None:
    """Tokens of one GPU and step below which sending rows moves fewer bytes than gradients.

    For experts that lie over all processes, against experts that all processes have: tokens x D x
    bytes on 4 ways x MoE layers = 2 x numbers of all experts x 4 bytes.
    """
    model, sizes = config.model, sizes_of(config.model)
    if not model.moe_blocks:
        return None
    way = _row_bytes(config, config.machine.activation_checkpointing)
    token = model.width * way * len(model.moe_blocks) * capacity_of(model)
    return 2 * sizes.experts * _BYTES / token
