"""The capacity predictor learns by itself; thresholds follow the quantiles and nothing else."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import oracle
import tiny
from diffmoe.errors import ConfigError
from diffmoe.model import DiT, MixtureOfExperts, Routing, RoutingPlan, build_model

TOKENS, WIDTH, EXPERTS, DECAY = 4, 8, 3, 0.95
BUFFERS = ("threshold", "gate_threshold", "threshold_decay")


def state(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def assert_same_state(model: torch.nn.Module, before: dict[str, Tensor]) -> None:
    for name, buffer in model.named_buffers():
        assert buffer.dtype == before[name].dtype and torch.equal(buffer, before[name]), name


# --- the predictor's gradient -------------------------------------------------------------------


def test_the_predictor_loss_reaches_nothing_but_the_predictor() -> None:
    model = tiny.model(tiny.batch_pool(4), depth=4)
    x, t, labels = tiny.batch(4)
    x.requires_grad_()
    routing = model(x, t, labels, tiny.TRAIN).routing
    layers = model.moe_layers
    sum(m.router.losses(r)["predictor"] for m, r in zip(layers, routing, strict=True)).backward()
    assert len(layers) == 2 and x.grad is None
    for name, parameter in model.named_parameters():
        if ".predictor." in name:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None or not parameter.grad.any(), name


@pytest.mark.parametrize("selection", ["token", "pool"])
def test_nor_do_its_logits_in_inference(selection: str) -> None:
    layer, x = tiny.layer(tiny.batch_pool(EXPERTS)), tiny.normals(4, TOKENS, WIDTH).requires_grad_()
    _, routing = layer(x, RoutingPlan(selection=selection, policy="ema"))
    routing.demand.sum().backward()
    assert x.grad is None and layer.router.weight.grad is None
    assert layer.router.predictor.hidden.weight.grad.any()


def test_the_output_does_not_train_the_predictor() -> None:
    layer, x = tiny.layer(tiny.batch_pool(EXPERTS)), tiny.normals(4, TOKENS, WIDTH)
    layer(x, tiny.TRAIN)[0].sum().backward()
    assert all(parameter.grad is None for parameter in layer.router.predictor.parameters())


# --- the loop of Eq. 17 -------------------------------------------------------------------------


def run(
    layer: MixtureOfExperts, x: Tensor, pools: tuple[int, ...] | None
) -> tuple[Routing, dict[str, Tensor]]:
    with torch.no_grad():
        _, routing = layer(x, replace(tiny.TRAIN, pool_of_image=pools))
    return routing, layer.router.statistics(routing)


def quantiles(layer: MixtureOfExperts, x: Tensor, pools: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Those of the predictor and those of the affinity, by the equations."""
    weights, rows = oracle.weights_of(layer), x.flatten(0, 1)
    members = oracle.rows_of_pools(list(pools), TOKENS)
    demands = oracle.sigmoid(oracle.demand(weights, rows))
    scores = oracle.affinity(weights, rows)
    return tuple(oracle.kth_largest(table, members, 1.0) for table in (demands, scores))


@pytest.mark.parametrize("pools", [(0, 0, 0, 0), (0, 0, 1, 1), (1, 0, 1, 0), (0, 1, 1, 1)])
def test_thresholds_follow_the_loop(pools: tuple[int, ...]) -> None:
    layer = tiny.layer(tiny.batch_pool(EXPERTS))
    layer.router.initialize(torch.Generator().manual_seed(0))
    seen: list[tuple[Tensor, Tensor]] = []
    for step in range(5):
        tiny.stir(layer, seed=step)  # what an optimizer would do, only more so
        x = tiny.normals(4, TOKENS, WIDTH, seed=step)
        layer.router.update(run(layer, x, pools)[1])
        seen.append(quantiles(layer, x, pools))
        both = (layer.router.threshold, layer.router.gate_threshold)
        for tracked, history in zip(both, zip(*seen, strict=True), strict=True):
            wanted = oracle.tracked(list(history), DECAY)
            torch.testing.assert_close(tracked.double(), wanted, rtol=2e-6, atol=0)
        assert layer.router.threshold_updates.item() == step + 1


