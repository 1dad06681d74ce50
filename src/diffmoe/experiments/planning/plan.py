"""From a config and a machine to the ways to train it there, and the one to take."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from diffmoe.config import RunConfig
from diffmoe.experiments.planning.layout import Layout, layouts, sharing
from diffmoe.experiments.planning.machine import PlannedMachine
from diffmoe.experiments.planning.memory import Memory, host_bytes, memory_of, state_bytes
from diffmoe.experiments.planning.sizes import capacity_of
from diffmoe.experiments.planning.traffic import Collective, break_even, traffic
from diffmoe.model import activated_parameters, count_flops, count_parameters

__all__ = ["PAPER_STEPS", "Option", "Plan", "plan"]

PAPER_STEPS = (700_000, 7_000_000)  # of Tables 3 and 2
_AS_FAST = 1.02  # of two ways that take the same time within this factor, the simpler is taken


@dataclass(frozen=True)
class Option:
    """One way to train: who shares what, images of a pass, and what it takes."""

    layout: Layout
    micro_batch: int
    micro_steps: int  # forward passes of one process in an optimizer step
    recompute: bool  # activation checkpointing
    memory: Memory
    traffic: list[Collective]
    operations: float  # of one GPU and optimizer step
    compute: float  # seconds of an optimizer step
    communication: float  # seconds of it, if nothing else is done meanwhile
    fits: bool

    @property
    def seconds(self) -> float:
        """An optimizer step with communication that hides behind nothing."""
        return self.compute + self.communication

    @property
    def flags(self) -> list[str]:
        """The fields of `machine` that choose it."""
        layout = self.layout
        many = [f"--machine.shard-degree {layout.shard}"] * (layout.gpus > 1)
        many += [f"--machine.expert-degree {layout.expert}"] * (layout.gpus > 1)
        again = ["--machine.activation-checkpointing"] * self.recompute
        return [*many, f"--machine.micro-batch {self.micro_batch}", *again]


@dataclass(frozen=True)
class Plan:
    """What training needs on a machine."""

    name: str  # preset, run or file
    config: RunConfig
    machine: PlannedMachine
    parameters: int
    activated: dict[str, float]  # at the capacity of training, by Eq. 40 and as executed
    forward: float  # operations of one image
    options: list[Option]
    chosen: Option | None  # None where nothing fits
    host: dict[str, int]  # bytes of the host of a full node
    tokens: float | None  # of a GPU and step, below which spread experts move fewer bytes

    @property
    def shown(self) -> Option:
        """The option to look at: the chosen one, else the smallest."""
        return self.chosen or min(self.options, key=lambda each: each.memory.total)

    def days(self, steps: int) -> float:
        """Days of so many optimizer steps."""
        return steps * self.shown.seconds / 86400

    def content(self) -> dict[str, Any]:
        """All of it as plain values, for JSON; bytes, seconds, operations."""
        batch = self.config.training.global_batch
        return {
            "name": self.name,
            "machine": asdict(self.machine),
            "global_batch": batch,
            "parameters": self.parameters,
            "activated": self.activated,
            "forward_operations_of_an_image": self.forward,
            "options": [_told(each, batch) for each in self.options],
            "recommended": None if self.chosen is None else self.chosen.layout.name,
            "host_bytes_of_a_node": self.host,
            "break_even_tokens": self.tokens,
            "days": {str(steps): self.days(steps) for steps in PAPER_STEPS},
        }


def _told(option: Option, batch: int) -> dict[str, Any]:
    return {
        "layout": option.layout.name,
        "flags": option.flags,
        "micro_batch": option.micro_batch,
        "micro_steps": option.micro_steps,
        "recompute": option.recompute,
        "memory": option.memory.parts,
        "memory_total": option.memory.total,
        "fits": option.fits,
        "sent": {each.name: each.sent for each in option.traffic},
        "operations": option.operations,
        "compute_seconds": option.compute,
        "communication_seconds": option.communication,
        "images_a_second": batch / option.seconds,
    }


def plan(config: RunConfig, machine: PlannedMachine, name: str = "PRESET") -> Plan:
    """Memory, bytes sent and time of every way to train `config` on `machine`, without weights.

    Raises ConfigError, naming the nearest legal values, where the GPUs cannot share the batch.
    """
    sizes = sharing(config, machine.gpus)
    capacity = capacity_of(config.model)
    forward = count_flops(config.model).at(capacity)
    options = [
        _option(config, machine, layout, sizes, forward)
        for layout in layouts(config, machine.gpus, machine.per_node)
    ]
    chosen = _simplest_of_the_fastest([each for each in options if each.fits])
    shown = chosen or min(options, key=lambda each: each.memory.total)
    return Plan(
        name=name,
        config=config,
        machine=machine,
        parameters=count_parameters(config.model).total,
        activated=activated_parameters(config.model, capacity),
        forward=forward,
        options=options,
        chosen=chosen,
        host=host_bytes(config, shown.layout, machine.per_node),
        tokens=break_even(config) if machine.gpus > 1 else None,
    )


def _simplest_of_the_fastest(options: Sequence[Option]) -> Option | None:
    if not options:
        return None
    best = min(each.seconds for each in options)
    return next(each for each in options if each.seconds <= _AS_FAST * best)


def _option(
    config: RunConfig,
    machine: PlannedMachine,
    layout: Layout,
    sizes: Sequence[int],
    forward: float,
) -> Option:
    """The fastest way of a layout: the largest micro-batch that fits, with or without recomputing.

    Where none fits, the one that needs least.
    """
    always = config.machine.activation_checkpointing
    found = []
    for recompute in (True,) if always else (False, True):
        tried = (
            _costs(config, machine, layout, images, recompute, forward)
            for images in _worth_a_try(machine, config, layout, sizes)
        )
        found += [next((each for each in tried if each.fits), None)]
    fitting = [each for each in found if each is not None]
    if not fitting:
        return _costs(config, machine, layout, sizes[-1], True, forward)
    return min(fitting, key=lambda each: each.seconds)


def _worth_a_try(
    machine: PlannedMachine, config: RunConfig, layout: Layout, sizes: Sequence[int]
) -> Iterator[int]:
    """The micro-batches, unless the state alone is too large."""
    if state_bytes(config, layout) <= machine.room:
        yield from sizes


def _costs(
    config: RunConfig,
    machine: PlannedMachine,
    layout: Layout,
    images: int,
    recompute: bool,
    forward: float,
) -> Option:
    share = config.training.global_batch // layout.gpus
    memory = memory_of(config, layout, images, recompute)
    sent = traffic(config, layout, images, recompute)
    operations = forward * share * (4 if recompute else 3)  # backward is two forwards
    return Option(
        layout=layout,
        micro_batch=images,
        micro_steps=share // images,
        recompute=recompute,
        memory=memory,
        traffic=sent,
        operations=operations,
        compute=operations / (machine.peak * machine.efficiency),
        communication=sum(machine.seconds(each.sent, each.span) for each in sent),
        fits=memory.total <= machine.room,
    )
