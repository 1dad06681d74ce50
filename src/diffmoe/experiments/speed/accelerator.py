"""Questions for an accelerator: whole training steps and sampling of published models."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from diffmoe.experiments.speed.answer import Bench, Check, Row, Variant
from diffmoe.experiments.speed.workload import ModelWork, largest_difference
from diffmoe.model import RoutingPlan, cast_for_products, counts_stay_on_device
from diffmoe.presets import preset
from diffmoe.sampling import Captured

__all__ = ["ACCELERATOR_ROWS", "sampling", "training"]

Answer = TypeVar("Answer")
_BATCH = 256  # images of a training step, or as many of them as fit
# Times the weights' bytes are moved in a step: read twice, the gradient written and read, two
# moments read and written, the weights written, the average read and written.
_STATE = 2 + 2 + 4 + 1 + 2


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
        low = work.whole_step(loops)
        return bench.row(
            f"train-{name}",
            f"training step of {model}: loops in TF32 / here, {number} images",
            {
                "loops": Variant(_in_tf32(slow), moved, slow, exact),
                "diffmoe": Variant(work.whole_step(work.compiled()), moved, plain),
                "eager": Variant(plain, moved),
                "loops, same dtype": Variant(low, moved),
            },
            bar=bar,
            at_least=True,
            check=Check(difference, 1e-4),
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
    whole, token = work.plan("pool"), work.plan("token")
    fast, plan = _fast(work, images)
    moved = work.parameter_bytes
    low = moved * bench.machine.dtype.itemsize // 4
    slow, timed = work.evaluate(loops, whole, exact), work.evaluate(fast, plan)
    yield bench.row(
        f"sample-{name}",
        f"sampling evaluation of {model}: loops in TF32 / here, {images} images",
        {
            "loops": Variant(_in_tf32(slow), moved, slow, exact),
            "diffmoe": Variant(timed, low, work.evaluate(work.model, plan)),
            "eager": Variant(work.evaluate(work.model, token), moved),
            "loops, same dtype": Variant(work.evaluate(loops, whole), moved),
        },
        bar=bar,
        at_least=True,
        check=Check(
            largest_difference([timed()], [work.evaluate(loops, token)()]), bench.tolerance
        ),
    )


def _fast(work: ModelWork, images: int) -> tuple[Any, RoutingPlan]:
    """The network as it samples fastest: its weights cast once, recorded if the batch is small."""
    machine = work.machine
    low = machine.dtype == torch.bfloat16
    network = cast_for_products(work.model, torch.bfloat16) if low else work.model
    if images > 1 or not counts_stay_on_device(machine.device, machine.dtype):
        return network, work.plan("token")
    return Captured(network, keep_records=False), work.plan("token", max_capacity=1.25)


def _of(size: str, dense: str | None, bar: float) -> Callable[[Bench], Iterator[Row]]:
    return lambda bench: training(bench, size, f"diffmoe-{size}-e16-flow", dense, bar)


ACCELERATOR_ROWS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "train-s": _of("s", None, 4.0),
    "train-b": _of("b", None, 3.0),
    "train-l": _of("l", "dit-l-flow", 2.8),
    "sample-l-125": lambda bench: sampling(bench, "l-125", "diffmoe-l-e16-flow", 125, 2.2),
    "sample-l-1": lambda bench: sampling(bench, "l-1", "diffmoe-l-e16-flow", 1, 8.0),
}
