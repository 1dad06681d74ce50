"""Resuming is the same command and gives the same run, bit for bit."""

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffmoe.checkpoint import RunFolder, newest_checkpoint, read_part, write
from diffmoe.config import RunConfig
from diffmoe.errors import ConfigError, StorageError
from diffmoe.training import train
from runs import OBJECTIVES, ROUTER_KINDS, changed, newest_tensors, run_config

Tensors = dict[str, Tensor]
WAYS = [
    {"machine.micro_batch": micro, "machine.activation_checkpointing": again}
    for micro, again in itertools.product((16, 8), (False, True))
]


def until(config: RunConfig, path: Path, *stops: int) -> Tensors:
    """The newest checkpoint after training up to each stop by a command of its own."""
    for stop in stops:
        train(changed(config, {"loop.steps": stop}), path, progress=False)
    return newest_tensors(path)


def different(left: Tensors, right: Tensors) -> list[str]:
    """Names of tensors that are not bit for bit the same."""
    return [
        name
        for name in {**left, **right}
        if name not in left
        or name not in right
        or left[name].dtype != right[name].dtype
        or left[name].numpy().tobytes() != right[name].numpy().tobytes()
    ]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way.values())))
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("router", ROUTER_KINDS)
def test_a_resumed_run_is_the_undisturbed_one(
    router: str, objective: str, way: dict[str, Any], tmp_path: Path
) -> None:
    config = changed(run_config(router, objective), way | {"loop.checkpoint_every": 5})
    straight = until(config, tmp_path / "straight", 10)
    assert not different(until(config, tmp_path / "resumed", 4, 10), straight)
    parts = {name.split("/")[0] for name in straight}
    assert parts == {"model", "ema", "optimizer"}
    weights = [name for name in straight if name.startswith("model/") and "weight" in name]
    assert all(f"optimizer/{name.removeprefix('model/')}/exp_avg" in straight for name in weights)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_chained_resumes_are_the_undisturbed_run(objective: str, tmp_path: Path) -> None:
    config = run_config("batch_pool", objective)
    straight = until(config, tmp_path / "straight", 10)
    assert not different(until(config, tmp_path / "chained", 1, 2, 4, 7, 10), straight)


def test_a_resume_across_the_end_of_an_epoch_is_the_undisturbed_run(tmp_path: Path) -> None:
    config = run_config(training__global_batch=600, machine__micro_batch=200)
    straight = until(config, tmp_path / "straight", 5)
    for stop in (2, 3):  # 1,797 images: the end of the first epoch lies in step 3
        assert not different(until(config, tmp_path / f"at {stop}", stop, 5), straight)


def test_a_bfloat16_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    config = run_config(training__precision="bfloat16")
    straight = until(config, tmp_path / "straight", 10)
    assert not different(until(config, tmp_path / "resumed", 3, 10), straight)


def test_two_runs_of_a_config_are_the_same_and_of_another_seed_are_not(tmp_path: Path) -> None:
    config = run_config()
    first = until(config, tmp_path / "first", 4)
    assert not different(until(config, tmp_path / "second", 4), first)
    other = changed(config, {"training.seed": 1})
    assert "model/final.weight" in different(until(other, tmp_path / "other", 4), first)


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    config = run_config()
    before = until(config, tmp_path, 4)
    lines = (tmp_path / "metrics.jsonl").read_bytes()
    assert not different(until(config, tmp_path, 4, 2), before)
    assert (tmp_path / "metrics.jsonl").read_bytes() == lines


# ---- every item of the state counts: a resume without it is another run


def forget_moments(parts: dict[str, Tensors]) -> None:
    for name in parts["optimizer"]:
        if "exp_avg" in name:
            parts["optimizer"][name] = torch.zeros_like(parts["optimizer"][name])


def forget_optimizer_steps(parts: dict[str, Tensors]) -> None:
    for name in parts["optimizer"]:
        if name.endswith("/step"):
            parts["optimizer"][name] = torch.zeros_like(parts["optimizer"][name])