def test_the_first_quantile_initialises() -> None:
    layer, x = tiny.layer(tiny.batch_pool(EXPERTS)), tiny.normals(4, TOKENS, WIDTH)
    layer.router.initialize(torch.Generator().manual_seed(0))
    assert not layer.router.threshold.any()
    routing, statistics = run(layer, x, None)
    layer.router.update(statistics)
    torch.testing.assert_close(layer.router.threshold, routing.quantile[0].float())


def test_at_the_quantile_all_but_one_of_the_rows_taken_are_above() -> None:
    """Alg. 4 counts values strictly above, the K-th largest is not above itself."""
    layer, x = tiny.layer(tiny.batch_pool(EXPERTS)), tiny.normals(4, TOKENS, WIDTH)
    routing, _ = run(layer, x, None)
    for selection in ("token", "pool"):
        plan = RoutingPlan(selection=selection, policy="target", thresholds=routing.quantile)
        assert layer(x, plan)[1].count.tolist() == [int(16 / EXPERTS) - 1] * EXPERTS


# --- statistics ---------------------------------------------------------------------------------


def test_statistics_count_what_they_say() -> None:
    layer, x = tiny.layer(tiny.batch_pool(EXPERTS)), tiny.normals(4, TOKENS, WIDTH)
    routing, statistics = run(layer, x, (0, 0, 1, 1))
    above = routing.demand.sigmoid() > layer.router.threshold
    taken = torch.zeros(16, EXPERTS, dtype=torch.bool)
    for token, expert in zip(routing.token.tolist(), routing.expert.tolist(), strict=True):
        taken[token, expert] = True
    assert statistics["above"].tolist() == above.sum(0).tolist()
    assert statistics["right"].item() == (above == taken).sum().item()
    assert statistics["pairs"].tolist() == [4] * EXPERTS
    assert statistics["rows"].item() == 16 and statistics["pools"].item() == 2


@pytest.mark.parametrize("router", tiny.ROUTED.values(), ids=tiny.ROUTED.keys())
@pytest.mark.parametrize("micro", [1, 2, 4])
def test_statistics_of_micro_batches_add_up(router, micro: int) -> None:
    """One pool is one image here, so that every micro-batch holds whole pools."""
    layer, x = tiny.layer(router), tiny.normals(8, TOKENS, WIDTH)
    _, whole = run(layer, x, tuple(range(8)))
    parts = [run(layer, part, tuple(range(micro)))[1] for part in x.split(micro)]
    assert all(part.keys() == whole.keys() for part in parts)
    for name, value in whole.items():
        total = sum(part[name] for part in parts)
        assert total.shape == value.shape and total.dtype == value.dtype, name
        torch.testing.assert_close(total, value, rtol=1e-12, atol=0, msg=name)


def test_an_update_from_added_statistics_is_that_of_the_whole_batch() -> None:
    layer, x = tiny.layer(tiny.batch_pool(EXPERTS)), tiny.normals(8, TOKENS, WIDTH)
    other = copy.deepcopy(layer)
    layer.router.update(run(layer, x, (0, 0, 1, 1, 2, 2, 3, 3))[1])
    parts = [run(other, part, (0, 0))[1] for part in x.split(2)]
    other.router.update({name: sum(part[name] for part in parts) for name in parts[0]})
    torch.testing.assert_close(other.router.threshold, layer.router.threshold)
    torch.testing.assert_close(other.router.gate_threshold, layer.router.gate_threshold)


