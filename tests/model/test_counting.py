"""What a layer costs, counted instead of timed: reads by the host, kernels, bytes, operations."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.profiler import ProfilerActivity, profile

import tiny
from diffmoe.config import ModelConfig
from diffmoe.experiments.speed.cost import host_reads, operations, peak_bytes
from diffmoe.model import DiT, FeedForward, MixtureOfExperts, RoutingPlan
from diffmoe.presets import preset

CPU = torch.device("cpu")
IMAGES, TOKENS, WIDTH = 16, 64, 64
STATIC = (RoutingPlan(selection="image"), RoutingPlan(selection="pool", policy="static"))
DYNAMIC = tuple(RoutingPlan(selection=s, policy="ema") for s in ("token", "pool", "gate"))
CAPPED = RoutingPlan(selection="token", policy="ema", max_capacity=1.5)


def layer(experts: int, router=tiny.batch_pool) -> MixtureOfExperts:
    """A layer of equal activated work whatever its experts."""
    made = tiny.layer(router(experts), width=WIDTH, input_size=16, pool_images=IMAGES, mlp_ratio=4)
    return made.float()


def rows() -> Tensor:
    return tiny.normals(IMAGES, TOKENS, WIDTH, dtype=torch.float32).requires_grad_()


def step(module: torch.nn.Module, x: Tensor):
    def run() -> None:
        module.zero_grad(set_to_none=True)
        x.grad = None
        if isinstance(module, MixtureOfExperts):
            output, routing = module(x, tiny.TRAIN)
            loss = output.sum() + sum(module.router.losses(routing).values())
            module.router.statistics(routing)
        else:
            loss = module(x).sum()
        loss.backward()

    return run


# --- the host waits for nothing -----------------------------------------------------------------


@pytest.mark.parametrize("router", [tiny.batch_pool, tiny.expert_choice], ids=lambda f: f.__name__)
def test_a_training_step_never_reads_from_the_device(router) -> None:
    module = layer(4, router)
    assert host_reads(step(module, rows())) == 0


def test_nor_does_the_update_of_thresholds() -> None:
    module = layer(4)
    statistics = module.router.statistics(module(rows(), tiny.TRAIN)[1])
    assert host_reads(lambda: module.router.update(statistics)) == 0


def test_token_choice_reads_its_counts_once_and_not_where_the_grouped_product_serves(
    monkeypatch,
) -> None:
    """Its counts are data: a loop must know them, a kernel need not."""
    assert host_reads(step(layer(4, tiny.token_choice), rows())) == 1
    monkeypatch.setattr("diffmoe.model.experts._grouped_mm_serves", lambda *_: True)
    assert host_reads(step(layer(4, tiny.token_choice), rows())) == 0


@pytest.mark.parametrize("kind", tiny.ROUTERS)
def test_a_training_graph_needs_no_values(kind: str) -> None:
    """Fake tensors have none: whatever asked for one outside of an operator would fail."""
    with FakeTensorMode():
        model = DiT(tiny.config(tiny.ROUTERS[kind]))
        prediction = model(*tiny.batch(4, dtype=torch.float32), tiny.TRAIN)
        loss = prediction.sample.sum()
        for own, routing in zip(model.moe_layers, prediction.routing, strict=True):
            loss = loss + sum(own.router.losses(routing).values())
            own.router.statistics(routing)
        loss.backward()


def evaluation(plan: RoutingPlan, images: int = 3):
    model = tiny.model(tiny.batch_pool(4), depth=4, dtype=torch.float32)
    inputs = tiny.batch(images, dtype=torch.float32)
    return torch.inference_mode()(lambda: model(*inputs, plan))


@pytest.mark.parametrize("plan", STATIC, ids=str)
def test_static_capacity_never_reads(plan: RoutingPlan) -> None:
    assert host_reads(evaluation(plan)) == 0


@pytest.mark.parametrize("pools", [(0, 0, 1), (0, 1, 0), (0, 0, 1, 1, 2, 0, 0, 1, 1, 2)], ids=str)
def test_nor_does_a_static_policy_in_odd_pools(pools: tuple[int, ...]) -> None:
    """A partial last pool, and those that two guidance branches share."""
    plan = RoutingPlan(selection="pool", policy="static", pool_of_image=pools)
    assert host_reads(evaluation(plan, len(pools))) == 0


@pytest.mark.parametrize("plan", [*DYNAMIC, CAPPED], ids=str)
def test_dynamic_capacity_reads_once_a_layer(plan: RoutingPlan) -> None:
    assert host_reads(evaluation(plan)) == 2  # of four blocks two are mixtures


def test_a_cap_never_reads_where_the_grouped_product_serves(monkeypatch) -> None:
    monkeypatch.setattr("diffmoe.model.experts._grouped_mm_serves", lambda *_: True)
    assert host_reads(evaluation(CAPPED)) == 0
    with FakeTensorMode():
        model = DiT(tiny.config(tiny.batch_pool(4)))
        model(*tiny.batch(4, dtype=torch.float32), CAPPED)


def test_planted_reads_are_seen() -> None:
    x, mask = torch.ones(3), torch.tensor([True, False, True])
    for read in (
        lambda: x[0].item(),
        lambda: x.tolist(),
        lambda: x.nonzero(),
        lambda: bool(x[0]),
        lambda: x[mask],
        lambda: x.index_put_((mask,), torch.zeros(())),
        lambda: x.cpu(),
        lambda: torch.tensor([1, 2]),
        lambda: torch.repeat_interleave(mask.long()),
        lambda: mask.long().bincount(),
        lambda: x.unique(),
    ):
        assert host_reads(read) >= 1
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        torch.ones(3).sum().item()


# --- kernels ------------------------------------------------------------------------------------


def kernels(run) -> int:
    """Operators that are more than another look at the same memory, within others, too."""
    run()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        run()
    names = [event.name for event in found.events() if event.name.startswith("aten::")]
    return sum(name not in _VIEWS for name in names)


_VIEWS = {
    "aten::view",
    "aten::reshape",
    "aten::flatten",
    "aten::unflatten",
    "aten::expand",
    "aten::expand_as",
    "aten::transpose",
    "aten::t",
    "aten::permute",
    "aten::select",
    "aten::slice",
    "aten::unsqueeze",
    "aten::squeeze",
    "aten::as_strided",
    "aten::detach",
    "aten::alias",
    "aten::split",
    "aten::chunk",
    "aten::unbind",
    "aten::narrow",
    "aten::view_as",
}


@pytest.mark.parametrize(
    ("router", "most"), [(tiny.batch_pool, 495), (tiny.expert_choice, 230)], ids=["pool", "image"]
)
def test_kernels_of_training_do_not_grow_with_the_experts(router, most: int) -> None:
    """Nor with a change: 483 and 223 today, forward, backward, losses and statistics."""
    x = rows()
    counts = {experts: kernels(step(layer(experts, router), x)) for experts in (2, 8, 16)}
    assert len({*counts.values()}) == 1 and counts[2] <= most, counts


def test_nor_do_those_of_static_sampling() -> None:
    x = rows().detach()
    for plan in STATIC:
        counts = {kernels(lambda e=e, p=plan: layer(e)(x, p)) for e in (2, 8, 16)}
        assert len(counts) == 1, plan


def test_dynamic_counts_take_one_grouped_product_each_where_it_serves(monkeypatch) -> None:
    monkeypatch.setattr("diffmoe.model.experts._grouped_mm_serves", lambda *_: True)
    calls = []
    honest = torch.nn.functional.grouped_mm
    monkeypatch.setattr(
        "torch.nn.functional.grouped_mm", lambda *a, **k: calls.append(1) or honest(*a, **k)
    )
    for experts in (2, 8, 16):
        for plan in (*DYNAMIC, CAPPED):
            calls.clear()
            with torch.no_grad():
                layer(experts)(rows(), plan)
            assert len(calls) == 2
        calls.clear()
        step(layer(experts, tiny.token_choice), rows())()
        assert len(calls) == 6  # two forward, and two each for rows and weights backward


def test_a_planted_loop_over_experts_is_seen() -> None:
    x, token = rows().detach(), RoutingPlan(selection="token", policy="ema")
    few, many = (kernels(lambda e=e: layer(e)(x, token)) for e in (2, 16))
    assert many > few  # what a CPU does within the operator, where it has no such kernel


# --- bytes and operations -----------------------------------------------------------------------


def test_bytes_of_a_step_do_not_grow_with_the_experts() -> None:
    x = rows()
    sizes = {}
    for experts in (4, 32):
        module = layer(experts)
        step(module, x)()
        module.zero_grad(set_to_none=True)
        x.grad = None
        sizes[experts] = peak_bytes(step(module, x), module, CPU)
    routing = 12 * IMAGES * TOKENS * (32 - 4) * 4  # a dozen tensors (S, E) in float32
    assert sizes[32] - sizes[4] <= routing


def test_bytes_of_a_step_are_those_of_the_formula() -> None:
    """Dense: hidden rows of 4 D before and after GELU, and their gradient.

    A mixture adds the taken rows, the experts' and the gated output, the predictor's two hidden
    rows of width D, and half a row of what has the shape (S, E).
    """
    x = rows()
    plain = FeedForward(WIDTH, 4 * WIDTH)
    row = IMAGES * TOKENS * WIDTH * 4
    dense = peak_bytes(step(plain, x), plain, CPU)
    assert dense == pytest.approx((4 + 4 + 4) * row, abs=row / 2)
    module = layer(8)
    mixture = peak_bytes(step(module, x), module, CPU)
    assert mixture == pytest.approx(dense + (1 + 2 + 2 + 0.5) * row, abs=row / 2)


def saved_bytes(config: ModelConfig, images: int) -> int:
    """Bytes that a training pass keeps for its backward, the weights apart, on fake tensors."""
    plan = RoutingPlan(selection="train", pool_of_image=(0,) * images)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[id(tensor.untyped_storage())] = tensor.untyped_storage().nbytes()
        held.append(tensor)
        return tensor

    held: list[torch.Tensor] = []  # or an identity would be given again
    with FakeTensorMode(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model = DiT(config)
        x = torch.empty(images, config.channels, config.input_size, config.input_size)
        model(x, torch.empty(images), torch.zeros(images).long(), plan)
    weights = {id(parameter.untyped_storage()) for parameter in model.parameters()}
    return sum(size for storage, size in kept.items() if storage not in weights)


@pytest.mark.parametrize("experts", [4, 64])
def test_bytes_saved_for_backward_are_near_those_of_a_dense_model(experts: int) -> None:
    """In float32, where no weights are cast: the predictor's hidden rows, gates, and (S, E)."""
    model = preset("diffmoe-s-e16-flow").model
    router = replace(model.router, num_experts=experts)
    mixture, dense = (
        saved_bytes(config, 16)
        for config in (replace(model, router=router, pool_images=16), preset("dit-s-flow").model)
    )
    assert 1 < mixture / dense <= 1.15


