"""Questions for an accelerator: whole training steps and sampling of published models."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from diffmoe.experiments.speed.answer import Bench, Row, Variant
from diffmoe.experiments.speed.workload import ModelWork, largest_difference
from diffmoe.model import RoutingPlan, cast_for_products
from diffmoe.presets import preset
from diffmoe.sampling import Captured

__all__ = ["ACCELERATOR_ROWS", "sampling", "training"]

Answer = TypeVar("Answer")
_BATCH = 256  # images of a training step, or as many of them as fit
_STATE = 9  # times the weights are moved in a step: read twice, gradient, moments, average


@contextmanager
def _tf32() -> Iterator[None]:
    """Float32 products as TensorFloat-32, as the released code sets them."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _in_tf32(run: Callable[[], Any]) -> Callable[[], Any]:
    def slow() -> Any:
        with _tf32():
            return run()

    return slow


def _that_fits(images: int, answer: Callable[[int], Answer]) -> Answer:
    """The answer for `images`, or for half of them as often as the memory does not hold them."""
    while True:
        try:
            return answer(images)
        except torch.OutOfMemoryError:
            if images < 8:
                raise
        images //= 2  # out of the handler: the traceback holds the tensors
        gc.collect()
        torch.cuda.empty_cache()


def training(
    bench: Bench, name: str, model: str, dense: str | None, bar: float, images: int = _BATCH
) -> Iterator[Row]:
    """A whole training step of a preset: over the loops, the dense model, and the floor."""

    def against_loops(number: int) -> Row:
        work = ModelWork(preset(model), number, bench.machine)
        loops = work.loops()
        exact = torch.float32
        difference = largest_difference(
            work.gradients(work.step(work.model, exact), work.model),
            work.gradients(work.step(loops, exact), loops),
        )
        moved = _STATE * work.parameter_bytes
        slow, plain = work.whole_step(loops, exact), work.whole_step(work.model)
        return bench.row(
            f"train-{name}",
            f"training step of {model}: loops in TF32 / here, {number} images",
            {
                "loops": Variant(_in_tf32(slow), moved, slow),
                "diffmoe": Variant(work.whole_step(work.compiled()), moved, plain),
            },
            bar=bar,
            at_least=True,
            difference=difference,
        )

    def against_dense(number: int) -> Iterator[Row]:
        work, other = (ModelWork(preset(p), number, bench.machine) for p in (model, dense or ""))
        works = {"diffmoe": work, "dense": other}
        row = bench.row(
            f"dense-{name}",
            f"training step of {model} / {dense}, {number} images",
            {
                label: Variant(
                    own.whole_step(own.compiled()),
                    _STATE * own.parameter_bytes,
                    own.whole_step(own.model),
                )
                for label, own in works.items()
            },
            bar=1.08,
        )
        floor = row.over_floor["diffmoe"]
        yield row
        yield Row(f"floor-{name}", f"training step of {model} / floor", floor, bar=1.25)

    yield _that_fits(images, against_loops)
    if dense:
        yield from _that_fits(images, lambda number: list(against_dense(number)))


def sampling(bench: Bench, name: str, model: str, images: int, bar: float) -> Iterator[Row]:
    """An evaluation while sampling, Algorithm 4 in loops over ours; a batch of one from a graph."""
    work = ModelWork(preset(model), images, bench.machine)
    loops, exact = work.loops(), torch.float32
    whole = work.plan("pool")
    fast, plan = _fast(work, images)
    difference = largest_difference(
        [work.evaluate(work.model, whole, exact)()], [work.evaluate(loops, whole, exact)()]
    )
    moved = work.parameter_bytes
    slow = work.evaluate(loops, whole, exact)
    yield bench.row(
        f"sample-{name}",
        f"sampling evaluation of {model}: loops in TF32 / here, {images} images",
        {
            "loops": Variant(_in_tf32(slow), moved, slow),
            "diffmoe": Variant(
                work.evaluate(fast, plan),
                moved * bench.machine.dtype.itemsize // 4,
                work.evaluate(work.model, plan),
            ),
        },
        bar=bar,
        at_least=True,
        difference=difference,
    )


def _fast(work: ModelWork, images: int) -> tuple[Any, RoutingPlan]:
    """The network as it samples fastest: its weights cast once, recorded if the batch is small."""
    low = work.machine.dtype == torch.bfloat16
    network = cast_for_products(work.model, torch.bfloat16) if low else work.model
    if images > 1 or work.machine.device.type != "cuda":
        return network, work.plan("token")
    return Captured(network), work.plan("token", max_capacity=1.25)


def _of(size: str, dense: str | None, bar: float) -> Callable[[Bench], Iterator[Row]]:
    return lambda bench: training(bench, size, f"diffmoe-{size}-e16-flow", dense, bar)


ACCELERATOR_ROWS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "train-s": _of("s", None, 4.0),
    "train-b": _of("b", None, 3.0),
    "train-l": _of("l", "dit-l-flow", 2.8),
    "sample-l-125": lambda bench: sampling(bench, "l-125", "diffmoe-l-e16-flow", 125, 2.2),
    "sample-l-1": lambda bench: sampling(bench, "l-1", "diffmoe-l-e16-flow", 1, 8.0),
}
