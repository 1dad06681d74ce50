"""Checkpoints move between all layouts and numbers of processes, bit for bit."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffmoe.checkpoint import newest_checkpoint, write
from diffmoe.config import share_out, to_dict
from diffmoe.distributed import joined
from diffmoe.training import new_state, restore, state_content
from long_record import hold
from runs_together import Run, shared_run, tensors, trained
from together import together

CPU = torch.device("cpu")
LAYOUTS: dict[str, tuple[int, dict[str, int | None]]] = {
    "plain": (1, {}),
    "copies-2": (2, {}),
    "copies-4": (4, {}),
    "sharded-2": (2, {"machine__shard_degree": None}),
    "sharded-4": (4, {"machine__shard_degree": None}),
    "hybrid-4": (4, {"machine__shard_degree": 2}),
    "experts-2": (2, {"machine__expert_degree": 2}),
    "experts-4": (4, {"machine__expert_degree": 4}),
    "experts-2-of-4": (4, {"machine__expert_degree": 2}),
    "experts-2-sharded-4": (4, {"machine__expert_degree": 2, "machine__shard_degree": 4}),
}


def _pass_on(changes: dict[str, int | None], sources: Sequence[Path], target: Path) -> None:
    """Restore each source into this layout and write it again."""
    config = shared_run(**changes)
    with joined(CPU, 60) as group:
        micro = share_out(config, group.size).micro_batch
        config = replace(config, machine=replace(config.machine, micro_batch=micro))
        state = new_state(config, CPU, group)
        for source in sources:
            found = newest_checkpoint(source / "checkpoints")
            assert found is not None
            restore(state, *found)
            content = state_content(state, to_dict(config))
            write(target / source.name / "checkpoints", content, group.host)


def test_layouts_read_what_others_wrote(tmp_path: Path) -> None:
    some = ("plain", "copies-2", "sharded-4", "experts-2-of-4")
    assert _pairs_equal({name: LAYOUTS[name] for name in some}, tmp_path) == 16


@pytest.mark.long
@pytest.mark.timeout(900)
def test_every_layout_reads_what_every_other_wrote(tmp_path: Path) -> None:
    promise = "a checkpoint written by one layout of processes and read by another is bit-equal"
    hold("reshard", promise, 100, lambda: {"equal pairs": _pairs_equal(LAYOUTS, tmp_path)})


def _pairs_equal(layouts: dict[str, tuple[int, dict[str, int | None]]], tmp_path: Path) -> int:
    """How many pairs were tried; fails at one that is not equal."""
    for name, (size, changes) in layouts.items():
        trained(size, [Run(shared_run(loop__steps=2, **changes), tmp_path / name)], tmp_path)
    sources = [tmp_path / name for name in layouts]
    wanted = {source.name: tensors(source) for source in sources}
    equal = 0
    for name, (size, changes) in layouts.items():
        target = tmp_path / f"by-{name}"
        answers = together(size, _pass_on, changes, sources, target, place=tmp_path)
        assert [answer.error + answer.text for answer in answers] == [""] * size
        for source in sources:
            found = tensors(target / source.name)
            assert found.keys() == wanted[source.name].keys()
            assert all(torch.equal(found[key], wanted[source.name][key]) for key in found)
            equal += 1
        shutil.rmtree(target)
    assert equal == len(layouts) ** 2
    return equal


def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    """1, then 4 with shares of the weights, then 2 with spread experts: the run of one process."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trained(1, [Run(shared_run(loop__steps=9), whole, wide=True)], tmp_path)
    for steps, size, changes in (
        (3, 1, {}),
        (6, 4, {"machine__shard_degree": None}),
        (9, 2, {"machine__expert_degree": 2}),
    ):
        config = shared_run(loop__steps=steps, **changes)
        trained(size, [Run(config, parts, wide=True)], tmp_path)
    wanted, found = tensors(whole), tensors(parts)
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-11)
