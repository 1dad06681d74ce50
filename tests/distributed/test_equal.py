"""The same run, whatever the number of processes and however they share it."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from diffmoe.config import RunConfig
from diffmoe.distributed import joined
from diffmoe.training import new_state, train
from long_record import hold
from runs import run_config
from runs_together import Run, losses, shared_run, tensors, trained
from tiny import batch_pool
from together import together

CPU = torch.device("cpu")
SHARED: dict[str, tuple[int, dict[str, Any]]] = {
    "2, data parallel": (2, {}),
    "4, data parallel": (4, {}),
    "2, in 2 micro-batches": (2, {"machine__micro_batch": 8}),
    "2, a pool on both": (2, {"machine__micro_batch": 4}),
    "4, a pool on all": (4, {"machine__micro_batch": 2}),
    "2, sharded": (2, {"machine__shard_degree": None}),
    "4, sharded": (4, {"machine__shard_degree": None}),
    "4, hybrid": (4, {"machine__shard_degree": 2}),
    "4, sharded, a pool on two": (4, {"machine__shard_degree": 4, "machine__micro_batch": 4}),
    "2, experts spread": (2, {"machine__expert_degree": 2}),
    "4, experts spread on 2": (4, {"machine__expert_degree": 2}),
    "4, experts spread on 4": (4, {"machine__expert_degree": 4}),
    "4, experts spread on 2, sharded": (
        4,
        {"machine__expert_degree": 2, "machine__shard_degree": 4},
    ),
    "4, experts spread on 2, hybrid": (
        4,
        {"machine__expert_degree": 2, "machine__shard_degree": 2},
    ),
    "4, experts spread, a pool on two": (
        4,
        {"machine__expert_degree": 2, "machine__micro_batch": 4},
    ),
}


def _curves(
    tmp_path: Path,
    router: str,
    cases: dict[str, tuple[int, dict[str, Any]]],
    wide: bool,
    steps: int,
) -> tuple[Path, dict[str, Path]]:
    """The folders of the run on one process, and of it on several."""
    alone = tmp_path / "alone"
    trained(1, [Run(shared_run(router, loop__steps=steps), alone, wide)], tmp_path)
    paths = {name: tmp_path / name.replace(",", "").replace(" ", "-") for name in cases}
    for size in sorted({size for size, _ in cases.values()}):
        runs = [
            Run(shared_run(router, loop__steps=steps, **changes), paths[name], wide)
            for name, (own, changes) in cases.items()
            if own == size
        ]
        trained(size, runs, tmp_path)
    return alone, paths


def _apart(one: list[float], other: list[float]) -> float:
    assert len(one) == len(other) > 0
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


SOME = ("4, data parallel", "2, sharded", "4, a pool on all", "4, experts spread, a pool on two")


@pytest.mark.parametrize(
    ("router", "cases"),
    [
        ("batch_pool", tuple(SHARED)),
        ("token_choice", SOME),
        ("expert_choice", SOME[:3]),
        ("captions", SOME),
    ],
)
def test_any_number_of_processes_trains_the_same_model(
    router: str, cases: tuple[str, ...], tmp_path: Path
) -> None:
    """In float64 over 20 steps to 1e-12: losses, weights, averages, moments and thresholds."""
    shared = {name: SHARED[name] for name in cases}
    alone, paths = _curves(tmp_path, router, shared, wide=True, steps=20)
    wanted = tensors(alone)
    assert wanted["model/patches.weight"].dtype == torch.float64
    for name, path in paths.items():
        assert _apart(losses(alone), losses(path)) <= 1e-12, name
        found = tensors(path)
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            torch.testing.assert_close(
                found[key], value, rtol=1e-9, atol=1e-11, msg=f"{name} {key}"
            )
        thresholds = [key for key in wanted if "threshold" in key]
        assert len(thresholds) == (8 if router in ("batch_pool", "captions") else 0)
        for key in thresholds:
            torch.testing.assert_close(found[key], wanted[key], rtol=0, atol=1e-12)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_two_hundred_steps_in_float32(tmp_path: Path) -> None:
    """To 1e-5; beside it what the model becomes if the pool is whatever a process holds."""
    steps, cases = 200, {name: SHARED[name] for name in SHARED if name in _LONG}
    cases["4, a pool each"] = (4, {"model__pool_images": 2})
    cases["2, a pool each"] = (2, {"model__pool_images": 4})

    def measured() -> dict[str, float]:
        alone, paths = _curves(tmp_path, "batch_pool", cases, wide=False, steps=steps)
        apart = {name: _apart(losses(alone), losses(path)) for name, path in paths.items()}
        assert all(most <= 1e-5 for name, most in apart.items() if "each" not in name), apart
        assert all(most >= 1e-3 for name, most in apart.items() if "each" in name), apart
        return apart

    promise = "losses of 200 steps in float32 differ from those of one process by 1e-5 at most; a"
    hold("world-size", promise + " pool for each process makes another model", steps, measured)


_LONG = ("2, data parallel", "4, data parallel", "4, sharded", "4, a pool on all")


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(
    "changes",
    [
        {"training__clip_norm": 0.5},
        {"training__precision": "bfloat16", "machine__activation_checkpointing": True},
    ],
    ids=["float32, clipped", "bfloat16, recomputed"],
)
def test_sharded_weights_are_those_of_data_parallel_bit_for_bit(
    size: int, changes: dict[str, Any], tmp_path: Path
) -> None:
    """Where a share is whole vectors, as at usual widths: AdamW rounds what is left apart."""
    degrees = {"copies": 1, "sharded": None} | ({"hybrid": 2} if size == 4 else {})
    whole = {"model__width": 64, "model__heads": 4, "loop__steps": 6}
    runs = [
        Run(shared_run(machine__shard_degree=degree, **whole, **changes), tmp_path / name)
        for name, degree in degrees.items()
    ]
    trained(size, runs, tmp_path)
    wanted, *others = (tensors(run.path) for run in runs)
    for found in others:
        assert found.keys() == wanted.keys()
        assert [key for key in wanted if not torch.equal(found[key], wanted[key])] == []
    assert len(wanted) > 100


def _messages(config: RunConfig, path: Path) -> list[int]:
    """The elements of every all-reduce that a run asks for by itself."""
    honest, found = dist.all_reduce, []

    def counted(tensor: torch.Tensor, *others: Any, **named: Any) -> Any:
        found.append(tensor.numel())
        return honest(tensor, *others, **named)

    dist.all_reduce = counted
    train(config, path, progress=False)
    return found


@pytest.mark.parametrize("router", ["batch_pool", "token_choice"])
def test_a_step_adds_up_its_statistics_in_one_small_message(router: str, tmp_path: Path) -> None:
    """Of all layers and micro-batches together; another one is for what the host has to say."""
    messages = {}
    for steps in (2, 5):
        config = shared_run(router, model__depth=4, machine__micro_batch=8, loop__steps=steps)
        answers = together(2, _messages, config, tmp_path / str(steps), place=tmp_path)
        assert not any(answer.error for answer in answers)
        messages[steps] = answers[0].value
    more = messages[5][len(messages[2]) :]
    assert len(more) == 2 * 3 and sorted(more)[:3] == [3, 3, 3]
    assert max(more) < 100  # 2 layers of 4 experts, a dozen numbers a layer; no activations


def _expert_shares(config: RunConfig) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    with joined(CPU, 60) as group:
        shares = new_state(config, CPU, group).network.shares
        return {
            name.rpartition(".")[2]: (share.place.offsets, tuple(share.own.shape))
            for name, share in shares.items()
            if ".experts." in name and share.place is not None
        }


def test_fewer_experts_than_processes_are_shared_by_another_axis(tmp_path: Path) -> None:
    """By axis 0 two of four processes would have nothing."""
    config = shared_run(model__router=batch_pool(2), machine__shard_degree=4)
    answers = together(4, _expert_shares, config, place=tmp_path)
    for rank, answer in enumerate(answers):
        assert answer.error == "", answer.text
        assert answer.value == {
            "weight1": ((0, 4 * rank, 0), (2, 4, 64)),
            "bias1": ((0, 16 * rank), (2, 16)),
            "weight2": ((0, 16 * rank, 0), (2, 16, 16)),
            "bias2": ((0, 4 * rank), (2, 4)),
        }


@pytest.mark.parametrize("objective", ["flow", "ddpm"])
def test_three_processes_with_uneven_shares(objective: str, tmp_path: Path) -> None:
    """A batch of 24 in pools of 6 on all of them, twice a step; weights of width 16 in thirds."""
    sizes = {"training__global_batch": 24, "model__pool_images": 6, "loop__log_every": 1}
    paths = {}
    for size, machine in ((1, {}), (3, {"machine__micro_batch": 2, "machine__shard_degree": 3})):
        config = run_config("batch_pool", objective, loop__steps=8, **sizes, **machine)
        paths[size] = tmp_path / str(size)
        trained(size, [Run(config, paths[size], wide=True)], tmp_path)
    assert _apart(losses(paths[1]), losses(paths[3])) <= 1e-12


def test_a_dense_network_is_data_parallel_too(tmp_path: Path) -> None:
    alone, paths = _curves(tmp_path, "dense", {"copies": (2, {})}, wide=True, steps=5)
    assert _apart(losses(alone), losses(paths["copies"])) <= 1e-12
