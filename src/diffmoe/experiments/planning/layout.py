"""How a run lies over processes: which share weights, which share experts, and who takes what."""

from dataclasses import dataclass, replace

from diffmoe.config import RunConfig, share_out
from diffmoe.errors import ConfigError

__all__ = ["Layout", "layouts", "legal_micro_batches", "sharing"]


@dataclass(frozen=True)
class Layout:
    """So many processes, one a GPU, and how many consecutive ones share one copy of what."""

    name: str
    gpus: int
    shard: int  # processes that share one copy of the dense weights and all moments
    expert: int  # processes that share one set of experts

    @property
    def fully_sharded(self) -> bool:
        """Whether FSDP2 holds the weights, which then are gathered to be used."""
        return self.shard > 1 or self.expert > 1

    @property
    def expert_shard(self) -> int:
        """Processes that share the experts of one process of an expert group."""
        return max(1, self.shard // self.expert)


def layouts(config: RunConfig, gpus: int, per_node: int) -> list[Layout]:
    """What can be chosen on so many GPUs, simplest first, and what the config says."""
    if gpus == 1:
        return [Layout("one process", 1, 1, 1)]
    experts = config.model.router.num_experts
    nodes = gpus > per_node and gpus % per_node == 0
    degrees = [e for e in range(2, min(gpus, experts) + 1) if experts % e == 0 and gpus % e == 0]
    found = [Layout("data parallel", gpus, 1, 1), Layout("FSDP2 over all", gpus, gpus, 1)]
    found += [Layout("FSDP2 by node", gpus, per_node, 1)] * nodes
    found += [Layout(f"experts over {e}", gpus, 1, e) for e in degrees]
    found += [Layout(f"experts over {e}, FSDP2", gpus, gpus, e) for e in degrees]
    inside = [e for e in degrees if per_node % e == 0] * nodes
    found += [Layout(f"experts over {e}, FSDP2 by node", gpus, per_node, e) for e in inside]
    asked = _configured(config, gpus)
    known = {(layout.shard, layout.expert) for layout in found}
    return found if (asked.shard, asked.expert) in known else [*found, asked]


def _configured(config: RunConfig, gpus: int) -> Layout:
    """The layout that the config asks for; ConfigError where training would refuse it."""
    machine = replace(config.machine, micro_batch=sharing(config, gpus)[0])
    shard = share_out(replace(config, machine=machine), gpus).shard_degree
    return Layout("as configured", gpus, shard, machine.expert_degree)


def legal_micro_batches(config: RunConfig, gpus: int) -> list[int]:
    """Images of one forward pass of one process that are allowed, largest first.

    Whole pools, or an even part of one whose other parts lie on the next processes.
    """
    batch, pool = config.training.global_batch, config.model.pool_images
    share = batch // gpus if batch % gpus == 0 else 0
    return [
        size
        for size in reversed(_divisors(share))
        if size % pool == 0 or (pool % size == 0 and gpus % (pool // size) == 0)
    ]


def sharing(config: RunConfig, gpus: int) -> list[int]:
    """The legal micro-batches, or the one the config has; ConfigError if there is none."""
    legal = legal_micro_batches(config, gpus)
    batch, chosen = config.training.global_batch, config.machine.micro_batch
    if not legal:
        raise ConfigError(
            f"{gpus} GPUs cannot share training.global_batch {batch} in pools of"
            f" model.pool_images {config.model.pool_images}",
            remedy=f"use {_nearest(config, gpus)} GPUs or another batch",
        )
    if chosen is None:
        return legal
    if chosen not in legal:
        raise ConfigError(
            f"machine.micro_batch {chosen} does not fit {gpus} GPUs that share"
            f" training.global_batch {batch}",
            remedy=f"use one of {_listed(sorted(legal))}",
        )
    return [chosen]


def _nearest(config: RunConfig, gpus: int) -> str:
    """The next smaller and the next larger number of GPUs that can share the batch."""
    every = _divisors(config.training.global_batch)
    fit = [n for n in every if legal_micro_batches(config, n)]
    below, above = [n for n in fit if n < gpus][-1:], [n for n in fit if n > gpus][:1]
    return " or ".join(map(str, below + above))


def _divisors(number: int) -> list[int]:
    small = [n for n in range(1, int(number**0.5) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
