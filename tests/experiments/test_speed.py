"""The benchmark on tiny models: its arithmetic, its checks, its file. Never a time."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiny
from diffmoe.cli import main
from diffmoe.errors import ConfigError
from diffmoe.experiments import ROWS, bench
from diffmoe.experiments.speed.accelerator import _that_fits, sampling, training
from diffmoe.experiments.speed.answer import Bench, Check, Row
from diffmoe.experiments.speed.loops import LoopMixture, loop_twin
from diffmoe.experiments.speed.measure import Ceilings, Times, clock_of, interleave, ratio
from diffmoe.experiments.speed.workload import Machine, largest_difference
from diffmoe.model import Experts, Routing, RoutingPlan
from diffmoe.presets import preset

SMALL = {
    "model": "digits-diffmoe",
    "dense": "digits-dense",
    "images": (16, 8),
    "rounds": 2,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def measured():
    return bench(**SMALL)


def test_every_row_is_answered(measured) -> None:
    names = [row.name for row in measured.rows]
    assert names[:4] == ["train-large", "train-small", "layer", "sample"]
    assert {*names} >= {name for name in ROWS if name != "reads"} | {"sample-pool"}
    assert names[-4:] == ["reads-static", "reads-token", "reads-pool", "reads-capped"]
    for row in measured.rows:
        assert 0 <= row.value < 100 and row.spread >= 0
        assert row.check is None or row.check.passed, row
        assert row.seconds.keys() == row.over_floor.keys()
        assert all(seconds > 0 for seconds in row.seconds.values())


def test_reads_are_those_promised(measured) -> None:
    reads = {row.name: row.value for row in measured.rows if row.name.startswith("reads")}
    assert list(reads.values()) == [0, 1, 1, 1] and all(row.met for row in measured.rows[-4:])


def test_what_is_written_says_what_it_depends_on(measured, tmp_path: Path) -> None:
    measured.write(tmp_path / "out" / "bench.json")
    content = json.loads((tmp_path / "out" / "bench.json").read_text())
    facts = ("device", "threads", "precision", "clock", "gflops", "gbytes", "torch", "diffmoe")
    assert all(content["facts"][name] for name in facts) and "commit" in content["facts"]
    assert [row["name"] for row in content["rows"]] == [row.name for row in measured.rows]
    assert {"value", "spread", "bar", "met", "seconds", "over_floor"} <= content["rows"][0].keys()


def test_the_table_holds_every_row(measured) -> None:
    text = "\n".join(measured.lines())
    assert all(row.name in text and f"{row.value:.3f}" in text for row in measured.rows)
    assert "x floor" in text and "GFLOP/s" in text


def test_rows_can_be_chosen_and_a_wrong_one_is_named() -> None:
    found = bench(**SMALL, rows=["reads"])
    assert len(found.rows) == 4
    assert len(bench(**SMALL, rows=["reads-token", "reads-pool"]).rows) == 4  # as they are printed
    with pytest.raises(ConfigError, match=r"no row 'layers'.*did you mean layer"):
        bench(**SMALL, rows=["layers"])
    with pytest.raises(ConfigError, match="router dense is not what is measured here"):
        bench(**SMALL | {"model": "digits-dense"}, rows=["layer"])


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "--rows", "reads", "--model", "digits-diffmoe", "--dense", "digits-dense"]
    assert main([*words, "--quiet", "--out", str(tmp_path / "b.json")]) == 0
    assert "reads-token" in capsys.readouterr().out and (tmp_path / "b.json").is_file()
    assert main(["bench", "--rows", "nothing"]) == 2


# --- loops and layers compute one function ------------------------------------------------------


@pytest.mark.parametrize(
    "plan",
    [
        tiny.TRAIN,
        RoutingPlan(selection="pool", policy="ema"),
        RoutingPlan(selection="pool", policy="static"),
        RoutingPlan(selection="token", policy="ema"),
    ],
    ids=lambda plan: f"{plan.selection}-{plan.policy}",
)
def test_the_loops_are_the_layer(plan: RoutingPlan) -> None:
    layer, x = tiny.layer(tiny.batch_pool(3)), tiny.normals(4, 4, 8)
    (output, record), (wanted, loops) = layer(x, plan), LoopMixture(layer)(x, plan)
    torch.testing.assert_close(output, wanted, rtol=1e-12, atol=1e-12)
    assert torch.equal(record.chosen, loops.chosen) and torch.equal(record.count, loops.count)
    if plan is tiny.TRAIN:
        torch.testing.assert_close(record.quantile, loops.quantile)


def test_a_twin_shares_every_weight_and_none_of_the_layers() -> None:
    model = tiny.model(tiny.batch_pool(3), depth=4)
    twin = loop_twin(model)
    own = {id(p) for p in model.parameters()}
    assert {id(p) for p in twin.parameters()} == own and twin is not model
    kinds = [type(block.feed_forward).__name__ for block in twin.blocks]
    assert kinds == ["FeedForward", "LoopMixture"] * 2
    assert not any(isinstance(layer, LoopMixture) for layer in model.moe_layers)


# --- arithmetic ---------------------------------------------------------------------------------


def test_a_ratio_is_taken_round_by_round() -> None:
    """A machine that is twice as slow in one round is so for both."""
    over, under = Times((2.0, 4.0, 2.2)), Times((1.0, 2.0, 1.0))
    assert ratio(over, under).value == 2.0
    assert over.median == 2.2 and Times((3.0,)).spread == 0.0
    assert Times((1.0, 2.0, 3.0, 4.0, 5.0)).spread == 1.0


def test_rounds_are_interleaved_from_either_end() -> None:
    calls: list[str] = []
    variants = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    found = interleave(variants, 2, torch.device("cpu"))
    assert "".join(calls) == "abc" + "abc" + "cba"
    assert all(len(times.rounds) == 2 for times in found.values())


def test_a_floor_is_the_larger_of_two() -> None:
    ceilings = Ceilings(operations=100.0, bandwidth=10.0)
    assert ceilings.floor(200, 10) == 2.0 and ceilings.floor(200, 50) == 5.0


def test_a_bar_is_met_or_missed() -> None:
    row = Row("x", "y", 1.1, bar=1.0)
    assert row.met is False and replace(row, bar=1.1).met is True
    assert replace(row, bar=None).met is None


def test_a_planted_difference_is_seen() -> None:
    one = [torch.ones(4), torch.zeros(2)]
    two = [torch.ones(4), torch.zeros(2)]
    assert largest_difference(one, two) == 0
    two[0][1] = 1.1
    assert largest_difference(two, one) == pytest.approx(0.05, rel=1e-3)
    two[1][1] = torch.nan
    assert math.isnan(largest_difference(two, one))


@pytest.mark.parametrize("difference", [1.0, math.nan])
def test_a_wrong_result_is_no_result(difference: float) -> None:
    row = Row("x", "y", 0.5, bar=1.0, check=Check(difference, 1e-4))
    assert row.met is False and replace(row, check=None).met is True


@pytest.mark.parametrize("part", ["bias1", "bias2", "weight2"])
def test_a_broken_layer_is_seen(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Experts.forward

    def broken(experts: Experts, rows: torch.Tensor, routing: Routing) -> torch.Tensor:
        other = copy.deepcopy(experts)
        getattr(other, part).data.mul_(0.9)
        return honest(other, rows, routing)

    monkeypatch.setattr(Experts, "forward", broken)
    for row in bench(**SMALL, rows=["capacity", "sample"]).rows:
        assert row.met is False, row


def test_what_is_measured_is_kept_when_a_row_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(setup: Bench):
        raise ConfigError("no")

    monkeypatch.setitem(ROWS, "layer", fail)
    with pytest.raises(ConfigError):
        bench(**SMALL, rows=["reads", "layer"], out=tmp_path / "bench.json")
    assert len(json.loads((tmp_path / "bench.json").read_text())["rows"]) == 4


def test_the_clock_is_named() -> None:
    """One thread: its own time. Several: the wall's, or serial work would hide among them."""
    before = torch.get_num_threads()
    try:
        for threads, name in ((1, "CPU time"), (2, "wall")):
            torch.set_num_threads(threads)
            assert clock_of(torch.device("cpu")) == name
    finally:
        torch.set_num_threads(before)


