"""Tallies of a sampling run against a count of every pair of every evaluation."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import tiny
import trained
from diffmoe.analysis.routing_trace import RoutingTrace
from diffmoe.analysis.tallies import BatchSums, ClassTally, rank_correlation, read_trace
from diffmoe.analysis.tallies.experts import chance_labels
from diffmoe.analysis.tallies.numbers import information
from diffmoe.config import ROUTER_OPTIONS, RouterOptions
from diffmoe.errors import ConfigError, StorageError
from diffmoe.model import ROUTERS, Router, Routing, RoutingPlan, register_router
from diffmoe.objective import build_objective
from diffmoe.presets import preset
from diffmoe.sampling import Moment, balanced_labels, generate

COUNT = 23  # of 10 classes: classes 0, 1, 2 have three draws, the others two
NAMES = [f"digit {label}" for label in range(10)]
SHOWN = (1, 4, 22)


def sampled(
    run: Any, count: int = COUNT, parts: tuple[int, ...] = (), shown: tuple[int, ...] = SHOWN
) -> tuple[RoutingTrace, list[Moment]]:
    """A trace of balanced images, drawn in parts that begin at `parts`, and all it saw."""
    trace, moments = RoutingTrace.empty(run, shown=shown, frames=3), []
    labels, model = balanced_labels(count, 10), trained.network(run)
    for first, last in zip((0, *parts), (*parts, count), strict=True):
        take = trace.from_image(first)

        def watch(moment: Moment, take: Any = take, first: int = first) -> None:
            take(moment)
            images = range(moment.images.start + first, moment.images.stop + first)
            moments.append(replace(moment, images=images))

        generate(model, run, labels[first:last], range(first, last), callback=watch)
    return trace, moments


@dataclass
class Seen:
    """One evaluation of one image: the pairs (layer, expert, token) taken, and those wanted."""

    step: int
    level: float
    taken: set[tuple[int, int, int]]
    wanted: set[tuple[int, int, int]] | None
    x: torch.Tensor


class Slow:
    """What experts took, one pair after the other, and what follows from it."""

    def __init__(self, run: Any, moments: list[Moment]) -> None:
        self.tokens, self.experts = run.model.tokens, run.model.router.num_experts
        self.layers = len(run.model.moe_blocks)
        self.dense = self.tokens * self.layers
        self.images: dict[int, list[Seen]] = defaultdict(list)
        self.label: dict[int, int] = {}
        self.level = build_objective(run.objective).noise_level
        for moment in moments:
            self._take(moment)

    def _take(self, moment: Moment) -> None:
        one = moment.evaluation
        taken, wanted = defaultdict(set), defaultdict(set)
        for layer, record in enumerate(one.output.routing):
            token, start = record.token.tolist(), 0
            for expert, size in enumerate(record.count.tolist()):
                for row in token[start : start + size]:
                    taken[row // self.tokens].add((layer, expert, row % self.tokens))
                start += size
            if record.wanted is not None:
                for row, expert in record.wanted.nonzero().tolist():
                    wanted[row // self.tokens].add((layer, expert, row % self.tokens))
        known = all(record.wanted is not None for record in one.output.routing)
        for place, image in enumerate(moment.images):
            own = wanted[place] if known else None
            level = self.level(one.time)
            self.images[image].append(Seen(one.step, level, taken[place], own, one.x[place]))
            self.label[image] = int(moment.labels[place])

    def by_step(self) -> dict[int, list[float]]:
        """Capacity of each image in each step, mean over the evaluations of the step."""
        found = defaultdict(list)
        for seen in self.images.values():
            steps = defaultdict(list)
            for one in seen:
                steps[one.step].append(len(one.taken) / self.dense)
            for step, values in steps.items():
                found[step].append(sum(values) / len(values))
        return dict(sorted(found.items()))

    def by_class(self, kind: str, half: int | None = None) -> dict[int, list[float]]:
        """Capacity of each draw of each class, mean over its evaluations."""
        found = defaultdict(list)
        for image, seen in sorted(self.images.items()):
            if half in (None, image // 10 % 2):
                values = [len(getattr(one, kind)) / self.dense for one in seen]
                found[self.label[image]].append(sum(values) / len(values))
        return dict(found)

    def pairs(self) -> Iterator[tuple[int, Seen, tuple[int, int, int]]]:
        """Every pair taken, with its image and evaluation."""
        for image, seen in self.images.items():
            for one in seen:
                for pair in one.taken:
                    yield image, one, pair

    def evaluations(self) -> int:
        return sum(map(len, self.images.values()))


def bits(pairs: list[tuple[Any, Any]]) -> float:
    """Mutual information of the two halves of pairs, by its definition."""
    both, one, other = Counter(pairs), Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    total = len(pairs)
    return sum(n / total * math.log2(n * total / (one[a] * other[b])) for (a, b), n in both.items())


def spread(values: list[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


@dataclass(frozen=True, kw_only=True)
class Scatter(RouterOptions):
    """Options of a router of one's own."""

    kind: ClassVar[str] = "scatter"
    num_experts: int


