"""A plan is right: against real runs, against hand numbers, and in what it says."""

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch.profiler import ProfilerActivity, profile

from diffmoe.cli import main
from diffmoe.config import RunConfig
from diffmoe.errors import ConfigError
from diffmoe.experiments import PlannedMachine, plan
from diffmoe.experiments.planning import memory_of, one_process
from diffmoe.experiments.planning.layout import Layout, layouts, legal_micro_batches
from diffmoe.experiments.planning.memory import host_bytes, state_bytes
from diffmoe.experiments.planning.traffic import break_even, traffic
from diffmoe.presets import preset
from diffmoe.training import train
from long_record import hold
from runs import ROUTER_KINDS, changed, run_config
from texts import text_run

GOLDEN = Path(__file__).parents[1] / "golden" / "plan.txt"


def bytes_at_most(config: RunConfig, folder: Path) -> int:
    """The most bytes that tensors of a run have at a time, from what the allocator says."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        train(config, folder, progress=False)
    events = seen.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(itertools.accumulate(number for _, number in changes))


def real_run(router: str, size: dict[str, Any], **changes: Any) -> RunConfig:
    """Three steps, the first of which has no moments yet; nothing is copied to be saved.

    The router `captions` is that of scenes.
    """
    few = {"loop__steps": 3, "loop__checkpoint_every": 3, "machine__background_saves": False}
    if router == "captions":
        return text_run(**few, **size, **changes)
    return run_config(router, **few, **size, **changes)


SIZES = {
    "broad": {"model__width": 128, "model__depth": 2, "training__global_batch": 32},
    "deep": {"model__width": 64, "model__depth": 8, "training__global_batch": 64},
    "small": {"model__width": 64, "model__depth": 4, "training__global_batch": 96},
}
WAYS: dict[str, dict[str, Any]] = {
    "whole": {},
    "in parts": {"machine__micro_batch": 16},
    "computed again": {"machine__activation_checkpointing": True},
}
LAPTOP = PlannedMachine(gpus=1, memory=80e9, peak=1e12, peak_source="said")


def planned_over_real(router: str, size: str, way: str, folder: Path) -> float:
    config = real_run(router, SIZES[size], **WAYS[way])
    return one_process(config).total / bytes_at_most(config, folder)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", SIZES)
def test_memory_is_that_of_a_real_run(size: str, way: str, tmp_path: Path) -> None:
    assert planned_over_real("batch_pool", size, way, tmp_path / "run") == pytest.approx(1, rel=0.1)


OTHERS = [*(kind for kind in ROUTER_KINDS if kind != "batch_pool"), "captions"]


@pytest.mark.parametrize("router", OTHERS)
def test_memory_is_that_of_a_real_run_of_any_router(router: str, tmp_path: Path) -> None:
    assert planned_over_real(router, "small", "whole", tmp_path / "run") == pytest.approx(
        1, rel=0.1
    )


@pytest.mark.long
def test_memory_is_that_of_every_real_run(tmp_path: Path) -> None:
    cases = list(itertools.product(ROUTER_KINDS, SIZES, WAYS))

    def measure() -> dict[str, Any]:
        found = [planned_over_real(*case, tmp_path / "-".join(case)) for case in cases]
        assert all(abs(ratio - 1) <= 0.1 for ratio in found)
        return {"planned / real, least": min(found), "planned / real, most": max(found)}

    promise = "planned memory is within 10 % of what a run takes"
    hold("plan_memory", promise, len(cases), measure)


SHARED = """
import json, sys, torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from diffmoe.model import build_model
from diffmoe.presets import preset
rank, where = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + where, rank=rank, world_size=2)
model = build_model(preset("digits-diffmoe").model, 0)
mesh = init_device_mesh("cpu", (2,))
for block in (*model.blocks, model):
    fully_shard(block, mesh=mesh)
trained = [p for p in model.parameters() if p.requires_grad]
for p in trained:
    p.grad = torch.zeros_like(p)
