"""Every router and every selection against the loops of `oracle`: values and gradients."""

from dataclasses import fields, replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import oracle
import tiny
from diffmoe.config import BatchPool, ExpertChoice, RouterOptions, TokenChoice
from diffmoe.errors import ConfigError
from diffmoe.model import (
    Experts,
    MixtureOfExperts,
    Routing,
    RoutingPlan,
    capacity_of_images,
    experts,
)
from diffmoe.model.experts import grouped_linear
from diffmoe.model.selection import _largest

TOKENS, WIDTH = 4, 8
EXACT = {"rtol": 1e-10, "atol": 1e-10}

POOLS = {
    "one": None,
    "consecutive": (0, 0, 1, 1),
    "interleaved": (0, 1, 0, 1),
    "from_three": (3, 1, 3, 1),
    "last_is_first": (0, 1, 1, 0),
    "unequal": (0, 1, 0, 0, 1, 0),
}


def constant(experts: int, gamma: float) -> Tensor:
    return torch.full((1, experts), gamma)


def plan(selection: str, policy: str | None = None, **options) -> RoutingPlan:
    return RoutingPlan(selection=selection, policy=policy, **options)


def inference_plans(experts: int) -> list[RoutingPlan]:
    fixed = {"policy": "constant", "thresholds": constant(experts, 0.5)}
    return [
        plan("token", "ema"),
        plan("pool", "ema"),
        plan("gate", "ema"),
        plan("pool", "static"),
        plan("image"),
        *(plan(selection, **fixed) for selection in ("token", "pool", "gate")),
    ]


def rows_for(images: int, ties: bool = False) -> Tensor:
    """Rows; with ties, few distinct ones, of values whose products and sums are exact."""
    x = tiny.normals(images, TOKENS, WIDTH, seed=7)
    if ties:
        distinct = (x.flatten(0, 1)[:3] * 2).round() / 2
        x = distinct[torch.arange(images * TOKENS) % 3].view_as(x)
    return x.requires_grad_()


def layer_for(router: RouterOptions, ties: bool = False) -> MixtureOfExperts:
    made = tiny.layer(router)
    if ties:
        made.router.weight.data.mul_(4).round_().div_(4)
    return made


def expected_taken(
    layer: MixtureOfExperts, weights: oracle.Weights, rows: Tensor, plan: RoutingPlan
) -> oracle.Taken:
    """Who takes what, by the equations."""
    options, images = layer.router.options, rows.shape[0] // TOKENS
    scores, one_each = oracle.affinity(weights, rows), list(range(images))
    alone = oracle.rows_of_pools(one_each, TOKENS)
    if isinstance(options, TokenChoice):
        return oracle.token_choice(scores, options.top_k)
    experts, capacity = options.num_experts, options.capacity
    if isinstance(options, ExpertChoice) or plan.selection == "image":
        return oracle.top_of_pools(scores, alone, experts, capacity)
    pools = oracle.rows_of_pools(list(plan.pool_of_image or [0] * images), TOKENS)
    if plan.selection == "train" or plan.policy == "static":
        return oracle.top_of_pools(scores, pools, experts, capacity)
    own = layer.router.gate_threshold if plan.selection == "gate" else layer.router.threshold
    thresholds = own if plan.thresholds is None else plan.thresholds[0]
    if plan.selection == "gate":
        return oracle.above(scores, thresholds)
    demands = oracle.demand(weights, rows)
    if plan.selection == "token":
        return oracle.above(oracle.sigmoid(demands), thresholds)
    return oracle.best_of_demand(scores, demands, thresholds, pools)


def expected_losses(
    layer: MixtureOfExperts,
    weights: oracle.Weights,
    rows: Tensor,
    plan: RoutingPlan,
    taken: oracle.Taken,
) -> dict[str, Tensor]:
    images = rows.shape[0] // TOKENS
    if isinstance(layer.router.options, TokenChoice):
        pools = oracle.rows_of_pools(list(plan.pool_of_image or [0] * images), TOKENS)
        return {"balance": oracle.balance_loss(oracle.affinity(weights, rows), taken, pools)}
    if isinstance(layer.router.options, BatchPool) and plan.selection == "train":
        return {"predictor": oracle.predictor_loss(oracle.demand(weights, rows), taken)}
    return {}


