"""Weights in the dtype they are multiplied in, cast once instead of at every evaluation."""

import copy

import torch
from torch import nn

from diffmoe.model.dit import DiT
from diffmoe.model.embed import PatchEmbedder, TimeEmbedder
from diffmoe.model.experts import Experts
from diffmoe.model.layers import CapacityPredictor

__all__ = ["cast_for_products"]


def cast_for_products(model: DiT, dtype: torch.dtype) -> DiT:
    """The network with the weights of its large products in `dtype`, everything else shared.

    Under autocast to `dtype` it gives the bits of `model`: autocast casts the same weights the same
    way, but each time. What decides who computes what (routers, the predictor's last layer) and
    the small embedding of times stay as they are.
    """
    kept = {id(p) for module in model.modules() for p in _exact(module)}
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    for module in model.modules():
        if isinstance(module, (nn.Linear, Experts, PatchEmbedder)):
            for parameter in module.parameters(recurse=False):
                if id(parameter) not in kept:
                    cast = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
                    shared[id(parameter)] = cast
    return copy.deepcopy(model, shared)


def _exact(module: nn.Module) -> list[nn.Parameter]:
    if isinstance(module, CapacityPredictor):
        return list(module.output.parameters())
    return list(module.parameters()) if isinstance(module, TimeEmbedder) else []
