"""Which weights of a network a loss reaches, without computing it."""

import functools

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from diffmoe.config import ModelConfig
from diffmoe.model.condition import some_conditions
from diffmoe.model.dit import DiT
from diffmoe.model.routing import RoutingPlan

__all__ = ["unused_weights"]


@functools.cache
def unused_weights(config: ModelConfig) -> tuple[str, ...]:
    """Names of the trainable weights that have no gradient after a training pass."""
    images = config.pool_images
    plan = RoutingPlan(selection="train", pool_of_image=(0,) * images)
    with FakeTensorMode(), torch.enable_grad():
        model = DiT(config)
        x = torch.empty(images, config.channels, config.input_size, config.input_size)
        answer = model(x, torch.empty(images), some_conditions(config, images), plan)
        loss = answer.sample.float().sum()
        for layer, routing in zip(model.moe_layers, answer.routing, strict=True):
            loss = loss + sum(layer.router.losses(routing).values())
        loss.backward()
    weights = model.named_parameters()
    return tuple(name for name, weight in weights if weight.requires_grad and weight.grad is None)
