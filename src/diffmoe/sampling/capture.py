"""A network recorded once and replayed: a batch of one is otherwise bound by launching kernels."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from diffmoe.captions import Captions
from diffmoe.errors import ConfigError
from diffmoe.model import Condition, DiT, Prediction, Routing, RoutingPlan

__all__ = ["Captured"]

Run = Callable[[], Prediction]


@dataclass(frozen=True)
class _Recording:
    """A graph, the tensors it reads from and those it writes to."""

    inputs: tuple[Tensor, ...]
    output: Prediction
    replay: Callable[[], object]


class Captured:
    """A network that answers from recorded graphs, one for each shape of inputs and of plan.

    Call it as the network itself. It needs a plan that leaves nothing for the host to read: a
    static policy, selection `image`, or `max_capacity` where torch's grouped product runs. Without
    `keep_records` the routing of a prediction holds only until the next call: copies of it would
    launch as many kernels again.
    """

    def __init__(
        self,
        model: DiT,
        *,
        keep_records: bool = True,
        record: Callable[[Run], tuple[Prediction, Callable[[], object]]] | None = None,
    ) -> None:
        self.model = model
        self._keep_records = keep_records
        self._record = record or _record
        self._recordings: dict[Any, _Recording] = {}

    @property
    def moe_layers(self) -> Any:
        """Those of the network."""
        return self.model.moe_layers

    def __call__(
        self, x_t: Tensor, t: Tensor, condition: Condition, plan: RoutingPlan
    ) -> Prediction:
        """The network's prediction; tensors of its own, which the next call leaves alone."""
        with torch.cuda.device_of(x_t):  # streams and graphs belong to the current device
            return self._answer(x_t, t, condition, plan)

    def _answer(
        self, x_t: Tensor, t: Tensor, condition: Condition, plan: RoutingPlan
    ) -> Prediction:
        thresholds = () if plan.thresholds is None else (plan.thresholds,)
        told = condition if isinstance(condition, Captions) else (condition,)
        inputs = (x_t, t, *told, *thresholds)
        shapes = tuple((tuple(tensor.shape), tensor.dtype) for tensor in inputs)
        key = (shapes, plan.selection, plan.policy, plan.pool_of_image, plan.max_capacity)
        if key not in self._recordings:
            self._recordings[key] = self._new(inputs, plan)
        recording = self._recordings[key]
        for own, given in zip(recording.inputs, inputs, strict=True):
            own.copy_(given)
        recording.replay()
        return _copy(recording.output, self._keep_records)

    def _new(self, inputs: tuple[Tensor, ...], plan: RoutingPlan) -> _Recording:
        own = tuple(tensor.clone() for tensor in inputs)
        x_t, t, *told = own
        fixed = replace(plan, thresholds=None if plan.thresholds is None else told.pop())
        condition = told[0] if len(told) == 1 else Captions(*told)
        try:
            output, replay = self._record(lambda: self.model(x_t, t, condition, fixed))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ConfigError(
                f"selection {plan.selection} cannot be recorded here: the host waits for counts",
                remedy="set sampling.max_capacity and sampling.precision bfloat16 (on Hopper), or"
                " use selection image",
            ) from error
        return _Recording(own, output, replay)


def _record(run: Run) -> tuple[Prediction, Callable[[], object]]:
    """Record `run` as a CUDA graph, after a few runs that let libraries allocate what they need.

    Casts that autocast keeps would die with its context, and the graph would read what is gone.
    """
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        return _graph(run)
    finally:
        torch.set_autocast_cache_enabled(cached)


def _graph(run: Run) -> tuple[Prediction, Callable[[], object]]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run()
    return output, graph.replay


def _copy(prediction: Prediction, records: bool) -> Prediction:
    routing = prediction.routing
    kept = tuple(_copy_record(record) for record in routing) if records else routing
    return Prediction(prediction.sample.clone(), kept)


def _copy_record(record: Routing) -> Routing:
    values = {entry.name: getattr(record, entry.name) for entry in fields(record)}
    return Routing(**{n: v.clone() if isinstance(v, Tensor) else v for n, v in values.items()})