class ScatterRouter(Router):
    """An expert takes every row whose affinity is above the mean: no threshold is known."""

    def route(self, rows: torch.Tensor, plan: RoutingPlan) -> Routing:
        affinity = self.affinity(rows).flatten(0, 1)
        expert, token = (affinity > 1 / affinity.shape[1]).T.nonzero().unbind(1)
        return Routing(
            token=token,
            gate=affinity[token, expert],
            count=torch.bincount(expert, minlength=affinity.shape[1]),
            affinity=affinity,
            demand=None,
            pool=torch.zeros(len(affinity), dtype=torch.int64),
            quantile=None,
        )


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    register_router(Scatter, ScatterRouter)
    yield
    del ROUTERS[Scatter], ROUTER_OPTIONS["scatter"]


RUNS: dict[str, tuple[RouterOptions | None, dict[str, Any]]] = {
    "plain": (None, {}),
    "guided": (None, {"guidance": 2.0}),
    "interval": (None, {"guidance": 2.0, "guidance_end": 0.6, "batch": 4}),
    "pool": (None, {"guidance": 2.0, "selection": "pool", "guidance_pool": "joint"}),
    "static": (None, {"selection": "pool", "policy": "static", "batch": 8}),
    "heun": (None, {"sampler": "heun", "steps": 3, "guidance": 2.0, "batch": 5}),
    "gate": (None, {"sampler": "ancestral", "selection": "gate", "guidance": 2.0}),
    "dopri5": (None, {"sampler": "dopri5", "rtol": 0.5, "atol": 0.5, "steps": 3}),
    "shared step": (
        None,
        {"sampler": "dopri5", "rtol": 0.5, "atol": 0.5, "shared_step": True, "batch": 9},
    ),
    "capped": (None, {"max_capacity": 0.75, "guidance": 2.0}),
    "constant": (None, {"policy": "constant", "gamma": 0.5}),
    "image": (None, {"selection": "image", "guidance": 2.0}),
    "bfloat16": (None, {"precision": "bfloat16", "guidance": 2.0}),
    "token choice": (tiny.token_choice(4, 2), {"guidance": 2.0}),
    "expert choice": (tiny.expert_choice(4), {}),
    "own router": (Scatter(num_experts=9), {"guidance": 2.0, "batch": 7}),
}


def config(name: str) -> Any:
    router, settings = RUNS[name]
    return trained.config(router, **settings)


@pytest.fixture(scope="module", params=RUNS)
def whole(request: pytest.FixtureRequest) -> tuple[RoutingTrace, Slow]:
    register_router(Scatter, ScatterRouter)
    run = config(request.param)
    trace, moments = sampled(run)
    return trace, Slow(run, moments)


Whole = tuple[RoutingTrace, Slow]


