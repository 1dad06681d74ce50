"""The capacity trace against a count of every pair of every evaluation."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
import trained
from diffmoe.analysis import CapacityTrace
from diffmoe.sampling import Moment, generate

LABELS = [3, 1, 4, 1, 5]


def sampled(run: Any, labels: list[int] = LABELS) -> tuple[CapacityTrace, list[Moment]]:
    trace, moments = CapacityTrace.empty(run, run.sampling.steps), []

    def watch(moment: Moment) -> None:
        trace(moment)
        moments.append(moment)

    generate(trained.network(run), run, labels, range(len(labels)), callback=watch)
    return trace, moments


class Count:
    """Experts taken by each token, one pair after the other."""

    def __init__(self, run: Any, moments: list[Moment]) -> None:
        tokens, experts = run.model.tokens, run.model.router.num_experts
        self.pairs: dict[tuple[int, int], int] = defaultdict(int)
        self.rows: dict[int, int] = defaultdict(int)
        steps, classes = defaultdict(list), defaultdict(list)
        for moment in moments:
            images = len(moment.images)
            taken = [[0] * images for _ in moment.evaluation.output.routing]
            for layer, record in enumerate(moment.evaluation.output.routing):
                self.rows[layer] += record.rows
                sizes = record.count.tolist()
                owners = [expert for expert in range(experts) for _ in range(sizes[expert])]
                for token, expert in zip(record.token.tolist(), owners, strict=False):
                    self.pairs[layer, expert] += 1
                    if token // tokens < images:  # the conditional branch stands first
                        taken[layer][token // tokens] += 1
            for image in range(images):
                capacity = sum(t[image] for t in taken) / len(taken) / tokens
                steps[moment.evaluation.step].append(capacity)
                classes[int(moment.labels[image])].append(capacity)
        self.per_step = [sum(v) / len(v) for _, v in sorted(steps.items())]
        self.per_class = {label: sum(v) / len(v) for label, v in classes.items()}
        total = [sum(self.pairs[m, e] for e in range(experts)) / n for m, n in self.rows.items()]
        self.average = sum(total) / len(total)


SETTINGS = [
    {},
    {"guidance": 2.0},
    {"guidance": 2.0, "guidance_end": 0.6, "batch": 2},
    {"guidance": 2.0, "selection": "pool", "guidance_pool": "joint"},
    {"sampler": "heun", "steps": 2, "guidance": 2.0},
    {"sampler": "ancestral", "selection": "gate", "guidance": 2.0},
    {"sampler": "dopri5", "rtol": 0.5, "atol": 0.5, "steps": 250},
    {"policy": "constant", "gamma": 0.9},
    {"max_capacity": 0.75},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_trace_is_a_count_of_every_pair(settings: dict[str, Any]) -> None:
    run = trained.config(**settings)
    trace, moments = sampled(run)
    count = Count(run, moments)
    assert trace.per_step.tolist() == pytest.approx(count.per_step, rel=1e-6)
    for label in range(10):
        wanted = count.per_class.get(label, float("nan"))
        assert trace.per_class[label].item() == pytest.approx(wanted, rel=1e-6, nan_ok=True)
    for layer in range(2):
        for expert in range(4):
            wanted = count.pairs[layer, expert] / count.rows[layer]
            assert trace.per_expert[layer, expert].item() == pytest.approx(wanted, rel=1e-9)
    assert trace.average == pytest.approx(count.average, rel=1e-9)


def test_guidance_counts_whole_in_the_average_and_by_half_in_the_maps() -> None:
    run = trained.config(guidance=2.0)
    trace, moments = sampled(run)
    assert trace.rows.tolist() == [2 * 5 * 16 * 4] * 2
    assert trace.step_images.tolist() == [5] * 4
    conditional = trace.per_step.mean().item()
    assert trace.conditional == pytest.approx(conditional) and not trace.is_even
    assert trace.average != pytest.approx(conditional, rel=1e-4)
    assert all(one.evaluation.output.branches == 2 for one in moments)


def test_the_batch_size_changes_no_number() -> None:
    one, other = (sampled(trained.config(guidance=2.0, batch=batch))[0] for batch in (5, 2))
    assert torch.equal(one.pairs, other.pairs) and torch.equal(one.rows, other.rows)
    torch.testing.assert_close(one.per_step, other.per_step)
    torch.testing.assert_close(one.per_class, other.per_class, equal_nan=True)


def test_the_trace_does_not_grow_with_images() -> None:
    def size(labels: list[int]) -> int:
        trace, _ = sampled(trained.config(batch=8), labels)
        tensors = [value for value in vars(trace).values() if isinstance(value, torch.Tensor)]
        return sum(tensor.numel() for tensor in tensors) + len(trace.times)

    assert size([1, 2]) == size([1, 2] * 16)


def test_each_step_has_the_time_it_begins_at() -> None:
    heun, _ = sampled(trained.config(sampler="heun"))
    assert heun.times == {0: 1.0, 1: 0.75, 2: 0.5, 3: 0.25}
    ancestral, _ = sampled(trained.config(sampler="ancestral", steps=3))
    assert ancestral.times == {0: 999, 1: 500, 2: 0}


def test_an_adaptive_solver_may_take_fewer_or_more_steps_than_were_named() -> None:
    for steps in (1, 250):
        settings = {"sampler": "dopri5", "rtol": 0.5, "atol": 0.5, "steps": steps}
        trace, moments = sampled(trained.config(**settings), [1])
        assert 1 < len(trace.per_step) == len(moments) < 250
        assert (trace.per_step > 0).all()


def test_fixed_capacity_is_one_everywhere() -> None:
    trace, _ = sampled(trained.config(selection="image", guidance=2.0))
    assert trace.average == trace.conditional == 1 and trace.is_even
    assert (trace.per_expert == 0.25).all()
    torch.testing.assert_close(trace.per_step, torch.ones(4, dtype=torch.float64))


def test_a_dense_model_has_capacity_one_and_no_maps() -> None:
    trace, _ = sampled(trained.config(tiny.ROUTERS["dense"]))
    assert trace.average == trace.conditional == 1 and trace.is_even
    assert not len(trace.per_step) and trace.per_expert.numel() == 0


def test_pairs_above_a_cap_are_counted_as_dropped() -> None:
    free, _ = sampled(trained.config())
    run = trained.config(max_capacity=0.75)
    capped, moments = sampled(run)
    lost = sum(int(record.dropped.sum()) for m in moments for record in m.evaluation.output.routing)
    assert capped.dropped == lost > 0 and free.dropped == 0 == free.dropped_share
    assert capped.dropped_share == pytest.approx(lost / (lost + float(capped.pairs.sum())))
    assert capped.average <= 0.75 < free.average


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_traces_of_parts_add_up_to_that_of_all_images(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """Those of files too, bit for bit."""
    run = trained.config(**{"batch": 2} | settings)
    whole, parts = CapacityTrace.empty(run, run.sampling.steps), []
    for images in (range(2), range(2, 5)):
        labels, seeds = [LABELS[i] for i in images], list(images)
        parts.append(CapacityTrace.empty(run, 1 if images.start else run.sampling.steps))
        generate(trained.network(run), run, labels, seeds, callback=parts[-1])
    for part in parts:
        save_file(part.tensors, tmp_path / "trace")
        again = CapacityTrace.of_tensors(load_file(tmp_path / "trace"))
        assert again.times == part.times and again.tokens == part.tokens
        assert again.dropped == part.dropped
        for name, values in part.tensors.items():
            assert torch.equal(again.tensors[name], values)
        whole.add(again)
    if settings.get("selection") == "pool":
        return  # the images of a batch are another pool
    wanted, _ = sampled(run)
    assert whole.average == pytest.approx(wanted.average, rel=1e-12)
    assert whole.dropped == wanted.dropped and whole.times == wanted.times
    torch.testing.assert_close(whole.per_step, wanted.per_step, rtol=1e-6, atol=0)
    torch.testing.assert_close(whole.per_class, wanted.per_class, equal_nan=True, rtol=1e-6, atol=0)
    assert whole.rows.tolist() == wanted.rows.tolist()


def test_a_trace_of_fewer_steps_takes_in_one_of_more() -> None:
    run = trained.config()
    one, other = CapacityTrace.empty(run, 1), sampled(run)[0]
    for _ in range(2):
        one.add(other)
    assert one.per_step.tolist() == other.per_step.tolist() and one.times == other.times
    assert one.dropped_share == other.dropped_share and one.step_images.tolist() == [10] * 4