optimizer = torch.optim.AdamW(trained, foreach=False)
optimizer.step()
moments = [m for state in optimizer.state.values() for m in state.values() if m.dim()]
size = lambda tensors: sum(t.to_local().nbytes for t in tensors)
if rank == 0:
    print(json.dumps([size(model.parameters()), size(p.grad for p in trained), size(moments)]))
dist.destroy_process_group()
"""


def test_the_state_of_two_processes_is_what_fsdp2_gives_them(tmp_path: Path) -> None:
    words = [[sys.executable, "-c", SHARED, rank, str(tmp_path / "store")] for rank in "01"]
    both = [subprocess.Popen(each, stdout=subprocess.PIPE, text=True) for each in words]
    said = [process.communicate(timeout=120)[0] for process in both]
    planned = memory_of(preset("digits-diffmoe"), Layout("FSDP2", 2, 2, 1), 32, False).parts
    names = ("weights", "gradients", "AdamW moments")
    assert [planned[n] for n in names] == pytest.approx(json.loads(said[0]), rel=0.01)


def large(**changes: Any) -> RunConfig:
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return changed(preset("diffmoe-l-e16-flow"), named)


@pytest.mark.parametrize(
    ("shard", "expert", "gigabytes"),
    [
        *((1, 1, 39.6), (2, 1, 19.8), (8, 1, 5.0), (16, 1, 2.5), (64, 1, 0.6)),
        *((1, 2, 23.5), (1, 4, 15.5), (1, 8, 11.4), (1, 16, 9.4), (8, 8, 5.0)),
    ],
)
def test_the_state_of_the_published_model(shard: int, expert: int, gigabytes: float) -> None:
    layout = Layout("", max(shard, expert), shard, expert)
    assert state_bytes(large(), layout) / 1e9 == pytest.approx(gigabytes, abs=0.06)


def sent(config: RunConfig, shard: int, expert: int, micro: int, gpus: int = 8) -> dict[str, float]:
    found = traffic(config, Layout("", gpus, shard, expert), micro, recompute=False)
    return {each.name: each.sent / 1e9 for each in found}


def test_bytes_sent_for_the_published_model() -> None:
    low = large(training__precision="bfloat16")
    assert sent(large(), 1, 1, 32)["gradients: all-reduce"] == pytest.approx(13.87, abs=0.01)
    both = sent(low, 8, 1, 32)
    gathered = sum(size for name, size in both.items() if "gather" in name and "pool" not in name)
    scattered = sum(size for name, size in both.items() if "scatter" in name)
    assert gathered + scattered == pytest.approx(13.87, abs=0.05)
    assert scattered == pytest.approx(gathered, rel=0.01)


@pytest.mark.parametrize(("images", "gigabytes"), [(8, 0.18), (32, 0.70), (64, 1.41), (256, 5.64)])
def test_bytes_of_rows_that_travel(images: int, gigabytes: float) -> None:
    rows = "rows to experts and back: all-to-all"
    full = large(training__global_batch=8 * images)
    low = large(training__global_batch=8 * images, training__precision="bfloat16")
    # 4 ways of 2 bytes are the known figure
    assert sent(full, 1, 8, images)[rows] == pytest.approx(2 * gigabytes, rel=0.03)
    assert sent(low, 1, 8, images)[rows] == pytest.approx(gigabytes, rel=0.03)


def test_where_spread_experts_break_even() -> None:
    tokens = break_even(large())
    assert tokens == pytest.approx(65_576, abs=1)
    config = large(training__global_batch=8 * 256)  # 65,536 tokens a GPU
    spread, copied = sent(config, 1, 8, 256), sent(config, 1, 1, 256)
    dense = spread.pop("dense: all-reduce")
    assert sum(spread.values()) == pytest.approx(sum(copied.values()) - dense, rel=1e-3)
    assert break_even(large(training__precision="bfloat16")) == pytest.approx(2 * tokens)
    assert break_even(preset("dit-l-flow")) is None


def spans(shard: int, expert: int) -> dict[str, int]:
    found = traffic(large(), Layout("", 64, shard, expert), 4, recompute=False)
    return {each.name: each.span for each in found}


def test_neighbours_share_experts_and_those_who_share_one_of_them_lie_apart() -> None:
    by_node, over_all = spans(shard=8, expert=4), spans(shard=64, expert=8)
    assert by_node["rows to experts and back: all-to-all"] == 4
    assert by_node["dense: all-gather"] == by_node["experts: reduce-scatter"] == 8
    assert by_node["experts: all-reduce"] == 64
    assert over_all["rows to experts and back: all-to-all"] == 8
    assert over_all["experts: all-gather"] == over_all["dense: all-gather"] == 64


def test_copies_sum_up_once_a_step_and_shares_at_every_pass() -> None:
    once, twice = (sent(large(), 4, 1, micro) for micro in (32, 16))
    assert twice["dense: all-reduce"] == once["dense: all-reduce"]
    assert twice["experts: all-reduce"] == once["experts: all-reduce"]
    for collective in ("all-gather", "reduce-scatter"):
        assert twice[f"dense: {collective}"] == 2 * once[f"dense: {collective}"]


def tiny() -> RunConfig:
    """4 x 4 tokens of width 16, four experts of hidden width 64 in the second block."""
    return run_config(training__global_batch=16, model__pool_images=16)


def test_parts_of_a_tiny_model_by_hand() -> None:
    one_expert = 16 * 64 + 64 + 64 * 16 + 16
    router = 4 * 16 + (16 * 16 + 16) + (16 * 4 + 4)
    block = 16 * 96 + 96 + 16 * 48 + 48 + 16 * 16 + 16
    outside = (16 * 4 + 16) + 16 * 16 + (256 * 16 + 16 + 16 * 16 + 16) + 11 * 16
    outside += (16 * 32 + 32) + (16 * 4 + 4)
    total = outside + 2 * block + one_expert + router + 4 * one_expert
    parts = memory_of(tiny(), Layout("", 4, 4, 2), 4, recompute=False).parts
    dense = total - 4 * one_expert
    held = -(-dense // 4) + one_expert
    assert parts["weights"] == parts["averaged weights"] == 4 * held
    assert parts["AdamW moments"] == 2 * parts["gradients"] == 8 * (held - 64)
    gathered = block + one_expert + 2 * one_expert  # the dense FFN is as large as an expert
    assert parts["gathered weights"] == 2 * 4 * gathered + 4 * (router + outside)
    assert parts["candidates of a wide pool"] == 4 * min(64, 64) * 4 * 2 * 4
    assert parts["rows on their way to experts"] == 4 * 64 * 16 * 4


def test_bytes_of_a_tiny_model_by_hand() -> None:
    names = {each.name: each.sent for each in traffic(tiny(), Layout("", 4, 1, 2), 4, True)}
    assert names["rows to experts and back: all-to-all"] == 1 / 2 * 64 * 16 * 6 * 4
    assert names["candidates of wide pools: all-gather"] == 2 * 3 * 64 * 4 * 2 * 4
    assert names["experts: all-reduce"] == 2 / 2 * 2 * (16 * 64 + 64 + 64 * 16 + 16) * 4
    told = 4 + (4 * 4 + 5)  # loss, mse, predictor, norm; 4 experts and 5 numbers of the layer
    assert names["sums of losses and statistics"] == 2 * 3 / 4 * 8 * told


def test_hosts_hold_whole_networks_and_copies() -> None:
    config, weights = preset("digits-diffmoe"), 4 * 537_868
    for layout, copies in (
        (Layout("", 4, 1, 1), 4),
        (Layout("", 4, 2, 1), 2),
        (Layout("", 4, 4, 1), 1),
    ):
        starting, copied = host_bytes(config, layout, per_node=4).values()
        assert starting == 4 * 2 * weights  # the network and its average
        assert copied == pytest.approx(copies * 4 * weights, rel=0.001)


@pytest.mark.parametrize(
    ("batch", "pool", "gpus", "legal"),
    [
        (256, 64, 1, [256, 128, 64]),
        (256, 64, 8, [32, 16, 8]),
        (256, 64, 2, [128, 64, 32]),
        (256, 64, 3, []),
        (256, 64, 1024, []),
        (256, 1, 16, [16, 8, 4, 2, 1]),
        (24, 4, 6, [4, 2]),
    ],
)
def test_legal_micro_batches(batch: int, pool: int, gpus: int, legal: list[int]) -> None:
    config = large(training__global_batch=batch, model__pool_images=pool)
    assert legal_micro_batches(config, gpus) == legal


def test_experts_are_spread_inside_of_nodes_too() -> None:
    found = {layout.name: (layout.shard, layout.expert) for layout in layouts(large(), 16, 8)}
    assert found["experts over 8, FSDP2 by node"] == (8, 8)
    assert found["experts over 16, FSDP2"] == (16, 16)
    assert not any("16" in name and "node" in name for name in found)
    assert not any("node" in layout.name for layout in layouts(large(), 8, 8))


def test_the_largest_micro_batch_that_fits_is_found() -> None:
    config = preset("digits-diffmoe")
    config = replace(config, training=replace(config.training, global_batch=256))
    for memory in (1e9, 9e7, 6e7):
        chosen = plan(config, replace(LAPTOP, memory=memory)).chosen
        assert chosen is not None and chosen.memory.total <= 0.95 * memory
        if not chosen.recompute and chosen.micro_batch < 256:
            twice = memory_of(config, chosen.layout, 2 * chosen.micro_batch, recompute=False)
            assert twice.total > 0.95 * memory


def test_gpus_that_cannot_share_are_told_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"3 GPUs cannot share .* use 2 or 4 GPUs"):
        plan(large(), replace(LAPTOP, gpus=3))
    with pytest.raises(ConfigError, match=r"1024 GPUs .* use 256 GPUs"):
        plan(large(), replace(LAPTOP, gpus=1024))
    with pytest.raises(ConfigError, match=r"micro_batch 64 does not fit 8 GPUs .* 8, 16, 32"):
        plan(large(machine__micro_batch=64), replace(LAPTOP, gpus=8))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--memory 80XB", "--memory 80XB is no amount"),
        ("--memory 0GB", "--memory 0GB is not positive"),
        ("--peak 989", "--peak 989 is no amount"),
        ("--gpus 0", "--gpus 0 is not in"),
        ("--gpus 12", "fill no machines of 8"),
        ("--efficiency 1.5", "--efficiency 1.5 is not in"),
        ("--peak 1TFLOPS --measure", "both say the peak"),
        ("--machine.expert-degree 3", "machine.expert_degree 3"),
    ],
)
def test_nonsense_is_refused(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "digits-diffmoe", *words.split()]) == 2
    assert said in capsys.readouterr().err


def test_too_small_a_memory_is_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "digits-diffmoe", "--gpus", "1", "--memory", "5MB"]) == 0
    shown = capsys.readouterr().out
    assert "does not fit" in shown and "change: GPUs of" in shown and "bfloat16" in shown


def test_a_plan_is_the_pinned_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "plan.json"
    words = "plan diffmoe-s-e16-flow --gpus 8 --memory 24GB --training.precision bfloat16"
    words += f" --training.seed 7 --json {out}"
    assert main(words.split()) == 0
    shown = capsys.readouterr().out.removesuffix(f"all of it: {out}\n")
    assert shown == GOLDEN.read_text()
    content = json.loads(out.read_text())
    assert content["recommended"] in shown
    assert all(flag in shown for flag in content["options"][0]["flags"][-1:])


def test_a_measured_peak_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "digits-diffmoe", "--gpus", "1", "--measure"]) == 0
    assert "measured here in float32" in capsys.readouterr().out