def test_steps_are_those_of_a_slow_count(whole: Whole) -> None:
    trace, slow = whole
    found, wanted = trace.step_capacity(), slow.by_step()
    assert found.mean == pytest.approx([sum(v) / len(v) for v in wanted.values()])
    assert found.images.tolist() == [len(v) for v in wanted.values()]
    assert found.deviation == pytest.approx([spread(v) for v in wanted.values()], nan_ok=True)
    levels, pairs, rows = defaultdict(list), Counter(), Counter()
    for seen in slow.images.values():
        first = {one.step: one.level for one in reversed(seen)}
        for step, level in first.items():
            levels[step].append(level)
        rows.update(one.step for one in seen)
    assert found.level == pytest.approx([sum(v) / len(v) for _, v in sorted(levels.items())])
    for _, one, (layer, expert, _token) in slow.pairs():
        pairs[one.step, layer, expert] += 1
    assert found.experts.shape == (len(wanted), slow.layers, slow.experts)
    for (step, layer, expert), value in np.ndenumerate(found.experts):
        even = rows[step] * slow.tokens / slow.experts
        assert value == pytest.approx(pairs[step, layer, expert] / even)


def test_classes_are_those_of_a_slow_count(whole: Whole) -> None:
    trace, slow = whole
    found, wanted = trace.class_capacity(NAMES), slow.by_class("taken")
    assert found.names == NAMES and found.images.tolist() == [3, 3, 3, 2, 2, 2, 2, 2, 2, 2]
    for label, values in wanted.items():
        assert found.selected[label] == pytest.approx(sum(values) / len(values))
        error = spread(values) / math.sqrt(len(values))
        assert found.error[label] == pytest.approx(error, abs=1e-9)
    assert found.stability == pytest.approx(halves(slow, "taken"), nan_ok=True)


def halves(slow: Slow, kind: str) -> float:
    """Rank correlation between the means of even and odd draws."""
    means = []
    for half in (0, 1):
        values = slow.by_class(kind, half)
        means.append([sum(values[label]) / len(values[label]) for label in range(10)])
    if any(max(one) - min(one) < 1e-9 for one in means):
        return float("nan")
    return spearmanr(*np.round(means, 9)).statistic


def test_both_definitions_of_a_class_are_those_of_a_slow_count(whole: Whole) -> None:
    trace, slow = whole
    found = trace.class_capacity(NAMES)
    known = slow.images[0][0].wanted is not None
    assert (found.above is not None) == known == (found.stability_above is not None)
    if not known:
        assert found.agreement is None
        return
    for label, values in slow.by_class("wanted").items():
        assert found.above[label] == pytest.approx(sum(values) / len(values))
    assert found.stability_above == pytest.approx(halves(slow, "wanted"))
    both = np.round([found.selected, found.above], 9)
    assert found.agreement == pytest.approx(spearmanr(*both).statistic)


def test_experts_are_those_of_a_slow_count(whole: Whole) -> None:
    trace, slow = whole
    found = trace.expert_use()
    own, rows = Counter(), slow.evaluations() * slow.tokens
    takers = defaultdict(set)
    for image, one, (layer, expert, token) in slow.pairs():
        own[layer, expert] += 1
        takers[layer, image, id(one), token].add(expert)
    meetings = Counter((key[0], a, b) for key, who in takers.items() for a in who for b in who)
    for (layer, expert), share in np.ndenumerate(found.share):
        assert share == pytest.approx(own[layer, expert] / rows)
        mean = sum(own[layer, e] for e in range(slow.experts)) / slow.experts
        assert found.dead[layer, expert] == (own[layer, expert] <= 0.01 * mean)
    for (layer, a, b), overlap in np.ndenumerate(found.overlap):
        both = meetings[layer, a, b]
        either = own[layer, a] + own[layer, b] - both
        assert overlap == pytest.approx(both / either if either else 0)