def assert_record(routing: Routing, taken: oracle.Taken, x: Tensor, pools: list[list[int]]) -> None:
    """The record names exactly the pairs taken, sorted by expert, with the affinity as gate."""
    rows = x.shape[0] * TOKENS
    assert routing.rows == rows and routing.affinity.shape == (rows, len(taken))
    assert routing.count.tolist() == [len(chosen) for chosen in taken]
    valid = routing.valid
    assert int(valid.sum()) == sum(map(len, taken))
    expert = routing.expert[valid].tolist()
    assert all(a <= b for a, b in pairwise(expert))
    pairs = sorted(zip(expert, routing.token[valid].tolist(), strict=True))
    assert pairs == sorted((e, row) for e, chosen in enumerate(taken) for row in chosen)
    gates = routing.affinity[routing.token[valid], routing.expert[valid]]
    torch.testing.assert_close(routing.gate[valid], gates, **EXACT)
    if routing.rows_per_expert is not None:
        assert routing.count.tolist() == [routing.rows_per_expert] * len(taken)
        assert bool(valid.all())
    for name, members in enumerate(pools):
        assert routing.pool[members].tolist() == [name] * len(members)
    capacity = capacity_of_images(routing, TOKENS)
    own = [sum(row // TOKENS == i for c in taken for row in c) for i in range(x.shape[0])]
    assert (capacity * TOKENS).round().long().tolist() == own


def assert_same(layer: MixtureOfExperts, x: Tensor, plan: RoutingPlan) -> oracle.Taken:
    """Output, record, losses and all gradients of one layer equal the oracle's."""
    weights, rows = oracle.weights_of(layer), x.detach().flatten(0, 1).requires_grad_()
    taken = expected_taken(layer, weights, rows, plan)
    wanted = oracle.mixture(weights, rows, taken)
    losses = expected_losses(layer, weights, rows, plan, taken)
    direction = tiny.normals(*wanted.shape, seed=3)

    output, routing = layer(x, plan)
    torch.testing.assert_close(output.flatten(0, 1), wanted, **EXACT)
    alone = plan.selection == "image" or isinstance(layer.router.options, ExpertChoice)
    images = range(x.shape[0])
    names = list(images) if alone else list(plan.pool_of_image or [0] * len(images))
    assert_record(routing, taken, x, oracle.rows_of_pools(names, TOKENS))
    found = layer.router.losses(routing) if losses else {}
    assert found.keys() == losses.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(found[name], loss, **EXACT)

    ((wanted * direction).sum() + 3 * sum(losses.values())).backward()
    layer.zero_grad()
    x.grad = None
    ((output.flatten(0, 1) * direction).sum() + 3 * sum(found.values())).backward()
    torch.testing.assert_close(x.grad.flatten(0, 1), rows.grad, **EXACT)
    for name, parameter in layer.named_parameters():
        mine, theirs = parameter.grad, weights[name].grad
        zero = torch.zeros_like(parameter)
        mine, theirs = (zero if g is None else g for g in (mine, theirs))
        torch.testing.assert_close(mine, theirs, **EXACT, msg=lambda m, n=name: f"{n}: {m}")
    return taken


@pytest.mark.parametrize("pools", POOLS.values(), ids=POOLS.keys())
@pytest.mark.parametrize("capacity", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("experts", [3, 4])
def test_batch_pool_training(experts: int, capacity: float, pools) -> None:
    layer, x = layer_for(tiny.batch_pool(experts, capacity)), rows_for(len(pools or range(4)))
    taken = assert_same(layer, x, plan("train", pool_of_image=pools))
    assert len({len(chosen) for chosen in taken}) == 1


@pytest.mark.parametrize("pools", POOLS.values(), ids=POOLS.keys())
@pytest.mark.parametrize("number", range(8))
def test_batch_pool_inference(number: int, pools) -> None:
    layer, x = layer_for(tiny.batch_pool(3)), rows_for(len(pools or range(4)))
    chosen = replace(inference_plans(3)[number], pool_of_image=pools)
    taken = assert_same(layer, x, chosen)
    assert 0 < sum(map(len, taken)) < 3 * x.shape[0] * TOKENS


@pytest.mark.parametrize("pools", [(0,), (0, 1, 1), (0, 1, 1, 2, 2, 2), (2, 1, 2, 0, 2)])
@pytest.mark.parametrize("policy", ["ema", "static"])
def test_pools_of_unequal_size(policy: str, pools) -> None:
    x = rows_for(len(pools))
    assert_same(layer_for(tiny.batch_pool(3)), x, plan("pool", policy, pool_of_image=pools))


@pytest.mark.parametrize("capacity", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("selection", [plan("train"), plan("token", "ema"), plan("image")])
def test_expert_choice_is_per_image_whatever_the_plan(selection, capacity: float) -> None:
    layer, x = layer_for(tiny.expert_choice(2, capacity)), rows_for(3)
    taken = assert_same(layer, x, selection)
    for image in range(3):
        for chosen in taken:
            assert sum(row // TOKENS == image for row in chosen) == int(TOKENS * capacity / 2)


@pytest.mark.parametrize("pools", POOLS.values(), ids=POOLS.keys())
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_token_choice(top_k: int, pools) -> None:
    layer, x = layer_for(tiny.token_choice(4, top_k)), rows_for(len(pools or range(4)))
    taken = assert_same(layer, x, plan("train", pool_of_image=pools))
    assert sum(map(len, taken)) == top_k * x.shape[0] * TOKENS


def test_a_token_takes_the_first_of_equal_experts() -> None:
    layer, x = layer_for(tiny.token_choice(4, 2), ties=True), rows_for(3)
    layer.router.weight.data[1:] = layer.router.weight.data[1]
    assert_same(layer, x, tiny.TRAIN)
    layer.router.weight.data.zero_()
    taken = assert_same(layer, x, tiny.TRAIN)
    assert [len(chosen) for chosen in taken] == [12, 12, 0, 0]


@pytest.mark.parametrize("pools", POOLS.values(), ids=POOLS.keys())
@pytest.mark.parametrize("selection", [plan("train"), plan("pool", "static"), plan("pool", "ema")])
def test_ties_go_to_the_lower_row(selection: RoutingPlan, pools) -> None:
    layer, x = layer_for(tiny.batch_pool(3), ties=True), rows_for(len(pools or range(4)), ties=True)
    affinity = layer.router.affinity(x).flatten(0, 1)
    assert len(affinity.unique(dim=0)) == 3, "the rows are no ties"
    assert_same(layer, x, replace(selection, pool_of_image=pools))


def test_rows_that_are_all_equal_are_taken_in_order() -> None:
    layer, x = layer_for(tiny.batch_pool(4)), torch.ones(4, TOKENS, WIDTH, dtype=torch.float64)
    layer.router.weight.data.zero_()
    _, routing = layer(x, tiny.TRAIN)
    assert routing.token.view(4, -1).tolist() == [[0, 1, 2, 3]] * 4


def test_an_expert_nobody_chose_learns_nothing_and_stays_in_the_graph() -> None:
    layer, x = layer_for(tiny.batch_pool(3)), rows_for(4)
    thresholds = torch.tensor([[0.5, 1.0 - 1e-7, 0.5]])
    taken = assert_same(layer, x, plan("token", "constant", thresholds=thresholds))
    assert not taken[1] and taken[0] and taken[2]
    assert layer.experts.weight1.grad[1].abs().max() == 0

    layer = layer_for(tiny.token_choice(3))
    layer.router.weight.data[2] = -layer.router.weight.data[:2].sum(0) * 5
    x = (rows_for(4).detach().abs() * layer.router.weight.data[2].sign().neg()).requires_grad_()
    taken = assert_same(layer, x, tiny.TRAIN)
    assert not taken[2]


@pytest.mark.parametrize("selection", ["token", "pool", "gate"])
def test_threshold_zero_takes_every_row_with_every_expert(selection: str) -> None:
    layer, x = layer_for(tiny.batch_pool(3)), rows_for(4)
    taken = assert_same(layer, x, plan(selection, "constant", thresholds=constant(3, 0.0)))
    assert [len(chosen) for chosen in taken] == [16, 16, 16]


@pytest.mark.parametrize("selection", ["token", "pool", "gate"])
def test_no_row_at_all_gives_zeros_and_zero_gradients(selection: str) -> None:
    layer, x = layer_for(tiny.batch_pool(3)), rows_for(4)
    taken = assert_same(layer, x, plan(selection, "constant", thresholds=constant(3, 1 - 1e-7)))
    assert taken == [[], [], []]
    assert layer.experts.weight1.grad.abs().max() == 0 and x.grad.abs().max() == 0


@pytest.mark.parametrize("capacity", [0.57, 0.29, 0.07, 1.14])
def test_the_capacity_is_the_number_it_is_written_as(capacity: float) -> None:
    layer = tiny.layer(tiny.batch_pool(2, capacity), pool_images=50)
    x = tiny.normals(50, TOKENS, WIDTH)
    _, routing = layer(x, plan("pool", "static"))
    assert routing.count.tolist() == [oracle.rows_each(200, 2, capacity)] * 2


def test_a_pool_smaller_than_the_number_of_experts_is_refused() -> None:
    layer, x = layer_for(tiny.batch_pool(6)), rows_for(1)
    for selection in (tiny.TRAIN, plan("pool", "static"), plan("image")):
        with pytest.raises(
            ConfigError, match=r"pool of 4 rows is too small for 6 experts.*K would"
        ):
            layer(x, selection)
    layer(x, plan("token", "ema"))


def test_a_plan_for_another_batch_is_refused() -> None:
    layer = layer_for(tiny.batch_pool(3))
    with pytest.raises(ConfigError, match="pools of 2 images, the batch has 4"):
        layer(rows_for(4), plan("train", pool_of_image=(0, 1)))


@pytest.mark.parametrize(
    ("selection", "policy"),
    [("token", "static"), ("token", None), ("gate", "static"), ("image", "ema"), ("train", "ema")],
)
def test_pairs_of_selection_and_policy_without_meaning_are_refused(selection, policy) -> None:
    with pytest.raises(ConfigError, match=f"policy {policy} does not go with .*{selection}"):
        plan(selection, policy)


@pytest.mark.parametrize("policy", ["constant", "target"])
def test_a_policy_that_lacks_its_thresholds_is_refused(policy: str) -> None:
    with pytest.raises(ConfigError, match=f"policy {policy} needs thresholds"):
        plan("token", policy)


def test_target_thresholds_are_used_as_given() -> None:
    layer, x = layer_for(tiny.batch_pool(3)), rows_for(4)
    thresholds = torch.tensor([[0.2, 0.5, 0.7]])
    assert_same(layer, x, plan("token", "target", thresholds=thresholds))
    assert_same(layer, x, plan("gate", "target", thresholds=thresholds))


def test_each_layer_reads_its_own_row_of_the_thresholds() -> None:
    options = tiny.batch_pool(3)
    layer = tiny.layer(options)
    layer.router.layer = 1
    thresholds = torch.tensor([[0.0] * 3, [1.0 - 1e-7] * 3])
    _, routing = layer(rows_for(4), plan("token", "constant", thresholds=thresholds))
    assert routing.count.tolist() == [0, 0, 0]


def test_demand_and_quantile_are_those_of_the_equations() -> None:
    layer, x = layer_for(tiny.batch_pool(3)), rows_for(5)
    weights, rows = oracle.weights_of(layer), x.detach().flatten(0, 1)
    demands = oracle.demand(weights, rows)
    table = torch.stack([torch.stack(row) for row in demands])
    for pools in [(0, 1, 1, 0, 0), (0, 0, 0, 0, 0), (1, 0, 0, 0, 0)]:
        _, routing = layer(x, plan("train", pool_of_image=pools))
        torch.testing.assert_close(routing.demand, table, **EXACT)
        members = oracle.rows_of_pools(list(pools), TOKENS)
        wanted = oracle.kth_largest(oracle.sigmoid(demands), members, 1.0)
        torch.testing.assert_close(routing.quantile, wanted, **EXACT)
        names = [next(n for n, pool in enumerate(members) if row in pool) for row in range(20)]
        assert routing.pool.tolist() == names


# --- records made by hand -----------------------------------------------------------------------


def padded(routing: Routing, extra: int) -> Routing:
    """The same record with padding: token 0, gate 0."""
    return replace(
        routing,
        token=torch.cat([routing.token, routing.token.new_zeros(extra)]),
        gate=torch.cat([routing.gate, routing.gate.new_zeros(extra)]),
        rows_per_expert=None,
        sizes=None,
    )


def gradients(layer: MixtureOfExperts, x: Tensor, output: Tensor) -> list[Tensor]:
    direction = tiny.normals(*output.shape, seed=5)
    wanted = [x, *layer.experts.parameters(), layer.router.weight]
    return list(torch.autograd.grad((output * direction).sum(), wanted))


@pytest.mark.parametrize("extra", [0, 1, 9])
@pytest.mark.parametrize("selection", [tiny.TRAIN, plan("token", "ema")])
def test_padding_changes_nothing(selection: RoutingPlan, extra: int) -> None:
    layer, x = layer_for(tiny.batch_pool(3)), rows_for(4)
    rows = x.flatten(0, 1)
    output, routing = layer(x, selection)
    record = padded(routing, extra)
    again = layer.experts(rows, record)
    torch.testing.assert_close(again, output.flatten(0, 1), **EXACT)
    pairs = zip(
        gradients(layer, x, again.view_as(x)),
        gradients(layer, x, layer(x, selection)[0]),
        strict=True,
    )
    for mine, wanted in pairs:
        torch.testing.assert_close(mine, wanted, **EXACT)
    capacities = (capacity_of_images(r, TOKENS) for r in (routing, record))
    assert torch.equal(*capacities)


def test_padding_changes_neither_loss_nor_statistics() -> None:
    """Row 0 belongs to the last expert, where the padding points too."""
    layer, x = layer_for(tiny.batch_pool(3)), rows_for(4)
    x.data[0, 0] = 10 * layer.router.weight.data[2]
    _, routing = layer(x, tiny.TRAIN)
    assert 0 in routing.token[routing.expert == 2]
    record = padded(routing, 5)
    assert torch.equal(*(layer.router.losses(r)["predictor"] for r in (routing, record)))
    before, after = (layer.router.statistics(r) for r in (routing, record))
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


def test_padding_keeps_a_poisoned_row_zero_from_everybody_else() -> None:
    layer, x = layer_for(tiny.batch_pool(3)), rows_for(4).detach()
    x[0, 0] = torch.nan
    selection = plan("token", "ema")
    output, routing = layer(x, selection)
    assert 0 not in routing.token
    assert torch.equal(
        layer.experts(x.flatten(0, 1), padded(routing, 3))[1:], output.flatten(0, 1)[1:]
    )


def test_the_record_is_frozen_and_has_the_documented_fields() -> None:
    names = [entry.name for entry in fields(Routing)]
    assert names[:7] == ["token", "gate", "count", "affinity", "demand", "pool", "quantile"]
    with pytest.raises(AttributeError):
        layer_for(tiny.batch_pool(3))(rows_for(4), tiny.TRAIN)[1].gate = None


# --- dispatch of dynamic counts -----------------------------------------------------------------

LOOSE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


def hand_made(counts: list[int], rows: int, padding: int, dtype: torch.dtype) -> Routing:
    """A record with the counts given, random rows and gates."""
    number, experts = sum(counts), len(counts)
    generator = torch.Generator().manual_seed(2)
    token = torch.randint(rows, (number,), generator=generator)
    gate = torch.rand(number, generator=generator, dtype=torch.float64).to(dtype)
    record = Routing(
        token=token,
        gate=gate.requires_grad_(),
        count=torch.tensor(counts),
        affinity=torch.full((rows, experts), 1 / experts),
        demand=None,
        pool=torch.zeros(rows, dtype=torch.long),
        quantile=None,
    )
    return padded(record, padding) if padding else replace(record, sizes=tuple(counts))


def dispatched(width: int, record: Routing, dtype: torch.dtype, autocast: bool) -> list[Tensor]:
    """Output and gradients of experts of this width, in float64 whatever they ran in."""
    stack = Experts(record.count.shape[0], width, 2 * width)
    tiny.stir(stack)
    x = tiny.normals(record.rows, width).to(torch.float32 if autocast else dtype).requires_grad_()
    stack = stack.to(x.dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        output = stack(x, record)
    assert output.dtype == x.dtype
    wanted = [x, record.gate, *stack.parameters()]
    grads = torch.autograd.grad(output.double().square().sum(), wanted)
    return [tensor.double() for tensor in (output, *grads)]


@pytest.mark.parametrize("counts", [[3, 9, 1, 4], [0, 17, 0, 0], [5, 0, 0, 12], [0, 0, 0, 0]])
@pytest.mark.parametrize("padding", [0, 4])
@pytest.mark.parametrize("autocast", [False, True], ids=["dtype", "autocast"])
@pytest.mark.parametrize("dtype", LOOSE.keys(), ids=str)
@pytest.mark.parametrize("width", [16, 12], ids=["aligned", "unaligned"])
def test_dynamic_counts_in_low_precision(width, dtype, autocast, padding, counts) -> None:
    record = hand_made(counts, 10, padding, torch.float32)
    exact = dispatched(width, hand_made(counts, 10, padding, torch.float64), torch.float64, False)
    tolerance = LOOSE[torch.bfloat16 if autocast else dtype]
    for mine, wanted in zip(dispatched(width, record, dtype, autocast), exact, strict=True):
        assert bool(mine.isfinite().all())
        atol = tolerance * wanted.norm().item()
        torch.testing.assert_close(mine, wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("counts", [[3, 9, 1, 4], [0, 17, 0, 0], [5, 0, 0, 12]])
@pytest.mark.parametrize("padding", [0, 4])
@pytest.mark.parametrize("dtype", LOOSE.keys(), ids=str)
def test_the_grouped_kernel_agrees_with_the_loop(monkeypatch, dtype, padding, counts) -> None:
    """Accelerators use torch's grouped product; its CPU form stands in for it here."""
    record = hand_made(counts, 10, padding, torch.float32)
    loop = dispatched(16, record, dtype, False)
    monkeypatch.setattr(experts, "_grouped_mm_serves", lambda *_: True)
    for mine, wanted in zip(dispatched(16, record, dtype, False), loop, strict=True):
        atol = LOOSE[dtype] * wanted.norm().item()
        torch.testing.assert_close(mine, wanted, rtol=0, atol=atol)


def test_rows_after_the_last_group_give_zeros(monkeypatch) -> None:
    rows, weight, ends = torch.ones(7, 16), torch.ones(2, 16, 16), torch.tensor([2, 5])
    bias = torch.ones(2, 16)
    loop = grouped_linear(rows, weight, bias, ends)
    monkeypatch.setattr(experts, "_grouped_mm_serves", lambda *_: True)
    for product in (loop, grouped_linear(rows, weight, bias, ends)):
        assert product[:5].eq(17).all() and not product[5:].any()


def grouped_inputs(number: int, biased: bool) -> tuple[Tensor | None, ...]:
    rows = tiny.normals(number, 3).requires_grad_()
    weight = tiny.normals(2, 3, 4).requires_grad_()
    bias = tiny.normals(2, 4, seed=1).requires_grad_() if biased else None
    return rows, weight, bias, torch.tensor([number // 2, number])


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("number", [0, 5, 40])
def test_the_grouped_linear_passes_gradcheck(number: int, biased: bool) -> None:
    for sizes in (None, [number // 2, number - number // 2]):
        assert torch.autograd.gradcheck(
            lambda *inputs, sizes=sizes: grouped_linear(*inputs, sizes),
            grouped_inputs(number, biased),
        )


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("number", [0, 5])
def test_the_grouped_linear_is_a_sound_operator(number: int, biased: bool) -> None:
    """Its schema, its shapes on fake tensors and its gradient formula agree."""
    torch.library.opcheck(grouped_linear, grouped_inputs(number, biased))


# --- a cap on what an image may take -----------------------------------------------------------


def capped(selection: str, capacity: float | None) -> RoutingPlan:
    return RoutingPlan(selection=selection, policy="ema", max_capacity=capacity)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("selection", ["token", "gate"])
@pytest.mark.parametrize("capacity", [0.25, 0.5, 1.0, 2.0, 3.0])
def test_a_cap_drops_the_lowest_demand_of_an_image(selection: str, capacity: float, dtype) -> None:
    layer, x = layer_for(tiny.batch_pool(3)).to(dtype), rows_for(5).detach().to(dtype)
    free = layer(x, capped(selection, None))[1]
    routing = layer(x, capped(selection, capacity))[1]
    room = int(TOKENS * capacity)
    score = free.affinity if free.demand is None else free.demand
    taken = {(int(t), int(e)) for t, e in zip(free.token, free.expert, strict=True)}
    kept, lost = set(), []
    for image in range(5):
        own = [pair for pair in taken if pair[0] // TOKENS == image]
        best = sorted(own, key=lambda p: (-score[p].item(), p))
        kept |= set(best[:room])
        lost.append(max(0, len(own) - room))
    valid = routing.valid
    pairs = zip(routing.token[valid], routing.expert[valid], strict=True)
    assert {(int(t), int(e)) for t, e in pairs} == kept
    assert routing.dropped.tolist() == lost and sum(lost) == len(taken) - len(kept)
    assert len(routing.token) == 5 * room and not routing.gate[~valid].any()
    assert int(routing.count.sum()) == len(kept)


@pytest.mark.parametrize("selection", ["token", "gate"])
def test_a_wide_cap_changes_nothing(selection: str) -> None:
    layer, x = layer_for(tiny.batch_pool(3)), rows_for(5)
    output, _ = layer(x, capped(selection, None))
    again, routing = layer(x, capped(selection, 3.0))
    assert torch.equal(again, output) and not routing.dropped.any()
    pairs = zip(gradients(layer, x, again), gradients(layer, x, output), strict=True)
    for mine, wanted in pairs:
        torch.testing.assert_close(mine, wanted, **EXACT)


@pytest.mark.parametrize("selection", ["token", "gate"])
def test_under_a_cap_an_image_is_still_its_own(selection: str) -> None:
    layer, x = layer_for(tiny.batch_pool(3)), rows_for(5).detach()
    together, _ = layer(x, capped(selection, 0.75))
    for image in range(5):
        alone, _ = layer(x[image : image + 1], capped(selection, 0.75))
        torch.testing.assert_close(alone[0], together[image], **EXACT)


@pytest.mark.parametrize("image", [0, 1, 4])
@pytest.mark.parametrize("selection", ["token", "gate"])
def test_under_a_cap_a_poisoned_image_harms_itself_alone(selection: str, image: int) -> None:
    layer, x = layer_for(tiny.batch_pool(3)), rows_for(5).detach()
    x[image] = torch.nan
    output, routing = layer(x, capped(selection, 2.0))
    others = [other for other in range(5) if other != image]
    assert output[others].isfinite().all() and routing.gate[~routing.valid].eq(0).all()


def test_a_cap_without_meaning_is_refused() -> None:
    with pytest.raises(ConfigError, match="no meaning in selection pool"):
        RoutingPlan(selection="pool", policy="ema", max_capacity=1.0)
    with pytest.raises(ConfigError, match="not positive"):
        capped("token", 0.0)
    with pytest.raises(ConfigError, match=r"leaves an image of 4 tokens no pair.*0\.25 or more"):
        layer_for(tiny.batch_pool(3))(rows_for(2), capped("token", 0.2))


# --- selection of the largest ------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-42], ids=["usual", "huge", "denormal"])
@pytest.mark.parametrize("levels", [1, 2, 5, 1000])
def test_the_fast_selection_is_the_stable_sort(levels: int, scale: float) -> None:
    """With ties, zeros of both signs, and negative numbers."""
    generator = torch.Generator().manual_seed(levels)
    drawn = torch.randint(-levels, levels + 1, (3, 4, 50), generator=generator)
    values = drawn.to(torch.float32) * scale
    values[..., ::7] *= -1.0  # -0.0 among them
    for keep in (1, 7, 25, 50):
        order = values.sort(dim=-1, descending=True, stable=True).indices
        assert torch.equal(_largest(values, keep), order[..., :keep].sort(dim=-1).values)
        assert torch.equal(_largest(values.double(), keep), _largest(values, keep))


@pytest.mark.parametrize("poison", [torch.nan, -torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_comes_last(poison: float) -> None:
    """A topk would rank NaN first. Of several the lower row comes before the others."""
    values = torch.arange(6.0)
    values[[2, 4]] = poison
    for dtype in (torch.float32, torch.float64):
        assert _largest(values.to(dtype)[None, None], 2).tolist() == [[[3, 5]]]
        assert _largest(values.to(dtype)[None, None], 5).tolist() == [[[0, 1, 2, 3, 5]]]
