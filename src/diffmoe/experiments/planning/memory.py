"""Bytes on one GPU and on its host, by what they are for."""

from dataclasses import dataclass

from diffmoe.config import BatchPool, RunConfig
from diffmoe.experiments.planning.layout import Layout
from diffmoe.experiments.planning.sizes import Sizes, capacity_of, sizes_of, step_bytes

__all__ = [
    "Memory",
    "candidates",
    "host_bytes",
    "memory_of",
    "one_process",
    "product_bytes",
    "state_bytes",
]

_BYTES = 4  # weights, gradients, moments and averages are float32
_SCORES = 2  # of a row and expert: the affinity, and the predictor's chance
_GATHERED_AT_ONCE = 2  # a block at work, and the next one on its way


@dataclass(frozen=True)
class Memory:
    """Parts of one GPU's memory, bytes."""

    parts: dict[str, int]

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(self.parts.values())


def product_bytes(config: RunConfig) -> int:
    """Bytes of one value in a matrix product."""
    return 2 if config.training.precision == "bfloat16" else 4


def memory_of(config: RunConfig, layout: Layout, micro_batch: int, recompute: bool) -> Memory:
    """The most that one process holds at once in a step, by part."""
    parts = _state(config, layout) | _communication(config, layout, micro_batch)
    parts[f"activations of {micro_batch} images, beyond gradients"] = _activations(
        config, layout, micro_batch, recompute, parts["gradients"]
    )
    return Memory(parts)


def state_bytes(config: RunConfig, layout: Layout) -> int:
    """Weights, gradients, moments and averages of one process."""
    return sum(_state(config, layout).values())


def _state(config: RunConfig, layout: Layout) -> dict[str, int]:
    sizes = sizes_of(config.model)
    held = _own(sizes, layout)
    trained = held - sizes.fixed // layout.shard
    numbers = {"weights": held, "gradients": trained, "AdamW moments": 2 * trained}
    return {name: _BYTES * n for name, n in {**numbers, "averaged weights": held}.items()}


def one_process(config: RunConfig) -> Memory:
    """What a run of one process holds, as its config has it."""
    alone = Layout("one process", 1, 1, 1)
    return memory_of(config, alone, config.micro_batch, config.machine.activation_checkpointing)


def _own(sizes: Sizes, layout: Layout) -> int:
    """Parameters that one process keeps; of an uneven split the largest part."""
    experts = layout.expert * layout.expert_shard
    return -(-sizes.dense // layout.shard) - (-sizes.experts // experts)


def _activations(
    config: RunConfig, layout: Layout, images: int, recompute: bool, gradients: int
) -> int:
    """What autograd keeps and operators need, beyond the gradients counted already.

    In several passes, or in the buckets of plain data parallel, those are there all the time. In
    one pass they come as activations go.
    """
    held = step_bytes(config, images, recompute, gathered=layout.fully_sharded)
    several = images * layout.gpus < config.training.global_batch
    if several or (layout.gpus > 1 and not layout.fully_sharded):
        return held
    if layout.gpus > 1:
        return max(0, held - gradients)
    return max(0, step_bytes(config, images, recompute, held=False) - gradients)


def _communication(config: RunConfig, layout: Layout, images: int) -> dict[str, int]:
    """Buffers of the collectives; the buckets of plain data parallel are the gradients.

    FSDP2 gathers a block in the dtype of products, computes its gradients in it, and sends them
    in float32. Routers and what is outside of blocks stay gathered, in float32.
    """
    sizes, low, parts = sizes_of(config.model), product_bytes(config), dict[str, int]()
    if layout.fully_sharded:
        block = sizes.block + sizes.expert_block // layout.expert
        always = sizes.routers + sizes.outside
        parts["gathered weights"] = _GATHERED_AT_ONCE * low * block + _BYTES * always
        parts["gradients on their way"] = (low + _BYTES) * block
    own = candidates(config, images)
    if layout.expert > 1:
        rows = images * config.model.tokens * capacity_of(config.model)
        copies = 4 if own else 2  # where counts differ, rows are put in order before and behind
        parts["rows on their way to experts"] = int(copies * rows * config.model.width * low)
    if own:
        processes = config.model.pool_images // images
        parts["candidates of a wide pool"] = own * processes
    return parts


def candidates(config: RunConfig, images: int) -> int:
    """Bytes of the best scores of one layer that a process has for a pool it shares."""
    model = config.model
    if not isinstance(model.router, BatchPool) or images >= model.pool_images:
        return 0
    experts = model.router.num_experts
    taken = int(model.pool_images * model.tokens * model.router.capacity / experts + 1e-9)
    return min(taken, images * model.tokens) * experts * _SCORES * _BYTES


def host_bytes(config: RunConfig, layout: Layout, per_node: int) -> dict[str, int]:
    """Memory of a host, on which each process builds the whole network and copies its state.

    At first there are a network and its average, which go to the GPU block by block. While it saves
    in the background there is a copy of whatever a process holds, also of what others hold as well.
    """
    sizes, here = sizes_of(config.model), min(layout.gpus, per_node)
    parts = {"while it starts: whole networks": here * 2 * _BYTES * sizes.total}
    if config.machine.background_saves:
        parts["while it saves: copies of the state"] = here * 4 * _BYTES * _own(sizes, layout)
    return parts
