"""The edges of capacity, for every router and selection: defined, and nobody pays for another.

Rows whose scores are no numbers are an edge, too: they may not take capacity from others.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import tiny
from diffmoe.config import RouterOptions
from diffmoe.errors import ConfigError
from diffmoe.model import MixtureOfExperts, Routing, RoutingPlan, kth_largest, top_pairs
from diffmoe.model.selection import padded_pairs, smallest_gate, top_mask

TOKENS, WIDTH, EXPERTS = 4, 8, 3
ROWS = 4 * TOKENS  # of four images

PLANS = {
    "train": RoutingPlan(selection="train"),
    "static": RoutingPlan(selection="pool", policy="static"),
    "image": RoutingPlan(selection="image"),
    "token": RoutingPlan(selection="token", policy="ema"),
    "gate": RoutingPlan(selection="gate", policy="ema"),
    "pool": RoutingPlan(selection="pool", policy="ema"),
    "capped token": RoutingPlan(selection="token", policy="ema", max_capacity=1.0),
    "capped gate": RoutingPlan(selection="gate", policy="ema", max_capacity=1.0),
}
BY_THRESHOLD = [name for name, plan in PLANS.items() if plan.policy == "ema"]
BY_RANK = [name for name in PLANS if name not in BY_THRESHOLD]
CASES: list[tuple[RouterOptions, str]] = [
    *((tiny.batch_pool(EXPERTS), name) for name in PLANS),
    *((tiny.expert_choice(EXPERTS), name) for name in ("train", "image", "token")),
    *((tiny.token_choice(EXPERTS, 2), name) for name in ("train", "image", "token")),
]
NAMES = [f"{router.kind} {name}" for router, name in CASES]
every_case = pytest.mark.parametrize(("router", "name"), CASES, ids=NAMES)


def rows_for(images: int = 4, seed: int = 7) -> Tensor:
    return tiny.normals(images, TOKENS, WIDTH, seed=seed)


def at(name: str, threshold: float) -> RoutingPlan:
    """A selection by thresholds, all of one value."""
    thresholds = torch.full((1, EXPERTS), threshold)
    return replace(PLANS[name], policy="constant", thresholds=thresholds)


def pairs_of(routing: Routing) -> set[tuple[int, int]]:
    valid = routing.valid
    return set(zip(routing.token[valid].tolist(), routing.expert[valid].tolist(), strict=True))


# --- how many rows there are --------------------------------------------------------------------


@every_case
def test_a_batch_of_no_rows_gives_no_rows(router: RouterOptions, name: str) -> None:
    layer = tiny.layer(router)
    output, routing = layer(rows_for(0), PLANS[name])
    assert output.shape == (0, TOKENS, WIDTH) and routing.rows == 0
    assert routing.count.tolist() == [0] * EXPERTS and routing.pool.shape == (0,)
    assert not pairs_of(routing) and not routing.chosen.any()


def test_no_rows_leave_the_thresholds_as_they_are() -> None:
    router = tiny.layer(tiny.batch_pool(EXPERTS)).router
    before = [router.threshold.clone(), router.gate_threshold.clone()]
    router.update(router.statistics(router.route(rows_for(0), PLANS["train"])))
    assert router.threshold_updates.item() == 1
    assert torch.equal(router.threshold, before[0])
    assert torch.equal(router.gate_threshold, before[1])


@pytest.mark.parametrize(
    ("capacity", "name", "images", "needed"),
    [(1.0, "train", 1, 6), (1.0, "static", 1, 6), (1.0, "image", 4, 6), (0.7, "train", 2, 9)],
)
def test_k_of_zero_is_refused_with_the_smallest_pool_there_can_be(
    capacity: float, name: str, images: int, needed: int
) -> None:
    layer = tiny.layer(tiny.batch_pool(6, capacity))
    with pytest.raises(ConfigError, match=rf"K would be 0 — a pool needs {needed} rows"):
        layer(rows_for(images), PLANS[name])
    found, _ = top_pairs(torch.rand(1, needed, 6), ((0,),), capacity)
    assert found.shape == (6, 1)


@pytest.mark.parametrize("router", [tiny.expert_choice(6), tiny.batch_pool(30)])
def test_where_the_config_tells_it_k_of_zero_is_refused_there(router: RouterOptions) -> None:
    with pytest.raises(ConfigError, match=r"no token|K would be 0"):
        tiny.config(router)


@pytest.mark.parametrize("name", BY_RANK)
def test_k_of_all_rows_is_every_row_by_every_expert(name: str) -> None:
    layer = tiny.layer(tiny.batch_pool(EXPERTS, float(EXPERTS)))
    assert layer(rows_for(), PLANS[name])[1].chosen.all()


@pytest.mark.parametrize("function", [top_pairs, kth_largest])
def test_more_rows_than_there_are_are_refused_and_not_cut(function) -> None:
    with pytest.raises(ConfigError, match=r"4 rows has not the 5 rows .* capacity of 3 or less"):
        function(torch.rand(1, 4, EXPERTS), ((0,),), 3.75)


def test_all_rows_may_go_to_one_expert_and_none_to_the_others() -> None:
    layer = tiny.layer(tiny.batch_pool(EXPERTS))
    thresholds = torch.tensor([[1.0, -1.0, 1.0]])
    for selection in ("token", "gate", "pool"):
        plan = RoutingPlan(selection=selection, policy="target", thresholds=thresholds)
        output, routing = layer(rows_for(), plan)
        assert routing.count.tolist() == [0, ROWS, 0] and output.isfinite().all()
    layer = tiny.layer(tiny.token_choice(EXPERTS))
    layer.router.weight.data.zero_()
    _, routing = layer(rows_for(), PLANS["train"])
    assert routing.count.tolist() == [ROWS, 0, 0]


# --- thresholds ---------------------------------------------------------------------------------

EDGES = [
    (-torch.inf, True),
    (-0.1, True),
    (0.0, True),
    (1.0, False),
    (1.1, False),
    (torch.inf, False),
    (torch.nan, False),
]


@pytest.mark.parametrize(("threshold", "taken"), EDGES, ids=str)
@pytest.mark.parametrize("name", ["token", "gate", "pool"])
def test_a_threshold_at_an_edge_takes_all_rows_or_none(name, threshold, taken) -> None:
    """Strictly above counts, so nothing is above 1; NaN has nothing above it either."""
    layer = tiny.layer(tiny.batch_pool(EXPERTS))
    output, routing = layer(rows_for(), at(name, threshold))
    assert routing.count.tolist() == [ROWS if taken else 0] * EXPERTS
    assert output.isfinite().all() and bool(output.any()) == taken


@pytest.mark.parametrize(("threshold", "taken"), EDGES, ids=str)
@pytest.mark.parametrize("name", ["capped token", "capped gate"])
@pytest.mark.parametrize("cap", [0.25, 1.0, 1.7, 3.0, 50.0])
def test_no_threshold_takes_more_of_an_image_than_its_cap(name, cap, threshold, taken) -> None:
    layer = tiny.layer(tiny.batch_pool(EXPERTS))
    _, routing = layer(rows_for(), replace(at(name, threshold), max_capacity=cap))
    room = min(int(TOKENS * cap), TOKENS * EXPERTS)
    for image in range(4):
        own = [pair for pair in pairs_of(routing) if pair[0] // TOKENS == image]
        assert len(own) == (room if taken else 0)
    lost = TOKENS * EXPERTS - room if taken else 0
    assert routing.dropped.tolist() == [lost] * 4 and len(routing.token) == 4 * room


@pytest.mark.parametrize("value", [-0.1, 1.0, 1.1, torch.inf, torch.nan, None])
@pytest.mark.parametrize("name", BY_THRESHOLD)
def test_tracked_thresholds_at_an_edge_are_refused_with_the_remedy(name, value) -> None:
    """None stands for thresholds that were never measured."""
    router = tiny.layer(tiny.batch_pool(EXPERTS)).router
    router.check(PLANS[name])
    if value is None:
        router.threshold_updates.zero_()
    else:
        router.tracked(PLANS[name].selection)[1] = value
    with pytest.raises(ConfigError, match=r"layer 0 .* — train the model first, or use policy"):
        router.check(PLANS[name])


# --- rows whose scores are no numbers -----------------------------------------------------------

POISONS = [torch.nan, torch.inf, -torch.inf]


def poisoned(value: float, at_row: int) -> Tensor:
    x = rows_for()
    x.view(ROWS, WIDTH)[at_row] = value
    return x


def others(routing: Routing, row: int) -> set[tuple[int, int]]:
    return {pair for pair in pairs_of(routing) if pair[0] != row}


@pytest.mark.parametrize("value", POISONS)
@pytest.mark.parametrize("row", [0, 6, ROWS - 1])
@every_case
def test_a_poisoned_row_harms_itself_alone(router, name, row: int, value: float) -> None:
    layer = tiny.layer(router)
    output, routing = layer(poisoned(value, row), PLANS[name])
    flat = output.flatten(0, 1)
    assert flat[[other for other in range(ROWS) if other != row]].isfinite().all()
    assert routing.poisoned.nonzero().flatten().tolist() == [row]
    gates = routing.gate[routing.valid & (routing.token == row)]
    assert not gates.any() and routing.gate.isfinite().all()
    if router.kind != "token_choice":  # where a row's experts are its own, nobody lacks them
        assert len(pairs_of(routing)) == len(others(routing, row))


@pytest.mark.parametrize("value", POISONS)
@pytest.mark.parametrize("name", BY_THRESHOLD)
def test_by_threshold_the_others_get_what_they_would_get_without_it(name, value: float) -> None:
    """Bit for bit; in `pool` selection too, where sound rows compete."""
    layer = tiny.layer(tiny.batch_pool(EXPERTS))
    mates = rows_for(3)
    alone, _ = layer(mates, PLANS[name])
    bad = torch.full((1, TOKENS, WIDTH), value, dtype=mates.dtype)
    for place in range(4):
        batch = torch.cat([mates[:place], bad, mates[place:]])
        output, _ = layer(batch, PLANS[name])
        torch.testing.assert_close(
            torch.cat([output[:place], output[place + 1 :]]), alone, rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("name", ["train", "static"])
def test_by_rank_the_room_of_a_poisoned_row_goes_to_the_best_of_the_others(name: str) -> None:
    layer = tiny.layer(tiny.batch_pool(EXPERTS))
    x, row = rows_for(), 5
    sound = layer.router.affinity(x).flatten(0, 1)
    keep = ROWS // EXPERTS
    x.view(ROWS, WIDTH)[row] = torch.nan
    _, routing = layer(x, PLANS[name])
    for expert in range(EXPERTS):
        order = [r for r in sound[:, expert].argsort(descending=True).tolist() if r != row]
        taken = routing.token[routing.expert == expert].tolist()
        assert taken == sorted(order[:keep])


@pytest.mark.parametrize("value", POISONS)
@pytest.mark.parametrize("name", ["train", "token", "pool", "capped token"])
def test_a_predictor_that_overflows_takes_nothing_for_its_row(name: str, value: float) -> None:
    """Its certainty would be 1, although the router's scores are sound."""
    layer, x, row = tiny.layer(tiny.batch_pool(EXPERTS)), rows_for(), 5
    plan = replace(PLANS[name], max_capacity=PLANS[name].max_capacity and 3.0)
    before = layer.router.route(x, plan)
    layer.router.predictor.register_forward_hook(
        lambda *call: (
            call[-1]
            .flatten(0, 1)
            .index_fill(0, torch.tensor([row]), value)
            .view_as(x[..., :EXPERTS])
        )
    )
    after = layer.router.route(x, plan)
    assert pairs_of(after) == others(after, row)
    if name in ("token", "capped token"):
        assert pairs_of(after) == others(before, row)
    if name == "train":
        rest = [other for other in range(ROWS) if other != row]
        wanted = before.demand[rest].sigmoid().sort(dim=0, descending=True).values
        torch.testing.assert_close(after.quantile[0], wanted[ROWS // EXPERTS - 1])
    if name == "pool":
        wanted = before.wanted.clone()
        wanted[row] = False
        assert after.count.tolist() == wanted.sum(dim=0).tolist()


@pytest.mark.parametrize("part", ["affinity", "demand"])
@pytest.mark.parametrize("value", POISONS)
def test_one_score_that_is_no_number_is_enough(part: str, value: float) -> None:
    """A predictor may overflow where the router does not."""
    affinity, demand = torch.rand(1, 6, 2) + 1, torch.rand(1, 6, 2)
    (affinity if part == "affinity" else demand)[0, 2, 1] = value
    record = Routing(
        token=torch.tensor([2, 3]),
        gate=torch.tensor([0.5, 0.25]),
        count=torch.tensor([1, 1]),
        affinity=affinity[0],
        demand=demand[0],
        pool=torch.zeros(6, dtype=torch.long),
        quantile=None,
    )
    assert record.poisoned.tolist() == [False, False, True, False, False, False]
    assert smallest_gate(record, 1).tolist() == [[torch.inf, 0.25]]
    token, gate = top_pairs(affinity, ((0,),), 2.0, record.poisoned[None])
    assert token.shape == (2, 6) and gate[:, 2].tolist() == [0, 0] and gate.isfinite().all()
    fewer, _ = top_pairs(affinity, ((0,),), 5 / 3, record.poisoned[None])
    assert fewer.tolist() == [[0, 1, 3, 4, 5]] * 2


@pytest.mark.parametrize("value", [*POISONS, -torch.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_selection_ranks_it_last(value: float, dtype: torch.dtype) -> None:
    values = torch.arange(8.0, dtype=dtype).view(1, 8, 1)
    values[0, [1, 6]] = value
    every = torch.ones(1, 8, 1, dtype=torch.bool)
    assert kth_largest(values, ((0,),), 0.25).item() == 5
    assert kth_largest(values, ((0,),), 1.0).item() == 0, "of fewer than K the smallest"
    assert kth_largest(values * torch.nan, ((0,),), 1.0).item() == torch.inf
    wanted = every & (torch.arange(8) < 3).view(1, 8, 1)
    assert top_mask(values, wanted, ((0,),)).flatten().nonzero().flatten().tolist() == [4, 5, 7]
    affinity = values.nan_to_num(0, 0, 0)
    token, *_ = padded_pairs(every, values, affinity, 3 / 8)
    assert sorted(token.tolist()) == [4, 5, 7]


# --- what training makes of them ----------------------------------------------------------------


def updated(layer: MixtureOfExperts, x: Tensor, pools: tuple[int, ...]) -> dict[str, Tensor]:
    plan = replace(PLANS["train"], pool_of_image=pools)
    statistics = layer.router.statistics(layer.router.route(x, plan))
    layer.router.update(statistics)
    return statistics


@pytest.mark.parametrize("pools", [(0, 0, 0, 0), (0, 0, 1, 1), (1, 0, 1, 0), (0, 1, 1, 1)])
@pytest.mark.parametrize("value", POISONS)
def test_thresholds_stay_numbers_whatever_one_row_is(pools, value: float) -> None:
    layer = tiny.layer(tiny.batch_pool(EXPERTS))
    layer.router.threshold_updates.zero_()
    updated(layer, poisoned(value, 3), pools)
    for tracked in (layer.router.threshold, layer.router.gate_threshold):
        assert ((tracked > 0) & (tracked < 1)).all()
    layer.router.check(PLANS["token"])


def test_they_are_the_quantiles_of_the_sound_rows() -> None:
    """More room than sound rows: the smallest sound one."""
    layer = tiny.layer(tiny.batch_pool(EXPERTS, 2.0))
    layer.router.threshold_updates.zero_()
    x = rows_for()
    x[1:] = torch.nan  # K is 10, and 4 rows are sound
    routing = layer.router.route(x[:1], PLANS["train"])
    statistics = updated(layer, x, (0, 0, 0, 0))
    lowest = routing.demand.sigmoid().amin(dim=0)
    torch.testing.assert_close(layer.router.threshold.double(), lowest.detach(), rtol=1e-6, atol=0)
    wanted = routing.affinity.detach().amin(dim=0)
    torch.testing.assert_close(layer.router.gate_threshold.double(), wanted, rtol=1e-6, atol=0)
    assert statistics["poisoned"].item() == 12


def test_a_pool_without_a_sound_row_does_not_count() -> None:
    one, two = (tiny.layer(tiny.batch_pool(EXPERTS)) for _ in range(2))
    x = rows_for()
    x[2:] = torch.nan
    found, wanted = updated(one, x, (0, 0, 1, 1)), updated(two, x[:2], (0, 0))
    assert found["pools"].item() == wanted["pools"].item() == 1
    assert torch.equal(one.router.threshold, two.router.threshold)
    assert torch.equal(one.router.gate_threshold, two.router.gate_threshold)
    before = one.router.threshold.clone()
    updated(one, x * torch.nan, (0, 0, 1, 1))
    assert torch.equal(one.router.threshold, before)


@pytest.mark.parametrize("router", tiny.ROUTED.values(), ids=tiny.ROUTED.keys())
def test_poisoned_rows_are_counted_and_reported(router: RouterOptions) -> None:
    layer = tiny.layer(router)
    x = rows_for()
    x[1, 2], x[3, 0] = torch.nan, torch.inf
    statistics = layer.router.statistics(layer.router.route(x, PLANS["train"]))
    both = {name: 2 * value for name, value in statistics.items()}
    assert statistics["poisoned"].item() == 2
    assert layer.router.summary(both)["poisoned_rows"].item() == 4
