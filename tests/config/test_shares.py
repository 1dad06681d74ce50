"""How processes share a batch, its pools, the weights and the experts."""

import re
from typing import Any

import pytest

from diffmoe.config import RunConfig, Shares, share_out
from diffmoe.errors import ConfigError
from runs import run_config
from tiny import batch_pool


def config(batch: int = 32, pool: int = 8, **changes: Any) -> RunConfig:
    sizes = {"training__global_batch": batch, "model__pool_images": pool}
    return run_config(**sizes, **changes)


SHARES = [  # processes, machine fields -> micro-batch, micro-steps, processes to a pool, shards
    (1, {}, Shares(1, 32, 1, 1, 1, 1)),
    (2, {}, Shares(2, 16, 1, 1, 1, 1)),
    (4, {}, Shares(4, 8, 1, 1, 1, 1)),
    (8, {}, Shares(8, 4, 1, 2, 1, 1)),
    (32, {}, Shares(32, 1, 1, 8, 1, 1)),
    (1, {"machine__micro_batch": 8}, Shares(1, 8, 4, 1, 1, 1)),
    (2, {"machine__micro_batch": 4}, Shares(2, 4, 4, 2, 1, 1)),
    (4, {"machine__shard_degree": None}, Shares(4, 8, 1, 1, 4, 1)),
    (4, {"machine__shard_degree": 2, "machine__expert_degree": 4}, Shares(4, 8, 1, 1, 2, 4)),
]


@pytest.mark.parametrize(("processes", "machine", "wanted"), SHARES, ids=str)
def test_a_batch_is_shared_evenly(processes: int, machine: dict[str, Any], wanted: Shares) -> None:
    found = share_out(config(**machine), processes)
    assert found == wanted
    assert found.micro_batch * found.micro_steps * processes == 32


@pytest.mark.parametrize("processes", range(1, 33))
@pytest.mark.parametrize(("batch", "pool"), [(32, 8), (48, 8), (32, 32), (12, 3)])
def test_every_number_that_is_named_as_legal_is_legal(
    processes: int, batch: int, pool: int
) -> None:
    """And no other is, be it of processes or of images of a micro-batch."""
    run = config(batch, pool)
    legal = {n for n in range(1, batch + 1) if _is_accepted(run, n)}
    by_rule = {
        n
        for n in range(1, batch + 1)
        if batch % n == 0 and ((batch // n) % pool == 0 or pool % (batch // n) == 0)
    }
    assert legal == by_rule
    if processes not in legal:
        with pytest.raises(ConfigError) as caught:
            share_out(run, processes)
        assert _numbers(caught.value, "start ") == sorted(legal)


def _is_accepted(run: RunConfig, processes: int) -> bool:
    try:
        share_out(run, processes)
    except ConfigError:
        return False
    return True


def _numbers(error: ConfigError, behind: str) -> list[int]:
    said = str(error).partition(f" — {behind}")[2].partition(", or ")[0]
    return [int(n) for n in re.findall(r"\d+", said)]


REFUSED = [
    (1, {"machine__micro_batch": 4}, "machine.micro_batch 4 on one process", [8, 16, 32]),
    (4, {"machine__micro_batch": 16}, "machine.micro_batch 16 on 4 processes", [2, 4, 8]),
    (3, {}, "3 processes cannot share training.global_batch 32", [1, 2, 4, 8, 16, 32]),
    (4, {"machine__shard_degree": 3}, "machine.shard_degree 3 does not divide 4", [1, 2, 4]),
    (4, {"machine__expert_degree": 3}, "machine.expert_degree 3 must divide 4", [1, 2, 4]),
    (8, {"machine__expert_degree": 8}, "must divide 8 processes and 4 experts", [1, 2, 4]),
]


@pytest.mark.parametrize(("processes", "machine", "said", "legal"), REFUSED, ids=str)
def test_what_cannot_be_shared_names_what_can(
    processes: int, machine: dict[str, Any], said: str, legal: list[int]
) -> None:
    with pytest.raises(ConfigError) as caught:
        share_out(config(**machine), processes)
    assert said in str(caught.value)
    assert _numbers(caught.value, "") == legal or _numbers(caught.value, "use one of ") == legal


def test_degrees_that_do_not_divide_one_another_are_refused() -> None:
    machine = {"machine__shard_degree": 4, "machine__expert_degree": 6}
    run = config(batch=48, pool=4, model__router=batch_pool(6), **machine)
    with pytest.raises(ConfigError, match="do not divide one another"):
        share_out(run, 12)


def test_experts_can_be_spread_only_where_there_are_any() -> None:
    with pytest.raises(ConfigError, match=r"expert_degree 2 .*experts"):
        share_out(config(router="dense", machine__expert_degree=2), 2)
