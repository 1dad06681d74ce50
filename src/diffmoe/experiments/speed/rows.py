"""The questions a benchmark answers, one function a row."""

from collections.abc import Callable, Iterator

import torch
from torch import nn

from diffmoe.experiments.speed.answer import Bench, Check, Row, Variant
from diffmoe.experiments.speed.cost import host_reads, peak_bytes
from diffmoe.experiments.speed.workload import LayerWork, ModelWork, largest_difference
from diffmoe.model import FeedForward, RoutingPlan, counts_stay_on_device

__all__ = ["ROWS"]


def train_large(bench: Bench) -> Row:
    """A training step of the large batch, forward and backward, over the dense model's."""
    return _train(bench, bench.images[0], "train-large", bar=1.06)


def train_small(bench: Bench) -> Row:
    """The same of the small batch, where each expert has few rows."""
    return _train(bench, bench.images[1], "train-small", bar=1.18)


def _train(bench: Bench, images: int, name: str, bar: float) -> Row:
    work = ModelWork(bench.model, images, bench.machine)
    plain = ModelWork(bench.dense, images, bench.machine)
    loops = work.loops()
    fast, slow = work.step(work.model), work.step(loops)
    difference = largest_difference(work.gradients(fast, work.model), work.gradients(slow, loops))
    moved = 3 * work.parameter_bytes  # weights twice, gradients once
    return bench.row(
        name,
        f"training step / dense, {images * bench.model.model.tokens} tokens",
        {
            "diffmoe": Variant(work.step(work.compiled()), moved, fast),
            "dense": Variant(
                plain.step(plain.compiled()), 3 * plain.parameter_bytes, plain.step(plain.model)
            ),
            "loops": Variant(slow, moved),
        },
        bar=bar,
        check=Check(difference, bench.tolerance),
    )


def layer(bench: Bench) -> Row:
    """One mixture of experts, forward and backward, over a dense feed-forward layer."""
    images, model = bench.images[0], bench.model.model
    work = LayerWork(bench.model, images, bench.machine)
    plain = _dense_layer(bench)
    moved, plainly = 3 * _bytes(work.layer), 3 * _bytes(plain)
    return bench.row(
        "layer",
        f"one MoE layer / dense FFN, training, {images * model.tokens} tokens",
        {
            "diffmoe": Variant(work.step(work.layer), moved),
            "dense": Variant(work.step(plain), plainly),
            "loops": Variant(work.step(work.loops), moved),
        },
        bar=1.22,
        check=Check(
            largest_difference(work.gradients(work.layer), work.gradients(work.loops)),
            bench.tolerance,
        ),
    )


def _dense_layer(bench: Bench) -> nn.Module:
    model = bench.model.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = FeedForward(model.width, model.mlp_ratio * model.width)
    return made.to(bench.machine.device)


def _bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def sample(bench: Bench) -> Iterator[Row]:
    """An evaluation while sampling, at capacity 1, over the dense model's: both selections."""
    images = bench.images[0]
    work = ModelWork(bench.model, images, bench.machine)
    plain = ModelWork(bench.dense, images, bench.machine)
    loops, moved = work.loops(), work.parameter_bytes
    nothing = RoutingPlan(selection="image")
    for name, selection in (("sample", "token"), ("sample-pool", "pool")):
        plan = work.plan(selection)
        fast, slow = work.evaluate(work.model, plan), work.evaluate(loops, plan)
        where = f"{images * bench.model.model.tokens} tokens, selection {selection}"
        yield bench.row(
            name,
            f"sampling evaluation at C = 1 / dense, {where}",
            {
                "diffmoe": Variant(fast, moved),
                "dense": Variant(plain.evaluate(plain.model, nothing), plain.parameter_bytes),
                "loops": Variant(slow, moved),
            },
            bar=1.08,
            check=Check(largest_difference([fast()], [slow()]), bench.tolerance),
        )


