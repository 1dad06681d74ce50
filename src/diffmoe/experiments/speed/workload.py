"""What is timed: training steps, sampling evaluations and single layers."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from diffmoe.config import BatchPool, MachineConfig, RunConfig
from diffmoe.errors import ConfigError
from diffmoe.experiments.speed.loops import LoopMixture, loop_twin
from diffmoe.model import DiT, MixtureOfExperts, RoutingPlan, build_model, some_conditions
from diffmoe.objective import Draws, build_objective
from diffmoe.randomness import normals, uniforms
from diffmoe.training import average_weights, build_optimizer, copy_buffers

__all__ = ["LayerWork", "Machine", "ModelWork", "largest_difference"]

Run = Callable[[], Any]
_TRAIN = RoutingPlan(selection="train")


@dataclass(frozen=True)
class Machine:
    """Where a workload runs, and in what precision."""

    device: torch.device
    dtype: torch.dtype  # of matrix products
    compile: bool  # the fast variants

    def autocast(self, dtype: torch.dtype | None = None) -> torch.autocast:
        """Products in `dtype`, by default the machine's."""
        low = (dtype or self.dtype) == torch.bfloat16
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=low)


def _alive(model: DiT) -> DiT:
    """The model with its zero-initialised parts random: zeros would hide every difference."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.dim() > 1 and not parameter.any():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(0.1 * noise)
    return model


def _small(config: RunConfig, images: int) -> RunConfig:
    """The config with one pool for a batch of `images`."""
    model = replace(config.model, pool_images=images)
    training = replace(config.training, global_batch=images)
    return replace(config, model=model, training=training, machine=MachineConfig())


class ModelWork:
    """Steps and evaluations of one network on one batch."""

    def __init__(self, config: RunConfig, images: int, machine: Machine) -> None:
        self.config, self.machine = _small(config, images), machine
        self.model = _alive(build_model(self.config.model, 0)).to(machine.device)
        self.objective = build_objective(self.config.objective)
        shape = (self.config.model.channels,) + (self.config.model.input_size,) * 2
        device = machine.device
        self.x = normals(0, "bench images", 0, images, shape).to(device)
        noise = normals(0, "bench noise", 0, images, shape).to(device)
        self.times = self.objective.times(uniforms(0, "bench time", 0, images)[:, 0]).to(device)
        self.told = some_conditions(self.config.model, images, device)
        self.draws = Draws(self.times, noise)
        self._optimizer: torch.optim.AdamW | None = None
        self._average: DiT | None = None

    @property
    def parameter_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters())

    def compiled(self) -> Any:
        """The network, compiled into one graph if the machine's fast variants are."""
        return torch.compile(self.model, fullgraph=True) if self.machine.compile else self.model

    def loops(self) -> DiT:
        """The same network with loops for mixtures."""
        return loop_twin(self.model)

    def step(self, model: Any, dtype: torch.dtype | None = None) -> Run:
        """Forward and backward of one training step; returns the loss."""

        def run() -> Tensor:
            model.zero_grad(set_to_none=True)
            with self.machine.autocast(dtype):
                loss = self.objective.loss(model, self.x, self.told, self.draws, _TRAIN)
            loss.total.backward()
            return loss.total

        return run

    def whole_step(self, model: Any, dtype: torch.dtype | None = None) -> Run:
        """A training step with optimizer and weight average, as training does it."""
        if self._optimizer is None:
            self._average = copy.deepcopy(self.model).requires_grad_(False)
            self._optimizer = build_optimizer(self.model.parameters(), self.config.training)
        step, optimizer, average = self.step(model, dtype), self._optimizer, self._average
        assert average is not None
        kept, now = list(average.parameters()), list(self.model.parameters())
        share = 1 - self.config.training.ema_decay
        weight = torch.full((), share, device=next(self.model.parameters()).device)

        def run() -> Tensor:
            loss: Tensor = step()
            optimizer.step()
            average_weights(kept, now, weight)
            copy_buffers(average, self.model)
            return loss

        return run

    def evaluate(self, model: Any, plan: RoutingPlan, dtype: torch.dtype | None = None) -> Run:
        """One evaluation of the network while sampling; returns its output."""

        @torch.inference_mode()
        def run() -> Tensor:
            with self.machine.autocast(dtype):
                return model(self.x, self.times, self.told, plan).sample

        return run

    def gradients(self, run: Run, model: nn.Module) -> list[Tensor]:
        """The loss of a step and the gradient of every parameter."""
        loss = run()
        found = [loss.detach()]
        for parameter in model.parameters():
            if parameter.grad is not None:
                found.append(parameter.grad.clone())
        return found

    def plan(self, selection: Any, capacity: float = 1.0, **more: Any) -> RoutingPlan:
        """A plan whose thresholds give exactly this capacity on this batch."""
        with torch.inference_mode(), self.machine.autocast():
            records = self.model(self.x, self.times, self.told, _TRAIN).routing
        thresholds = torch.stack([_level(record.demand, capacity) for record in records])
        return RoutingPlan(selection=selection, policy="target", thresholds=thresholds, **more)