def test_gradients_of_weights_are_left_out_by_what_they_are() -> None:
    """Not by their shapes: a temporary of a weight's shape counts."""
    linear, x = torch.nn.Linear(50, 50, bias=False), torch.ones(50, 50)

    def run() -> None:
        linear.zero_grad(set_to_none=True)
        (linear(x) * 2.0).sum().backward()

    assert peak_bytes(run, linear, CPU) >= 2 * 50 * 50 * 4


def test_peak_bytes_are_counted_right() -> None:
    def run() -> None:
        one = torch.ones(1000)
        two = one + 1  # two live tensors of 4000 bytes
        del one
        three = two.view(10, 100) * 2  # again two; a view is none
        del two, three

    assert peak_bytes(run, torch.nn.Linear(1, 1), CPU) == 8000


def test_operations_are_counted_right() -> None:
    x, module = rows(), layer(4)
    pairs = IMAGES * TOKENS
    forward = pairs * 2 * (2 * WIDTH * 4 * WIDTH) + pairs * 2 * WIDTH * (WIDTH + 4 + 4)
    static = RoutingPlan(selection="pool", policy="static")
    with torch.inference_mode():
        demand = module.router.predictor(x.detach()).sigmoid().flatten(0, 1)
        levels = demand.topk(pairs // 4 + 1, dim=0).values[-1]
        plan = RoutingPlan(selection="token", policy="target", thresholds=levels[None])
        assert int(module(x.detach(), plan)[1].count.sum()) == pairs
        assert operations(lambda: module(x.detach(), plan)) == forward
        unpredicted = forward - pairs * 2 * WIDTH * (WIDTH + 4)
        assert operations(lambda: module(x.detach(), static)) == unpredicted
    assert operations(step(module, x)) > 2.5 * forward