def test_the_summary_is_made_of_the_statistics() -> None:
    layer, x = tiny.layer(tiny.batch_pool(EXPERTS)), tiny.normals(4, TOKENS, WIDTH)
    routing, statistics = run(layer, x, None)
    layer.router.threshold[1] = 1  # nobody is above: dead
    _, statistics = run(layer, x, None)
    summary = layer.router.summary(statistics)
    above = (routing.demand.sigmoid() > layer.router.threshold).sum(0)
    assert summary["capacity"].item() == pytest.approx(above.sum().item() / 16)
    assert summary["dead_experts"].item() == pytest.approx((above == 0).sum().item() / EXPERTS)
    right = statistics["right"].item() / (16 * EXPERTS)
    assert summary["predictor_accuracy"].item() == pytest.approx(right)
    layer.router.threshold.fill_(1)
    assert layer.router.summary(run(layer, x, None)[1])["dead_experts"].item() == 1
    other = tiny.layer(tiny.token_choice(4, 2))
    assert other.router.summary(run(other, x, None)[1])["capacity"].item() == 2


def test_before_the_first_update_nothing_is_judged() -> None:
    """At thresholds that were never set every expert would seem to take every row."""
    layer, x = tiny.layer(tiny.batch_pool(EXPERTS)), tiny.normals(4, TOKENS, WIDTH)
    layer.router.threshold_updates.zero_()
    statistics = run(layer, x, None)[1]
    assert statistics["judged"].item() == 0 and not statistics["above"].any()
    summary = layer.router.summary(statistics)
    assert summary.pop("poisoned_rows").item() == 0
    assert all(value.isnan() for value in summary.values())
    layer.router.update(statistics)
    later = run(layer, x, None)[1]
    both = {name: value + later[name] for name, value in statistics.items()}
    one, two = layer.router.summary(later), layer.router.summary(both)
    assert all(torch.equal(value, two[name]) for name, value in one.items())


# --- thresholds that mean nothing are refused ---------------------------------------------------

EMA = {selection: RoutingPlan(selection=selection, policy="ema") for selection in ("token", "gate")}
FREE = [
    tiny.TRAIN,
    RoutingPlan(selection="image"),
    RoutingPlan(selection="pool", policy="static"),
    RoutingPlan(selection="token", policy="constant", thresholds=torch.full((1, EXPERTS), 0.5)),
]


@pytest.mark.parametrize("plan", EMA.values(), ids=EMA.keys())
def test_thresholds_never_measured_are_refused(plan: RoutingPlan) -> None:
    router = tiny.layer(tiny.batch_pool(EXPERTS)).router
    router.check(plan)
    router.threshold_updates.zero_()
    with pytest.raises(ConfigError, match=r"layer 0 .* never measured"):
        router.check(plan)
    for free in FREE:
        router.check(free)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -0.1, 1.0])
@pytest.mark.parametrize("plan", EMA.values(), ids=EMA.keys())
def test_thresholds_out_of_range_are_refused(plan: RoutingPlan, value: float) -> None:
    router = tiny.layer(tiny.batch_pool(EXPERTS)).router
    router.threshold_updates += 1
    tracked = router.gate_threshold if plan.selection == "gate" else router.threshold
    tracked[1] = value
    with pytest.raises(ConfigError, match=r"not in \[0, 1\)"):
        router.check(plan)


# --- who may write ------------------------------------------------------------------------------


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    "plan", [tiny.TRAIN, RoutingPlan(selection="token", policy="ema")], ids=["train", "token"]
)
def test_forward_and_backward_change_no_buffer(plan: RoutingPlan, recompute: bool) -> None:
    model = tiny.model(tiny.batch_pool(EXPERTS))
    model.moe_layers[0].router.threshold.fill_(0.5)
    model.activation_checkpointing = recompute
    before = state(model)
    assert len(before) == 4
    prediction = model(*tiny.batch(4), plan)
    router, routing = model.moe_layers[0].router, prediction.routing[0]
    (prediction.sample.sum() + router.losses(routing)["predictor"]).backward()
    if plan.selection == "train":
        router.statistics(routing)
    assert_same_state(model, before)


# --- dtypes and devices -------------------------------------------------------------------------