def _level(demand: Tensor, capacity: float) -> Tensor:
    """The threshold of each expert above which S / E * capacity rows lie."""
    rows, experts = demand.shape
    wanted = max(1, int(rows * capacity / experts))
    ordered = demand.sigmoid().sort(dim=0, descending=True).values
    return (ordered[wanted - 1] + ordered[min(wanted, rows - 1)]) / 2


class LayerWork:
    """One mixture of experts of a config, or its dense layer, on rows of its width."""

    def __init__(self, config: RunConfig, images: int, machine: Machine, experts: int = 0) -> None:
        router = config.model.router
        if not isinstance(router, BatchPool):
            raise ConfigError(
                f"model.router {router.kind} is not what is measured here",
                remedy="use a preset named diffmoe-...",
            )
        if experts:
            router = replace(router, num_experts=experts)
        model = replace(config.model, router=router, pool_images=images)
        self.machine, device = machine, machine.device
        self.layer = MixtureOfExperts(model, 0)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            self.layer.experts.initialize(generator)
            self.layer.router.initialize(generator)
            for bias in (self.layer.experts.bias1, self.layer.experts.bias2):
                bias.copy_(torch.randn(bias.shape, generator=generator))  # zeros would hide them
        self.layer.to(device)
        self.loops = LoopMixture(self.layer)
        shape = (model.tokens, model.width)
        self.x = normals(0, "bench rows", 0, images, shape).to(device).requires_grad_()
        self.direction = normals(1, "bench rows", 0, images, shape).to(device)

    def step(self, layer: nn.Module) -> Run:
        """Forward and backward of the layer and of its own losses; returns its output."""

        def run() -> Tensor:
            layer.zero_grad(set_to_none=True)
            self.x.grad = None
            with self.machine.autocast():
                if isinstance(layer, MixtureOfExperts):
                    output, routing = layer(self.x, _TRAIN)
                    total = sum(layer.router.losses(routing).values())
                else:
                    output, total = layer(self.x), 0.0
            (total + (output * self.direction).sum()).backward()
            return output

        return run

    def gradients(self, layer: nn.Module) -> list[Tensor]:
        """Output and gradients of a step."""
        output = self.step(layer)()
        assert self.x.grad is not None
        own = [p.grad.clone() for p in layer.parameters() if p.grad is not None]
        return [output.detach(), self.x.grad.clone(), *own]

    def plan(self, capacity: float) -> RoutingPlan:
        """`token` selection that gives exactly this capacity on these rows."""
        with torch.inference_mode(), self.machine.autocast():
            demand = self.layer.router.predictor(self.x.detach()).flatten(0, 1)
        thresholds = _level(demand, capacity)[None]
        return RoutingPlan(selection="token", policy="target", thresholds=thresholds)

    def evaluate(self, layer: nn.Module, plan: RoutingPlan) -> Run:
        """Forward of the layer while sampling; returns its output."""

        @torch.inference_mode()
        def run() -> Tensor:
            with self.machine.autocast():
                return layer(self.x.detach(), plan)[0]

        return run


def largest_difference(one: list[Tensor], two: list[Tensor]) -> float:
    """The largest difference of two lists of tensors, each relative to its norm; NaN if any is."""
    found = [
        (a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30)
        for a, b in zip(one, two, strict=True)
    ]
    return float(torch.stack(found).max())
