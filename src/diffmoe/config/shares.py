"""How a global batch is shared by processes, forward passes and pools."""

from typing import NamedTuple

from diffmoe.config.run import RunConfig
from diffmoe.errors import ConfigError

__all__ = ["Shares", "share_out"]


class Shares(NamedTuple):
    """What one process does of an optimizer step, and whom it shares its pools with.

    The batch is cut in the order of sample numbers: in micro-step m, process r has `micro_batch`
    samples from (m * processes + r) * micro_batch on.
    """

    processes: int
    micro_batch: int  # images of one forward pass of one process
    micro_steps: int  # forward passes of an optimizer step
    pool_processes: int  # consecutive processes that hold the parts of one pool
    shard_degree: int  # processes that share one copy of the weights
    expert_degree: int  # processes that share one set of experts

    @property
    def whole(self) -> bool:
        """Whether every process holds all of the weights."""
        return self.shard_degree == self.expert_degree == 1


def share_out(config: RunConfig, processes: int) -> Shares:
    """The shares of `processes` processes; whatever their number, they train the same model.

    Raises ConfigError if they cannot share the batch, its pools, the weights or the experts.
    """
    batch, pool, machine = config.training.global_batch, config.model.pool_images, config.machine
    micro = machine.micro_batch
    if micro is None:
        _refuse_uneven(batch, pool, processes)
        micro = batch // processes
    elif batch % (micro * processes) or not _holds_pools(micro, pool, processes):
        legal = [n for n in range(1, batch + 1) if _is_legal(n, batch, pool, processes)]
        raise ConfigError(
            f"machine.micro_batch {micro} on {_processes(processes)} cannot share"
            f" training.global_batch {batch} in pools of model.pool_images {pool}",
            remedy=f"use one of {', '.join(map(str, legal))}" if legal else _other(batch, pool),
        )
    shards = processes if machine.shard_degree is None else machine.shard_degree
    _refuse_degrees(config, processes, shards)
    parts = max(1, pool // micro)
    return Shares(
        processes, micro, batch // (micro * processes), parts, shards, machine.expert_degree
    )


def _holds_pools(micro: int, pool: int, processes: int) -> bool:
    """Whether processes hold whole pools each, or pools are held by whole groups of processes."""
    return micro % pool == 0 or (pool % micro == 0 and processes % (pool // micro) == 0)


def _is_legal(micro: int, batch: int, pool: int, processes: int) -> bool:
    return batch % (micro * processes) == 0 and _holds_pools(micro, pool, processes)


def _refuse_uneven(batch: int, pool: int, processes: int) -> None:
    if batch % processes or not _holds_pools(batch // processes, pool, processes):
        raise ConfigError(
            f"{_processes(processes)} cannot share training.global_batch {batch} evenly in pools of"
            f" model.pool_images {pool}",
            remedy=_other(batch, pool) + _smaller(batch, pool, processes),
        )


def _smaller(batch: int, pool: int, processes: int) -> str:
    """Micro-batches that make so many processes legal."""
    legal = [n for n in range(1, batch + 1) if _is_legal(n, batch, pool, processes)]
    return f", or set machine.micro_batch {', '.join(map(str, legal))}" if legal else ""


def _other(batch: int, pool: int) -> str:
    legal = [n for n in range(1, batch + 1) if _is_legal_number(n, batch, pool)]
    return f"start {', '.join(map(str, legal))} processes"


def _is_legal_number(processes: int, batch: int, pool: int) -> bool:
    return batch % processes == 0 and _holds_pools(batch // processes, pool, processes)


def _refuse_degrees(config: RunConfig, processes: int, shards: int) -> None:
    spread, experts = config.machine.expert_degree, config.model.router.num_experts
    if processes % shards:
        raise ConfigError(
            f"machine.shard_degree {shards} does not divide {_processes(processes)}",
            remedy=f"use one of {_divisors(processes)}",
        )
    if processes % spread or (spread > 1 and experts % spread):
        raise ConfigError(
            f"machine.expert_degree {spread} must divide {_processes(processes)} and"
            f" {experts} experts",
            remedy=f"use one of {_divisors(processes, experts)}",
        )
    if spread > 1 and experts == 0:
        raise ConfigError(
            f"machine.expert_degree {spread} has no meaning without experts", remedy="use 1"
        )
    if shards > 1 and shards % spread and spread % shards:
        raise ConfigError(
            f"machine.shard_degree {shards} and machine.expert_degree {spread} do not divide one"
            " another",
            remedy=f"use a shard_degree of {spread} or {processes}",
        )


def _divisors(*numbers: int) -> str:
    least = min(number for number in numbers if number)
    return ", ".join(
        str(n) for n in range(1, least + 1) if all(number % n == 0 for number in numbers)
    )


def _processes(number: int) -> str:
    return f"{number} processes" if number > 1 else "one process"