# --- questions for an accelerator, on a CPU and in small ----------------------------------------


def setup(dtype: torch.dtype = torch.bfloat16) -> Bench:
    return Bench(
        model=preset("digits-diffmoe"),
        dense=preset("digits-dense"),
        images=(16, 8),
        experts=(2, 4, 8),
        machine=Machine(torch.device("cpu"), dtype, compile=False),
        ceilings=dict.fromkeys((torch.float32, torch.bfloat16), Ceilings(1e11, 1e10)),
        rounds=2,
    )


def test_training_rows_of_an_accelerator() -> None:
    rows = list(training(setup(), "tiny", "digits-diffmoe", "digits-dense", 2.0, images=16))
    assert [row.name for row in rows] == ["train-tiny", "dense-tiny", "floor-tiny"]
    assert rows[0].at_least and rows[0].check.passed and rows[0].check.difference > 0
    assert rows[2].value == rows[1].over_floor["diffmoe"]


@pytest.mark.parametrize("images", [1, 8])
def test_sampling_rows_of_an_accelerator(images: int) -> None:
    (row,) = sampling(setup(), "tiny", "digits-diffmoe", images, 2.0)
    assert row.seconds.keys() == {"loops", "diffmoe", "eager", "loops, same dtype"}
    assert row.check.passed


def test_a_batch_that_does_not_fit_is_halved() -> None:
    tried: list[int] = []

    def answer(images: int) -> int:
        tried.append(images)
        if images > 40:
            raise torch.OutOfMemoryError("too large")
        return images

    assert _that_fits(256, answer) == 32 and tried == [256, 128, 64, 32]
    with pytest.raises(torch.OutOfMemoryError):
        _that_fits(4, lambda images: answer(1000))


def test_a_bar_may_be_one_to_reach() -> None:
    row = Row("x", "y", 3.0, bar=2.8, at_least=True)
    assert row.met and not replace(row, value=2.7).met