def test_information_is_that_of_a_slow_count(whole: Whole) -> None:
    trace, slow = whole
    found = trace.expert_use()
    chance = dict(enumerate(chance_labels(range(COUNT), np.arange(COUNT) % 10, 10).tolist()))
    for layer in range(slow.layers):
        pairs = [(i, one, pair[1]) for i, one, pair in slow.pairs() if pair[0] == layer]
        of_class = bits([(slow.label[image], expert) for image, _, expert in pairs])
        of_chance = bits([(chance[image], expert) for image, _, expert in pairs])
        of_step = bits([(one.step, expert) for _, one, expert in pairs])
        assert found.class_information[layer] == pytest.approx(of_class, abs=1e-12)
        assert found.class_chance[layer] == pytest.approx(of_chance, abs=1e-12)
        assert found.level_information[layer] == pytest.approx(of_step, abs=1e-12)


def test_maps_are_those_of_a_slow_count(whole: Whole) -> None:
    trace, slow = whole
    images = np.zeros((3, 1, 8, 8), np.uint8)
    found = trace.token_maps(NAMES, images, lambda x: (x * 10).round().clamp(0, 255).byte())
    assert found.labels == [1, 4, 2] and found.names == ["digit 1", "digit 4", "digit 2"]
    grid = np.linspace(1, 0, found.number.shape[1] + 1)[:-1]
    assert len(grid) == 3 and found.images is images
    for place, image in enumerate(SHOWN):
        seen = slow.images[image]
        times = Counter(pair for one in seen for pair in one.taken)
        for (layer, expert, token), share in np.ndenumerate(found.share[place]):
            assert share == pytest.approx(times[layer, expert, token] / len(seen))
        for frame, level in enumerate(grid):
            one = next(one for one in seen if one.level <= level + 0.01 / 3)
            number = Counter(token for _, _, token in one.taken)
            wanted = [number[token] / slow.layers for token in range(slow.tokens)]
            assert found.number[place, frame].tolist() == pytest.approx(wanted)
            noisy = (one.x.half().float() * 10).round().clamp(0, 255).byte()
            assert np.array_equal(found.noisy[place, frame], noisy)
            assert trace.maps.step[place, frame] == one.step
            assert trace.maps.level[place, frame] == pytest.approx(one.level)
    assert found.steps.tolist() == trace.maps.step[0].tolist()
    assert found.level == pytest.approx(trace.maps.level.mean(axis=0))


