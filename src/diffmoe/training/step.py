"""One optimizer step; the only place where running state (thresholds, averages) changes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffmoe.config import RunConfig
from diffmoe.data import Batch
from diffmoe.model import Condition, DiT, Peers, Routing, RoutingPlan
from diffmoe.objective import Draws, Loss, Objective
from diffmoe.randomness import normals, uniforms
from diffmoe.training.optimizer import average_weights, copy_buffers, learning_rate
from diffmoe.training.parallel import Parallel
from diffmoe.training.state import TrainingState

__all__ = ["Step", "make_draws", "train_step", "training_plan"]

Sums = dict[str, Tensor]


def training_plan(images: int, pool_images: int, peers: Peers | None = None) -> RoutingPlan:
    """Pools of `pool_images` consecutive images; `peers` hold what is not here of a larger one."""
    pools = tuple(image // pool_images for image in range(images))
    return RoutingPlan(selection="train", pool_of_image=pools, peers=peers)


def make_draws(objective: Objective, seed: int, batch: Batch) -> Draws:
    """Time and noise of each image, functions of (seed, its sample number)."""
    images, device = batch.x.shape[0], batch.x.device
    u = uniforms(seed, "time", batch.first, images)[:, 0]
    noise = normals(seed, "noise", batch.first, images, tuple(batch.x.shape[1:]))
    return Draws(objective.times(u).to(device), noise.to(device, non_blocking=True))


def drop_conditions(config: RunConfig, batch: Batch) -> Condition:
    """Labels or captions, some of them hidden for classifier-free guidance."""
    u = uniforms(config.training.seed, "label dropout", batch.first, batch.x.shape[0])[:, 0]
    dropped = (u < config.training.label_dropout).to(batch.label.device)
    if batch.captions is not None:
        return batch.captions.without(dropped)
    return batch.label.masked_fill(dropped, config.model.null_class)


class Step(NamedTuple):
    """What one optimizer step met, as device tensors: nothing has waited for them.

    All but the last are of the whole batch, whatever the number of processes.
    """

    sound: Tensor  # whether loss and gradient were finite; if not, nothing was learnt
    terms: Sums  # the loss, its terms and the norm of its gradient
    statistics: list[Sums]  # of the router of each MoE layer
    image_sound: Tensor  # whether the loss of each image of this process itself was finite


def train_step(
    state: TrainingState, objective: Objective, batches: Sequence[Batch], config: RunConfig
) -> Step:
    """Advance `state` by one optimizer step over the micro-batches of one global batch.

    Where the loss, its gradient or a router score is not finite, weights, moments, averages and
    thresholds stay as they are: only the step and the place in the data go on.
    """
    network = state.network
    network.clear_gradients()
    terms: Sums = {}
    images: list[Tensor] = []
    layers: list[Sums] = [{} for _ in network.moe_layers]
    for batch in batches:
        with network.last_pass(batch is batches[-1]):
            loss = _loss(network, objective, batch, config)
            (loss.total / len(batches)).backward()
        shares = {"loss": loss.total, **loss.terms}
        _add(terms, {name: value.detach() / len(batches) for name, value in shares.items()})
        _gather(network, loss.routing, layers)
        images.append(loss.per_image.detach().isfinite())
    terms, layers = _of_all(network, terms, layers)
    sound = _are_sound(terms, layers)
    _apply(state, config, terms["gradient_norm"], sound)
    _update_routers(state.model, layers, sound)
    _average(state, (1 - config.training.ema_decay) * sound.double())
    state.step += 1
    state.counters.position += config.training.global_batch
    return Step(sound, terms, layers, torch.cat(images))


def _of_all(network: Parallel, terms: Sums, layers: list[Sums]) -> tuple[Sums, list[Sums]]:
    """Means and sums over all processes, and the norm of the gradient: one message in all."""
    group = network.group
    square = _square(network.collect_gradients(), group.size)
    if group.size == 1:
        return {**terms, "gradient_norm": square.sqrt().float()}, layers
    means = [value / group.size for value in terms.values()]
    sums = [value for layer in layers for value in layer.values()]
    *found, square = group.add_up([*means, *sums, square])
    total = iter(found)
    terms = {name: next(total) for name in terms}
    layers = [{name: next(total) for name in layer} for layer in layers]
    return {**terms, "gradient_norm": square.sqrt().float()}, layers


def _square(gradients: list[tuple[Tensor, int]], processes: int) -> Tensor:
    """This process's part of the sum of the squares of all gradients.

    Of several processes each adds up in another order; wide sums round to the same norm.
    """
    wide = None if processes == 1 else torch.float64
    by_copies: dict[int, list[Tensor]] = {}
    for own, copies in gradients:
        by_copies.setdefault(copies, []).append(own)
    norms = {
        n: torch.stack(torch._foreach_norm(own, 2, dtype=wide)) for n, own in by_copies.items()
    }
    squares = [own.double().square().sum() / copies for copies, own in norms.items()]
    return torch.stack(squares).sum()


def _average(state: TrainingState, share: Tensor) -> None:
    kept, now = (
        [own.own for own in network.shares.values()] for network in (state.averaged, state.network)
    )
    average_weights(kept, now, share)
    copy_buffers(state.average, state.model)


def _are_sound(terms: Sums, layers: list[Sums]) -> Tensor:
    """Whether all is finite; a row without a score counts, though no other row feels it."""
    finite = torch.stack([value.double() for value in terms.values()]).isfinite().all()
    poisoned = [sums["poisoned"] for sums in layers if "poisoned" in sums]
    return finite & (torch.stack(poisoned).sum() == 0) if poisoned else finite


def _loss(network: Parallel, objective: Objective, batch: Batch, config: RunConfig) -> Loss:
    plan = training_plan(batch.x.shape[0], config.model.pool_images, network.peers)
    draws = make_draws(objective, config.training.seed, batch)
    low = config.training.precision == "bfloat16"
    with torch.autocast(batch.x.device.type, dtype=torch.bfloat16, enabled=low):
        return objective.loss(network, batch.x, drop_conditions(config, batch), draws, plan)


def _gather(network: Parallel, routing: tuple[Routing, ...], layers: list[Sums]) -> None:
    for layer, record, sums in zip(network.moe_layers, routing, layers, strict=True):
        _add(sums, layer.router.statistics(record))


def _add(sums: Sums, more: Sums) -> None:
    for name, value in more.items():
        sums[name] = sums[name] + value if name in sums else value


def _apply(state: TrainingState, config: RunConfig, norm: Tensor, sound: Tensor) -> None:
    """Clip the gradients and apply them if they are sound."""
    if config.training.clip_norm is not None:
        own = [share.own for share in state.network.shares.values()]
        parameters = [p for p in own if p.grad is not None]
        torch.nn.utils.clip_grads_with_norm_(parameters, config.training.clip_norm, norm)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(config.training, state.step)
    # What a gradient scaler tells a fused optimizer: at 1 it leaves weights, moments and its count
    # of steps alone, and the host need not know.
    state.optimizer.found_inf = (~sound).float()
    state.optimizer.step()


@torch.no_grad()
def _update_routers(model: DiT, statistics: list[Sums], sound: Tensor) -> None:
    """Advance what the routers track, of whatever kind it is, if the step is sound."""
    for layer, sums in zip(model.moe_layers, statistics, strict=True):
        before = [buffer.clone() for buffer in layer.router.buffers()]
        layer.router.update(sums)
        for buffer, old in zip(layer.router.buffers(), before, strict=True):
            buffer.copy_(torch.where(sound, buffer, old))