def capacity(bench: Bench) -> Row:
    """What half of the compute saves in a MoE layer while sampling."""
    work = LayerWork(bench.model, bench.images[0], bench.machine)
    half, one = work.plan(0.5), work.plan(1.0)
    moved = _bytes(work.layer)
    runs = {plan: work.evaluate(work.layer, plan) for plan in (half, one)}
    slow = {plan: work.evaluate(work.loops, plan) for plan in (half, one)}
    return bench.row(
        "capacity",
        "MoE layer at C = 0.5 / C = 1, sampling",
        {"C = 0.5": Variant(runs[half], moved), "C = 1": Variant(runs[one], moved)},
        bar=0.60,
        check=Check(
            max(largest_difference([runs[p]()], [slow[p]()]) for p in runs), bench.tolerance
        ),
    )


def memory(bench: Bench) -> Row:
    """Temporary and saved bytes of a layer's step with many experts over few."""
    few, many, _ = bench.experts
    found, difference = {}, 0.0
    for experts in (few, many):
        work = LayerWork(bench.model, 4 * bench.images[0], bench.machine, experts)
        step = work.step(work.layer)
        step()
        work.layer.zero_grad(set_to_none=True)
        work.x.grad = None
        found[experts] = peak_bytes(step, work.layer, bench.machine.device)
        loops = work.gradients(work.loops)
        difference = max(difference, largest_difference(work.gradients(work.layer), loops))
    return Row(
        "memory",
        f"bytes of a layer's step beside weights and their gradients, E {many} / E {few}",
        found[many] / found[few],
        bar=1.10,
        check=Check(difference, bench.tolerance),
        note=", ".join(f"E {experts}: {size / 2**20:.0f} MiB" for experts, size in found.items()),
    )


def experts(bench: Bench) -> Row:
    """A layer's step with very many experts over few."""
    few, _, most = bench.experts
    images = 4 * bench.images[0]
    works = [LayerWork(bench.model, images, bench.machine, number) for number in (most, few)]
    variants = {
        f"E {number}": Variant(work.step(work.layer), 3 * _bytes(work.layer))
        for number, work in zip((most, few), works, strict=True)
    }
    pairs = [(work.gradients(work.layer), work.gradients(work.loops)) for work in works]
    return bench.row(
        "experts",
        f"one MoE layer, training, E {most} / E {few}, {images * bench.model.model.tokens} tokens",
        variants,
        bar=1.25,
        check=Check(max(largest_difference(*pair) for pair in pairs), bench.tolerance),
    )


def reads(bench: Bench) -> Iterator[Row]:
    """How often the host waits for the device in an evaluation, for each MoE layer."""
    work = ModelWork(bench.model, bench.images[1], bench.machine)
    layers = len(work.model.moe_layers)
    capped = work.plan("token", max_capacity=1.25)
    stays = counts_stay_on_device(bench.machine.device, bench.machine.dtype)
    for name, plan, bar in (
        ("reads-static", RoutingPlan(selection="image"), 0.0),
        ("reads-token", work.plan("token"), 1.0),
        ("reads-pool", work.plan("pool"), 1.0),
        ("reads-capped", capped, 0.0 if stays else 1.0),
    ):
        run = work.evaluate(work.model, plan)
        run()
        yield Row(
            name,
            f"host reads a MoE layer while sampling, {_describe(plan)}",
            host_reads(run) / layers,
            bar=bar,
            note="" if stays or plan is not capped else _ELSEWHERE,
        )


_ELSEWHERE = "expected 0 in bfloat16 on Hopper and Blackwell, not measured here"


def _describe(plan: RoutingPlan) -> str:
    cap = f", max_capacity {plan.max_capacity:g}" if plan.max_capacity else ""
    return f"selection {plan.selection}{cap}"


def _one(question: Callable[[Bench], Row]) -> Callable[[Bench], Iterator[Row]]:
    def answer(bench: Bench) -> Iterator[Row]:
        yield question(bench)

    return answer


ROWS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "train-large": _one(train_large),
    "train-small": _one(train_small),
    "layer": _one(layer),
    "sample": sample,
    "capacity": _one(capacity),
    "memory": _one(memory),
    "experts": _one(experts),
    "reads": reads,
}
