"""A process's shares of the weights of a network, as ordinary tensors."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from diffmoe.model import DiT, Experts

__all__ = ["Meshes", "Place", "Share", "local_tensor", "shares_of", "whole_tensor"]

Meshes = dict[str, Any]


class Place(NamedTuple):
    """Where this process's share of a tensor lies in the whole."""

    offsets: tuple[int, ...]
    shape: tuple[int, ...]  # of the whole


@dataclass(frozen=True)
class Share:
    """This process's share of one weight."""

    own: nn.Parameter  # shares its memory with the network's
    place: Place | None  # None: it is the whole
    replicas: int  # processes that hold this very share
    spread: int = 1  # processes whose rows the gradient is already a sum over


def shares_of(model: DiT, meshes: Meshes | None = None) -> dict[str, Share]:
    """This process's share of each weight of a network that was spread, or of one that was not."""
    if meshes is None:
        return {name: Share(own, None, 1) for name, own in model.named_parameters()}
    experts = {
        f"{name}.{inner}": module
        for name, module in model.named_modules()
        if isinstance(module, Experts) and "experts" in meshes
        for inner, _ in module.named_parameters()
    }
    return {
        name: _share(parameter, experts.get(name)) for name, parameter in model.named_parameters()
    }


def _share(parameter: Any, spread: Any | None) -> Share:
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    mesh = parameter.device_mesh
    _, offsets = compute_local_shape_and_global_offset(parameter.shape, mesh, parameter.placements)
    own = nn.Parameter(local_tensor(parameter.detach()), requires_grad=parameter.requires_grad)
    place = Place(tuple(offsets), tuple(parameter.shape))
    if spread is None:
        return Share(own, place, mesh.size(0))
    import torch.distributed as dist

    rank, parts, first = dist.get_rank(spread.group), spread.parts, parameter.shape[0]
    offsets = (offsets[0] + rank * first, *offsets[1:])
    place = Place(tuple(offsets), (first * parts, *parameter.shape[1:]))
    return Share(own, place, mesh.size(0), parts)


def whole_tensor(tensor: Any) -> Tensor:
    """All of a tensor, from all processes that have a share of it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def local_tensor(tensor: Any) -> Tensor:
    """This process's share of a tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
