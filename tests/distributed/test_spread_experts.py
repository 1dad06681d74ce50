"""Experts on several processes compute what experts on one do."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from diffmoe.distributed import joined
from diffmoe.model import Experts, Routing
from diffmoe.training.spread_experts import SpreadExperts
from together import together

CPU, EXPERTS, WIDTH, ROWS = torch.device("cpu"), 8, 16, 24


def _experts(dtype: torch.dtype) -> Experts:
    experts = Experts(EXPERTS, WIDTH, 2 * WIDTH).to(dtype)
    generator = torch.Generator().manual_seed(3)
    for weight in experts.parameters():
        torch.nn.init.normal_(weight, std=0.2, generator=generator)
    return experts


def _chosen(kind: str, rank: int, generator: torch.Generator) -> Tensor:
    """Which expert (of a row each) takes which rows, as a mask (E, S)."""
    mask = torch.zeros(EXPERTS, ROWS, dtype=torch.bool)
    if kind == "equal":  # as of the batch pool
        for expert in range(EXPERTS):
            mask[expert, torch.randperm(ROWS, generator=generator)[:5]] = True
        return mask
    taken = torch.randint(0, EXPERTS, (ROWS,), generator=generator)
    if kind == "one expert takes all":
        taken[:] = 6
    if kind == "the first process has the first half":
        taken %= EXPERTS // 2
        taken += (rank > 0) * EXPERTS // 2
    mask[taken, torch.arange(ROWS)] = True
    if kind == "the last process has none":
        mask[:, :] &= rank + 1 < dist.get_world_size()
    return mask


def _routing(kind: str, rank: int, dtype: torch.dtype) -> Routing:
    generator = torch.Generator().manual_seed(10 + rank)
    mask = _chosen(kind, rank, generator)
    count = mask.sum(dim=1)
    affinity = torch.rand(ROWS, EXPERTS, generator=generator, dtype=dtype).softmax(dim=1)
    expert, token = mask.nonzero().unbind(1)
    return Routing(
        token=token,
        gate=affinity[token, expert],
        count=count,
        affinity=affinity,
        demand=None,
        pool=torch.zeros(ROWS, dtype=torch.int64),
        quantile=None,
        rows_per_expert=5 if kind == "equal" else None,
    )


def _compare(kind: str, dtype: torch.dtype, low: bool) -> dict[str, Any]:
    """What whole and spread experts answer to this process's rows; the own gradients of both."""
    with joined(CPU, 60) as group:
        routing = _routing(kind, group.rank, dtype)
        whole = _experts(dtype)
        spread = SpreadExperts(whole, dist.group.WORLD)
        own = EXPERTS // group.size
        rows = torch.randn(
            ROWS, WIDTH, generator=torch.Generator().manual_seed(group.rank), dtype=dtype
        )
        found: dict[str, Any] = {}
        for name, experts in (("whole", whole), ("spread", spread)):
            mine = rows.clone().requires_grad_()
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                output = experts(mine, routing)
            (output.to(dtype) ** 2).sum().backward()
            found[name] = [output.detach(), mine.grad]
            for weight in experts.parameters():
                gradient = weight.grad
                if name == "whole":
                    dist.all_reduce(gradient)
                    gradient = gradient[group.rank * own : (group.rank + 1) * own]
                found[name].append(gradient)
        return found


KINDS = (
    "equal",
    "uneven",
    "one expert takes all",
    "the first process has the first half",
    "the last process has none",
)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_spread_experts_are_whole_ones(kind: str, size: int, tmp_path: Path) -> None:
    """Outputs and the gradients of rows and experts, in float64 to 1e-14 of the largest."""
    for answer in together(size, _compare, kind, torch.float64, False, place=tmp_path):
        assert answer.error == "", answer.text
        for wanted, found in zip(answer.value["whole"], answer.value["spread"], strict=True):
            assert found.dtype == torch.float64 and found.shape == wanted.shape
            apart = (found - wanted).abs().max()
            assert apart <= 1e-14 * max(1.0, wanted.abs().max())


@pytest.mark.parametrize("kind", ["equal", "uneven"])
def test_rows_that_travel_in_bfloat16_give_the_same_bits(kind: str, tmp_path: Path) -> None:
    for answer in together(2, _compare, kind, torch.float32, True, place=tmp_path):
        assert answer.error == "", answer.text
        (output, rows, *_), (wanted, of_rows, *_) = answer.value["spread"], answer.value["whole"]
        assert torch.equal(output, wanted) and torch.equal(rows, of_rows)
