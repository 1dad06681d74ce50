"""Before the first step: processes that are not one program, and collectives that do not work."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
from torch import nn

from diffmoe import distributed
from diffmoe.config import ROUTER_OPTIONS, ExpertChoice, RunConfig
from diffmoe.model import ROUTERS, ExpertChoiceRouter
from diffmoe.training import material, start, train
from runs_together import Run, losses, shared_run, trained
from together import Answer, together

Break = Callable[[], Any]


def _rank() -> int:
    return int(os.environ["RANK"])


def _work(config: RunConfig, path: Path, break_it: Break) -> None:
    changed = break_it() if _rank() == 1 else None
    train(changed or config, path, progress=False)


def _refused(size: int, break_it: Break, tmp_path: Path, **changes: Any) -> list[Answer]:
    config = shared_run(loop__steps=2, machine__timeout=60.0, **changes)
    answers = together(size, _work, config, tmp_path / "run", break_it, place=tmp_path)
    assert not (tmp_path / "run" / "config.yaml").exists()
    return answers


def _of_all(answers: list[Answer], error: str, code: int) -> str:
    """The one sentence of processes that all refuse."""
    assert {(answer.error, answer.code) for answer in answers} == {(error, code)}
    (told,) = [answer.text for answer in answers if not answer.told]
    return told


def _other_config() -> RunConfig:
    return shared_run(loop__steps=2, machine__timeout=60.0, training__learning_rate=3e-4)


def _other_code() -> None:
    start.code_fingerprint = lambda: "another"


def _other_torch() -> None:
    torch.__version__ = "1.0"


def _other_data() -> None:
    honest = material.open_source

    def opened(config: RunConfig) -> Any:
        source = honest(config)
        type(source).fingerprint = property(lambda self: "another")
        return source

    material.open_source = opened


DIFFERENCES = {
    "training.learning_rate": (_other_config, "0.0003"),
    "code": (_other_code, "another"),
    "torch": (_other_torch, "1.0"),
    "data": (_other_data, "another"),
}


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", DIFFERENCES)
def test_processes_that_differ_are_told_apart(name: str, size: int, tmp_path: Path) -> None:
    break_it, value = DIFFERENCES[name]
    told = _of_all(_refused(size, break_it, tmp_path), "PeerError", 6)
    assert f"the processes differ in their {name}: " in told
    assert f"process 1 has {value}" in told and "process 0" in told


def _wrong(name: str) -> Break:
    def break_it() -> None:
        honest = getattr(dist, name)

        def wrong(*arguments: Any, **named: Any) -> Any:
            found = honest(*arguments, **named)
            outputs = arguments[0] if isinstance(arguments[0], list) else [arguments[0]]
            for output in outputs:
                output.add_(1)
            return found

        setattr(dist, name, wrong)

    return break_it


COLLECTIVES = {
    "all_reduce": "all-reduce",
    "all_gather": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "all_to_all_single": "all-to-all",
    "broadcast": "broadcast",
}


@pytest.mark.parametrize("name", COLLECTIVES)
def test_a_collective_that_gives_wrong_numbers_is_named(name: str, tmp_path: Path) -> None:
    told = _of_all(_refused(2, _wrong(name), tmp_path), "PeerError", 6)
    assert f"{COLLECTIVES[name]}" in told and "of process 1 gives wrong numbers" in told


def _wrong_shares() -> None:
    honest = distributed.OrderedReduceScatter.__call__

    def wrong(self: Any, **named: Any) -> None:
        honest(self, **named)
        named["output_tensor"].mul_(1.001)

    distributed.OrderedReduceScatter.__call__ = wrong


def test_shares_that_are_not_those_of_whole_copies_are_noticed(tmp_path: Path) -> None:
    told = _of_all(_refused(2, _wrong_shares, tmp_path), "PeerError", 6)
    assert "FSDP2 gives a toy other gradients than data parallel does" in told


@pytest.mark.parametrize(
    ("size", "changes", "said"),
    [
        (3, {}, "3 processes cannot share training.global_batch 32"),
        (2, {"machine__micro_batch": 32}, "machine.micro_batch 32 on 2 processes cannot share"),
        (4, {"machine__shard_degree": 3}, "machine.shard_degree 3 does not divide 4 processes"),
        (4, {"machine__expert_degree": 3}, "machine.expert_degree 3 must divide 4 processes"),
    ],
)
def test_what_cannot_be_shared_is_refused_by_all_and_told_once(
    size: int, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    assert said in _of_all(_refused(size, lambda: None, tmp_path, **changes), "ConfigError", 2)


@dataclass(frozen=True, kw_only=True)
class Idle(ExpertChoice):
    """Options of a router with a weight that nothing uses."""

    kind: ClassVar[str] = "idle"


class IdleRouter(ExpertChoiceRouter):
    def __init__(self, config: Any, layer: int) -> None:
        super().__init__(config, layer)
        self.idle = nn.Parameter(torch.zeros(3))

    def initialize(self, generator: torch.Generator) -> None:
        super().initialize(generator)
        nn.init.zeros_(self.idle)


@pytest.mark.parametrize("machine", [{}, {"machine__shard_degree": 2}], ids=["copies", "sharded"])
def test_a_weight_that_nothing_uses_hangs_nobody(
    machine: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ROUTER_OPTIONS, "idle", Idle)
    monkeypatch.setitem(ROUTERS, Idle, IdleRouter)
    config = replace(
        shared_run(loop__steps=3),
        model=replace(shared_run().model, router=Idle(num_experts=4, capacity=1.0)),
    )
    shared = replace(config, machine=replace(config.machine, **_short(machine)))
    trained(1, [Run(config, tmp_path / "1", wide=True)], tmp_path)
    trained(2, [Run(shared, tmp_path / "2", wide=True)], tmp_path)
    one, two = losses(tmp_path / "1"), losses(tmp_path / "2")
    assert max(abs(a - b) for a, b in zip(one, two, strict=True)) <= 1e-12


def _short(machine: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("machine__"): value for name, value in machine.items()}
