"""One optimizer step; the only place where running state (thresholds, averages) changes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffmoe.config import RunConfig
from diffmoe.data import Batch
from diffmoe.model import DiT, Routing, RoutingPlan
from diffmoe.objective import Draws, Loss, Objective
from diffmoe.randomness import normals, uniforms
from diffmoe.training.optimizer import average_weights, learning_rate
from diffmoe.training.state import TrainingState

__all__ = ["make_draws", "train_step", "training_plan"]

Sums = dict[str, Tensor]


def training_plan(images: int, pool_images: int) -> RoutingPlan:
    """Pools of `pool_images` consecutive images."""
    pools = tuple(image // pool_images for image in range(images))
    return RoutingPlan(selection="train", pool_of_image=pools)


def make_draws(objective: Objective, seed: int, batch: Batch) -> Draws:
    """Time and noise of each image, functions of (seed, its sample number)."""
    images, device = batch.x.shape[0], batch.x.device
    u = uniforms(seed, "time", batch.first, images)[:, 0]
    noise = normals(seed, "noise", batch.first, images, tuple(batch.x.shape[1:]))
    return Draws(objective.times(u).to(device), noise.to(device, non_blocking=True))


def drop_labels(config: RunConfig, batch: Batch) -> Tensor:
    """The labels, some of them replaced by the null class for classifier-free guidance."""
    u = uniforms(config.training.seed, "label dropout", batch.first, batch.x.shape[0])[:, 0]
    dropped = (u < config.training.label_dropout).to(batch.label.device)
    return batch.label.masked_fill(dropped, config.model.null_class)


def train_step(
    state: TrainingState, objective: Objective, batches: Sequence[Batch], config: RunConfig
) -> tuple[Sums, list[Sums]]:
    """Advance `state` by one optimizer step over the micro-batches of one global batch.

    Returns device tensors, so that nothing waits: the loss terms and the gradient norm, and the
    router statistics of each MoE layer.
    """
    state.optimizer.zero_grad(set_to_none=True)
    terms: Sums = {}
    layers: list[Sums] = [{} for _ in state.model.moe_layers]
    for batch in batches:
        loss = _loss(state.model, objective, batch, config)
        (loss.total / len(batches)).backward()
        shares = {"loss": loss.total, **loss.terms}
        _add(terms, {name: value.detach() / len(batches) for name, value in shares.items()})
        _gather(state.model, loss.routing, layers)
    terms["gradient_norm"] = _apply(state, config)
    for layer, statistics in zip(state.model.moe_layers, layers, strict=True):
        layer.router.update(statistics)
    average_weights(state.average, state.model, config.training.ema_decay)
    state.step += 1
    return terms, layers


def _loss(model: DiT, objective: Objective, batch: Batch, config: RunConfig) -> Loss:
    plan = training_plan(batch.x.shape[0], config.model.pool_images)
    draws = make_draws(objective, config.training.seed, batch)
    low = config.training.precision == "bfloat16"
    with torch.autocast(batch.x.device.type, dtype=torch.bfloat16, enabled=low):
        return objective.loss(model, batch.x, drop_labels(config, batch), draws, plan)


def _gather(model: DiT, routing: tuple[Routing, ...], layers: list[Sums]) -> None:
    for layer, record, sums in zip(model.moe_layers, routing, layers, strict=True):
        _add(sums, layer.router.statistics(record))


def _add(sums: Sums, more: Sums) -> None:
    for name, value in more.items():
        sums[name] = sums[name] + value if name in sums else value


def _apply(state: TrainingState, config: RunConfig) -> Tensor:
    """Clip and apply the gradients; returns their norm before clipping."""
    gradients = [p.grad for p in state.model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if config.training.clip_norm is not None:
        parameters = [p for p in state.model.parameters() if p.grad is not None]
        torch.nn.utils.clip_grads_with_norm_(parameters, config.training.clip_norm, norm)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(config.training, state.step)
    state.optimizer.step()
    return norm
