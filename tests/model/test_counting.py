"""What a layer costs, counted instead of timed: reads by the host, kernels, bytes, operations."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import tiny
from diffmoe.experiments.speed.cost import host_reads, operations, peak_bytes
from diffmoe.model import DiT, FeedForward, MixtureOfExperts, RoutingPlan

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


@pytest.mark.parametrize("kind", tiny.ROUTERS)
def test_a_training_graph_needs_no_values(kind: str) -> None:
    """Fake tensors have none: whatever asked for one would fail."""
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
    x = torch.ones(3)
    for read in (lambda: x[0].item(), lambda: x.tolist(), lambda: x.nonzero(), lambda: bool(x[0])):
        assert host_reads(read) == 1
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        torch.ones(3).sum().item()


# --- kernels ------------------------------------------------------------------------------------


class Kernels(TorchDispatchMode):
    """Counts operators that are more than another look at the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def kernels(run) -> int:
    with Kernels() as counter:
        run()
    return counter.count


def test_kernels_do_not_grow_with_the_experts() -> None:
    x = rows()
    training = {kernels(step(layer(experts), x)) for experts in (2, 8, 16)}
    assert len(training) == 1 and training.pop() <= 130
    for plan in (*STATIC, *DYNAMIC, CAPPED):
        counts = {kernels(lambda e=e, p=plan: layer(e)(x.detach(), p)) for e in (2, 8, 16)}
        assert len(counts) == 1, plan


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
    """Dense: the hidden rows before and after GELU, their gradient, and a few of width D."""
    x = rows()
    plain = FeedForward(WIDTH, 4 * WIDTH)
    row = IMAGES * TOKENS * WIDTH * 4
    dense = peak_bytes(step(plain, x), plain, CPU)
    assert 8 * row <= dense <= 15 * row
    module = layer(8)
    mixture = peak_bytes(step(module, x), module, CPU)
    assert mixture <= dense + 9 * row  # taken, gated, combined rows; the predictor's hidden ones


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