def test_halves_are_even_and_odd_draws() -> None:
    draws, tally = np.random.default_rng(0), ClassTally.empty(3)
    taken, wanted = draws.integers(0, 9, (20, 2, 4)), draws.integers(0, 9, 20)
    for first, last in ((0, 7), (7, 20)):
        images, labels = range(first, last), np.arange(first, last) % 3
        own = taken[first:last], wanted[first:last]
        tally.add(BatchSums(images, labels, 10, 1, 2, *own))
    for half, label in np.ndindex(2, 3):
        here = [i for i in range(20) if i % 3 == label and i // 3 % 2 == half]
        selected = [taken[i].sum() / 20 for i in here]
        above = [wanted[i] / 20 for i in here]
        assert tally.images[half, label] == tally.above_images[half, label] == len(here)
        assert tally.selected[half, label] == pytest.approx(sum(selected))
        assert tally.selected_squared[half, label] == pytest.approx(sum(v * v for v in selected))
        assert tally.above[half, label] == pytest.approx(sum(above))
        assert tally.above_squared[half, label] == pytest.approx(sum(v * v for v in above))


def test_the_average_of_a_trace_is_of_all_branches() -> None:
    trace, _ = sampled(trained.config(guidance=2.0))
    assert trace.capacity.rows.tolist() == [2 * COUNT * 16 * 4] * 2
    assert trace.step_capacity().mean.mean() == pytest.approx(trace.capacity.conditional)
    assert trace.capacity.average != pytest.approx(trace.capacity.conditional, rel=1e-4)


def test_both_definitions_agree_where_rows_above_are_rows_taken() -> None:
    for name in ("guided", "gate", "constant"):
        found = sampled(config(name))[0].class_capacity(NAMES)
        assert found.above.tolist() == found.selected.tolist() and found.agreement == 1
    for name in ("pool", "capped"):
        found = sampled(config(name))[0].class_capacity(NAMES)
        assert np.abs(found.above - found.selected).max() > 0.01
        assert found.agreement < 1


@pytest.mark.parametrize("name", ["guided", "heun", "dopri5", "capped"])
def test_neither_parts_nor_batches_change_a_number(name: str, tmp_path: Path) -> None:
    run = config(name)
    smaller = replace(run, sampling=replace(run.sampling, batch=3))
    traces = [sampled(run)[0], sampled(run, parts=(7, 20))[0], sampled(smaller, parts=(1,))[0]]
    for number, trace in enumerate(traces):
        trace.write(tmp_path / str(number))
    first, *others = (read_trace(tmp_path / str(number))[0] for number in range(3))
    for other in others:
        for key, values in first.items():
            if key != "frame_x":  # rounding of a product may depend on its batch
                np.testing.assert_allclose(values, other[key], rtol=1e-12, err_msg=key)
        np.testing.assert_allclose(first["frame_x"], other["frame_x"], atol=2e-3)


def test_a_run_drawn_again_counts_again() -> None:
    trace, _ = sampled(trained.config(steps=2), count=1, shown=())
    generate(trained.network(trace.config), trace.config, [0], [5], callback=trace)
    found = trace.class_capacity(NAMES)
    assert found.images[0] == 2 and not math.isnan(found.error[0])
    assert math.isnan(found.error[1]) and math.isnan(found.selected[1])


def test_one_image_has_no_spread() -> None:
    trace, _ = sampled(trained.config(steps=2), count=1, shown=())
    assert np.isnan(trace.step_capacity().deviation).all()
    found = trace.class_capacity(NAMES)
    assert math.isnan(found.error[0]) and math.isnan(found.stability)
    assert math.isnan(found.agreement)


def test_an_expert_without_rows_is_dead_and_meets_nobody() -> None:
    run = trained.config()
    model = trained.network(run)
    model.moe_layers[1].router.threshold[2] = 0.9999999
    trace = RoutingTrace.empty(run)
    generate(model, run, [1, 2], [0, 1], callback=trace)
    found = trace.expert_use()
    assert found.dead.tolist() == [[False] * 4, [False, False, True, False]]
    assert not found.overlap[1, 2].any() and not found.overlap[1, :, 2].any()
    assert found.overlap[0].diagonal().tolist() == [1] * 4
    for layer in model.moe_layers:
        layer.router.threshold.fill_(0.9999999)
    nothing = RoutingTrace.empty(run)
    generate(model, run, [1, 2], [0, 1], callback=nothing)
    assert nothing.expert_use().dead.all()
    assert np.isnan(nothing.expert_use().class_information).all()
    assert (nothing.step_capacity().mean == 0).all()


def test_a_dense_model_and_an_empty_trace_find_nothing(tmp_path: Path) -> None:
    dense, _ = sampled(trained.config(tiny.ROUTERS["dense"]))
    empty = RoutingTrace.empty(trained.config())
    for place, trace in enumerate((dense, empty)):
        assert trace.step_capacity() is trace.class_capacity(NAMES) is trace.expert_use() is None
        assert trace.token_maps(NAMES, np.zeros((3, 1, 8, 8), np.uint8), torch.Tensor.byte) is None
        trace.write(tmp_path / str(place))
        assert read_trace(tmp_path / str(place))[0]["executed_pairs"].sum() == 0
    assert dense.capacity.average == 1


def test_images_to_show_must_be_drawn_and_given() -> None:
    trace, _ = sampled(trained.config(steps=1), count=2, shown=(1, 5))
    images = np.zeros((2, 1, 8, 8), np.uint8)
    with pytest.raises(ConfigError, match="shown image 5 was not drawn"):
        trace.token_maps(NAMES, images, torch.Tensor.byte)
    trace, _ = sampled(trained.config(steps=1), count=2, shown=(1,))
    with pytest.raises(ConfigError, match="2 images are given, 1 are shown"):
        trace.token_maps(NAMES, images, torch.Tensor.byte)
    assert trace.token_maps(NAMES, images[:1], torch.Tensor.byte).steps.tolist() == [0]


@pytest.mark.parametrize("sampler", ["euler", "ancestral"])
@pytest.mark.parametrize("steps", [2, 5, 12, 13])
def test_every_frame_of_a_solver_with_fixed_steps_is_a_step_of_its_own(
    sampler: str, steps: int
) -> None:
    run = trained.config(sampler=sampler, steps=steps)
    trace = RoutingTrace.empty(run, shown=(0,))
    generate(trained.network(run), run, [1], [0], callback=trace)
    frames = trace.maps.step[0].tolist()
    assert len(set(frames)) == len(frames) == min(steps, 12) and frames[0] == 0
    assert sorted(frames) == frames


def test_memory_does_not_grow_with_the_number_of_images() -> None:
    sizes = set()
    for count in (8, 64):
        trace, _ = sampled(trained.config(batch=8, guidance=2.0, steps=2), count, shown=(0, 1))
        sizes.add(trace.nbytes)
    assert len(sizes) == 1


def test_a_trace_of_the_largest_comparison_fits_anywhere() -> None:
    base = preset("diffmoe-l-e16-flow")
    trace = RoutingTrace.empty(base, shown=range(12))
    assert base.model.num_classes == 1000 and base.sampling.steps == 250
    assert trace.nbytes < 16 * 2**20


def test_chance_labels_keep_how_often_each_class_occurs() -> None:
    labels = np.arange(40) % 10
    found = chance_labels(range(40), labels, 10)
    rounds = found.reshape(4, 10)
    assert all(sorted(one) == list(range(10)) for one in rounds)
    assert len({tuple(one) for one in rounds}) == 4 and (found != labels).any()
    parts = [chance_labels(range(a, a + 5), labels[a : a + 5], 10) for a in range(0, 40, 5)]
    assert np.concatenate(parts).tolist() == found.tolist()


def test_information_by_chance_is_small_where_that_of_the_class_is_large() -> None:
    run = trained.config(steps=1)
    trace, moments = RoutingTrace.empty(run), []
    generate(
        trained.network(run), run, balanced_labels(200, 10), range(200), callback=moments.append
    )
    for moment in moments:  # class 0 and 1 alone have experts: information is planted
        label = moment.labels.repeat_interleave(16)
        records = []
        for record in moment.evaluation.output.routing:
            expert, token = (label[None] % 4 == torch.arange(4)[:, None]).nonzero().unbind(1)
            count = torch.bincount(expert, minlength=4)
            planted = replace(
                record, token=token, gate=token.float(), count=count, wanted=None, sizes=None
            )
            records.append(planted)
        output = replace(moment.evaluation.output, routing=tuple(records))
        trace(replace(moment, evaluation=replace(moment.evaluation, output=output)))
    found, even = trace.expert_use(), Counter(label % 4 for label in range(10))
    entropy = -sum(n / 10 * math.log2(n / 10) for n in even.values())
    assert found.class_information.tolist() == pytest.approx([entropy] * 2)
    assert (found.class_chance < 0.2 * entropy).all()
    assert found.level_information.tolist() == [0, 0]


def test_rank_correlation_is_that_of_scipy() -> None:
    draws = np.random.default_rng(0)
    for size in (3, 10, 100):
        for levels in (3, 1000):
            x, y = draws.integers(0, levels, (2, size)) / levels
            if len(set(x)) > 1 and len(set(y)) > 1:
                assert rank_correlation(x, y) == pytest.approx(spearmanr(x, y).statistic)
    assert math.isnan(rank_correlation(x[:2], y[:2]))
    assert math.isnan(rank_correlation(x, np.full(100, 0.1) * 3))
    assert math.isnan(rank_correlation(x, 0.3 + 1e-15 * draws.random(100)))


def test_information_is_nothing_where_things_are_independent() -> None:
    even = np.outer([1, 2, 3], [4, 5])[:, None]
    assert information(even).tolist() == pytest.approx([0], abs=1e-12)
    assert (information(even) >= 0).all()
    assert information(np.eye(4, dtype=np.int64)[:, None]).tolist() == [2]
    assert information(np.array([[[1, 0]], [[0, 1]], [[0, 0]]])).tolist() == [1]


@pytest.fixture
def written(tmp_path: Path) -> tuple[RoutingTrace, Path]:
    trace, _ = sampled(config("pool"))
    trace.write(tmp_path)
    return trace, tmp_path


def test_an_outsider_can_redo_the_findings(written: tuple[RoutingTrace, Path]) -> None:
    trace, folder = written
    arrays, schema = read_trace(folder)
    assert schema["version"] == 1 and schema["sampling"]["selection"] == "pool"
    for name, entry in schema["arrays"].items():
        assert len(entry["axes"]) == arrays[name].ndim and entry["meaning"], name
        assert entry["shape"] == list(arrays[name].shape)
    steps, classes, experts = trace.step_capacity(), trace.class_capacity(NAMES), trace.expert_use()
    mean = arrays["step_capacity"] / arrays["step_images"]
    variance = arrays["step_capacity_squared"] / arrays["step_images"] - mean**2
    unbiased = variance * arrays["step_images"] / (arrays["step_images"] - 1)
    assert mean == pytest.approx(steps.mean)
    assert np.sqrt(unbiased) == pytest.approx(steps.deviation)
    even = arrays["step_rows"][:, None, None] / schema["experts"]
    assert arrays["step_pairs"] / even == pytest.approx(steps.experts)
    selected, above = (
        arrays[name].sum(axis=0) / arrays["class_images"].sum(axis=0)
        for name in ("class_selected", "class_above")
    )
    assert selected == pytest.approx(classes.selected) and above == pytest.approx(classes.above)
    own = arrays["together"].diagonal(axis1=1, axis2=2)
    assert own / arrays["rows"] == pytest.approx(experts.share)
    assert information(arrays["class_pairs"]) == pytest.approx(experts.class_information)
    assert information(arrays["chance_pairs"]) == pytest.approx(experts.class_chance)
    assert arrays["class_pairs"].sum(axis=0).tolist() == own.tolist()
    executed = arrays["executed_pairs"].sum(axis=1) / arrays["executed_rows"]
    assert executed.mean() == pytest.approx(trace.capacity.average)


def damage(folder: Path, kind: str) -> None:
    arrays, schema = folder / "trace.safetensors", folder / "trace.json"
    content = json.loads(schema.read_text())
    if kind == "flipped":
        data = bytearray(arrays.read_bytes())
        data[-1] ^= 1
        arrays.write_bytes(bytes(data))
    elif kind == "cut off":
        arrays.write_bytes(arrays.read_bytes()[:-10])
    elif kind == "no arrays":
        arrays.unlink()
    elif kind == "no schema":
        schema.unlink()
    elif kind == "no JSON":
        schema.write_text("{")
    elif kind == "other JSON":
        schema.write_text("[1]")
    else:
        {
            "version": lambda: content.update(version=2),
            "unlisted": lambda: content["arrays"].pop("together"),
            "missing": lambda: content["arrays"].update(more={}),
            "shape": lambda: content["arrays"]["together"].update(shape=[2]),
            "list": lambda: content.update(arrays=[]),
        }[kind]()
        schema.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("flipped", "trace.safetensors is damaged, or was not written with trace.json"),
        ("cut off", "trace.safetensors is damaged"),
        ("no arrays", "trace.safetensors cannot be read"),
        ("no schema", "trace.json cannot be read"),
        ("no JSON", "trace.json is no JSON"),
        ("other JSON", "trace.json is no schema of a trace"),
        ("version", "trace.json has version 2, not 1"),
        ("unlisted", "the array together is not listed"),
        ("missing", "the array more is missing"),
        ("shape", "the array together is not as trace.json says"),
        ("list", "trace.json lists no arrays"),
    ],
)
def test_a_damaged_trace_is_refused(
    written: tuple[RoutingTrace, Path], kind: str, message: str
) -> None:
    read_trace(written[1])
    damage(written[1], kind)
    with pytest.raises(StorageError, match=message):
        read_trace(written[1])