def calibrated(dtype: torch.dtype = torch.float32) -> DiT:
    """A model whose thresholds have bits that bfloat16 would lose."""
    model = tiny.model(tiny.batch_pool(EXPERTS), dtype=dtype)
    model.moe_layers[0].router.threshold.copy_(torch.tensor([0.1, 1 / 3, 0.7000001]))
    model.moe_layers[0].router.gate_threshold.copy_(torch.tensor([0.3, 0.123456789, 1e-7]))
    model.moe_layers[0].router.threshold_updates.fill_(3)
    return model


MOVES = {
    "bfloat16": lambda m: m.to(torch.bfloat16),
    "half": lambda m: m.half(),
    "double": lambda m: m.double(),
    "there and back": lambda m: m.bfloat16().double().half().float(),
    "device and dtype": lambda m: m.to(device="cpu", dtype=torch.bfloat16),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES.keys())
def test_thresholds_keep_their_bits(move) -> None:
    model = calibrated()
    before = state(model)
    assert_same_state(move(model), before)
    assert all(buffer.dtype == torch.float32 for name, buffer in before.items() if name in BUFFERS)


def test_thresholds_of_a_copy_are_its_own() -> None:
    model = calibrated()
    twin = copy.deepcopy(model).bfloat16()
    assert_same_state(twin, state(model))
    twin.moe_layers[0].router.threshold.zero_()
    assert model.moe_layers[0].router.threshold.all()


def test_a_model_without_memory_moves_and_comes_back() -> None:
    model = calibrated()
    before = state(model)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    model.to("meta")
    assert all(buffer.is_meta for buffer in model.buffers())
    model.to(torch.bfloat16)
    model.to_empty(device="cpu")
    model.float()
    model.load_state_dict(kept)
    assert_same_state(model, before)
    with torch.device("meta"):
        DiT(tiny.config()).to(torch.bfloat16).to_empty(device="cpu")
    calibrated().to("meta", dtype=torch.bfloat16)


def test_thresholds_and_weights_round_trip_through_a_state_dict() -> None:
    model = calibrated()
    other = build_model(model.config, seed=9)
    other.load_state_dict(model.state_dict())
    assert_same_state(other, state(model))


def seen_dtypes(model: DiT) -> tuple[list[torch.dtype], Routing]:
    """The dtype of the predictor's hidden product, and the record, of one training forward."""
    seen: list[torch.dtype] = []
    hidden = model.moe_layers[0].router.predictor.hidden
    handle = hidden.register_forward_hook(lambda *call: seen.append(call[-1].dtype))
    dtype = model.final.weight.dtype
    routing = model(*tiny.batch(4, dtype=dtype), tiny.TRAIN).routing[0]
    handle.remove()
    return seen, routing


def assert_decided_in_float32(routing: Routing) -> None:
    for value in (routing.affinity, routing.gate, routing.demand, routing.quantile):
        assert value.dtype == torch.float32
    torch.testing.assert_close(routing.affinity.sum(1), torch.ones(routing.rows), rtol=0, atol=1e-6)


def test_autocast_decides_in_float32_and_multiplies_in_bfloat16() -> None:
    model = calibrated()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        seen, routing = seen_dtypes(model)
        logits = model.moe_layers[0].router.affinity(tiny.normals(1, 4, 8).bfloat16())
    assert seen == [torch.bfloat16] and logits.dtype == torch.float32
    assert_decided_in_float32(routing)


def test_a_bfloat16_model_decides_in_float32() -> None:
    seen, routing = seen_dtypes(calibrated().bfloat16())
    assert seen == [torch.bfloat16]
    assert_decided_in_float32(routing)


def test_a_float32_model_stays_in_float32() -> None:
    seen, routing = seen_dtypes(calibrated())
    assert seen == [torch.float32]
    assert_decided_in_float32(routing)


@pytest.mark.parametrize("router", tiny.ROUTED.values(), ids=tiny.ROUTED.keys())
def test_losses_are_float32_under_autocast(router) -> None:
    model = tiny.model(router, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routing = model(*tiny.batch(4, dtype=torch.float32), tiny.TRAIN).routing[0]
        inside = model.moe_layers[0].router.losses(routing)
    outside = model.moe_layers[0].router.losses(routing)
    for name, loss in inside.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, outside[name])
