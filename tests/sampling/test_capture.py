"""Recorded networks: static inputs, fresh outputs, a recording for each shape; graphs on CUDA."""

from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

import tiny
import trained
from diffmoe.errors import ConfigError
from diffmoe.model import Prediction, RoutingPlan, cast_for_products
from diffmoe.sampling import generate
from diffmoe.sampling.capture import Captured

IMAGE = RoutingPlan(selection="image")
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs are recorded on CUDA only")


class Recorder:
    """Stands in for a graph: runs once, and on replay writes the same tensors again."""

    def __init__(self) -> None:
        self.recorded = 0

    def __call__(self, run: Callable[[], Prediction]) -> tuple[Prediction, Callable[[], None]]:
        self.recorded += 1
        output = run()

        def replay() -> None:
            again = run()
            output.sample.copy_(again.sample)
            for old, new in zip(output.routing, again.routing, strict=True):
                for entry in fields(old):
                    value = getattr(old, entry.name)
                    if isinstance(value, Tensor):
                        value.copy_(getattr(new, entry.name))

        return output, replay


@torch.no_grad()
def test_a_recorded_network_is_the_network() -> None:
    model, recorder = tiny.model(tiny.batch_pool(4)), Recorder()
    network = Captured(model, record=recorder)
    assert network.moe_layers == model.moe_layers
    found = []
    for seed in range(3):
        inputs = tiny.batch(3, seed)
        found.append(network(*inputs, IMAGE))
        wanted = model(*inputs, IMAGE)
        assert torch.equal(found[-1].sample, wanted.sample)
        assert torch.equal(found[-1].routing[0].token, wanted.routing[0].token)
    assert recorder.recorded == 1
    assert torch.equal(found[0].sample, model(*tiny.batch(3, 0), IMAGE).sample)  # still its own


@torch.no_grad()
def test_thresholds_are_inputs_and_shapes_are_not() -> None:
    model, recorder = tiny.model(tiny.batch_pool(4)), Recorder()
    network = Captured(model, record=recorder)
    inputs = tiny.batch(2)
    for gamma in (0.3, 0.7):
        plan = RoutingPlan(
            selection="token",
            policy="constant",
            thresholds=torch.full((1, 4), gamma),
            max_capacity=2.0,
        )
        assert torch.equal(network(*inputs, plan).sample, model(*inputs, plan).sample)
    assert recorder.recorded == 1
    network(*tiny.batch(3), plan)
    network(*inputs, replace(plan, max_capacity=1.0))
    network(*inputs, IMAGE)
    assert recorder.recorded == 4


def test_a_plan_that_reads_counts_is_refused() -> None:
    def fail(run: Callable[[], Prediction]):
        raise RuntimeError("operation not permitted when stream is capturing")

    network = Captured(tiny.model(tiny.batch_pool(4)), record=fail)
    with pytest.raises(ConfigError, match=r"selection image cannot be recorded.*max_capacity"):
        network(*tiny.batch(2), IMAGE)


def test_capture_needs_cuda() -> None:
    model = trained.network(trained.config())
    with pytest.raises(ConfigError, match="on CUDA devices only"):
        generate(model, trained.config(), [1], [0], capture=True)


@cuda
def test_a_graph_gives_the_images_of_the_network() -> None:
    model = trained.network(trained.config()).cuda()
    settings = replace(trained.config().sampling, selection="image")
    images = [
        generate(model, trained.config(), [1, 2], [0, 1], settings=settings, capture=capture)
        for capture in (False, True)
    ]
    torch.testing.assert_close(*images, rtol=1e-4, atol=1e-4)


# --- weights in the dtype of their products -----------------------------------------------------


@pytest.mark.parametrize("router", tiny.ROUTERS.values(), ids=tiny.ROUTERS.keys())
def test_weights_cast_once_give_the_bits_of_autocast(router) -> None:
    model = tiny.model(router, depth=4, dtype=torch.float32)
    low = cast_for_products(model, torch.bfloat16)
    inputs = tiny.batch(4, dtype=torch.float32)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        one, two = (m(*inputs, IMAGE) for m in (model, low))
    assert torch.equal(one.sample, two.sample)
    for a, b in zip(one.routing, two.routing, strict=True):
        assert torch.equal(a.token, b.token) and torch.equal(a.gate, b.gate)


def test_what_decides_stays_exact_and_the_rest_is_shared() -> None:
    model = tiny.model(tiny.batch_pool(4), dtype=torch.float32)
    low = cast_for_products(model, torch.bfloat16)
    kept = {n for n, p in low.named_parameters() if p.dtype == torch.float32}
    assert {"blocks.1.feed_forward.router.weight", "positions", "labels.table.weight"} <= kept
    assert "blocks.1.feed_forward.router.predictor.output.weight" in kept
    assert "blocks.1.feed_forward.experts.weight1" not in kept
    own = dict(model.named_parameters())
    assert all(low.get_parameter(name) is own[name] for name in kept)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert low.moe_layers[0].router.threshold is model.moe_layers[0].router.threshold
