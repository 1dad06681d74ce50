"""The routers' own losses, added to an objective's."""

import torch
from torch import Tensor

from diffmoe.model import Routing
from diffmoe.objective.records import Loss, Network

__all__ = ["weigh"]


def weigh(
    model: Network, terms: dict[str, Tensor], per_image: Tensor, routing: tuple[Routing, ...]
) -> Loss:
    """The objective's own loss plus each router term: mean over layers, times its weight."""
    total = per_image.mean()
    named: dict[str, list[Tensor]] = {}
    weights: dict[str, float] = {}
    for layer, record in zip(model.moe_layers, routing, strict=True):
        weights.update(layer.router.loss_weights)
        for name, value in layer.router.losses(record).items():
            named.setdefault(name, []).append(value)
    means = {name: torch.stack(values).mean() for name, values in named.items()}
    for name, value in means.items():
        total = total + weights[name] * value
    return Loss(total, {**terms, **means}, per_image, routing)