def forget_average(parts: dict[str, Tensors]) -> None:
    parts["ema"] = dict(parts["model"])


def forget_thresholds(parts: dict[str, Tensors]) -> None:
    for name in parts["model"]:
        if "threshold" in name and "decay" not in name:
            parts["model"][name] = torch.zeros_like(parts["model"][name])


def forget_weights(parts: dict[str, Tensors]) -> None:
    parts["model"]["final.bias"] = torch.zeros_like(parts["model"]["final.bias"])


FORGET: list[Callable[[dict[str, Tensors]], None]] = [
    forget_moments,
    forget_optimizer_steps,
    forget_average,
    forget_thresholds,
    forget_weights,
]


def rewritten(path: Path, change: Callable[[dict[str, Tensors]], None], step: int = 4) -> None:
    """Make the newest checkpoint another one, with a manifest that vouches for it."""
    checkpoints = RunFolder(path).checkpoints
    found = newest_checkpoint(checkpoints)
    assert found is not None
    parts = {name: read_part(found[0], name) for name in ("model", "ema", "optimizer")}
    shutil.rmtree(checkpoints)
    change(parts)
    write(checkpoints, step, 16 * step, parts)


@pytest.mark.parametrize("forget", FORGET, ids=lambda forget: forget.__name__)
def test_a_resume_that_forgets_any_item_of_the_state_is_seen(
    forget: Callable[[dict[str, Tensors]], None], tmp_path: Path
) -> None:
    config = run_config()
    straight = until(config, tmp_path / "straight", 8)
    until(config, tmp_path / "resumed", 4)
    rewritten(tmp_path / "resumed", lambda parts: None)
    shutil.copytree(tmp_path / "resumed", tmp_path / "forgetful")
    rewritten(tmp_path / "forgetful", forget)
    assert not different(until(config, tmp_path / "resumed", 8), straight)
    assert different(until(config, tmp_path / "forgetful", 8), straight)


def test_a_resume_that_forgets_the_step_is_seen(tmp_path: Path) -> None:
    config = run_config()
    straight = until(config, tmp_path / "straight", 8)
    until(config, tmp_path / "resumed", 4)
    rewritten(tmp_path / "resumed", lambda parts: None, step=3)
    assert different(until(config, tmp_path / "resumed", 8), straight)


# ---- what cannot be resumed


def test_a_damaged_newest_checkpoint_costs_steps_and_no_bit(tmp_path: Path) -> None:
    config = run_config()
    straight = until(config, tmp_path / "straight", 8)
    until(config, tmp_path / "resumed", 4)
    victim = tmp_path / "resumed" / "checkpoints" / "step-00000004" / "ema.safetensors"
    victim.write_bytes(victim.read_bytes()[:-4])
    assert not different(until(config, tmp_path / "resumed", 8), straight)


def test_weights_alone_cannot_be_trained_on(tmp_path: Path) -> None:
    config = run_config()
    until(config, tmp_path, 4)
    rewritten(tmp_path, lambda parts: parts.pop("optimizer") and None)
    with pytest.raises(StorageError, match="holds no optimizer state"):
        until(config, tmp_path, 8)


def test_an_optimizer_state_with_a_gap_is_refused(tmp_path: Path) -> None:
    config = run_config()
    until(config, tmp_path, 4)

    def lose(parts: dict[str, Tensors]) -> None:
        for key in ("exp_avg", "exp_avg_sq", "step"):
            del parts["optimizer"][f"final.weight/{key}"]

    rewritten(tmp_path, lose)
    with pytest.raises(StorageError, match=r"optimizer state lacks final\.weight"):
        until(config, tmp_path, 8)


def test_another_config_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    before = until(run_config(), tmp_path, 4)
    content = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ConfigError, match=r"training\.learning_rate 0\.003 -> 0\.1"):
        train(run_config(training__learning_rate=0.1), tmp_path, progress=False)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == content
    assert not different(newest_tensors(tmp_path), before)
