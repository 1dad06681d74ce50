"""A network spread over processes: whole copies, shares of one copy, experts that live elsewhere.

What trains the network (AdamW, the average of the weights, checkpoints) works on this process's
share of each tensor, an ordinary tensor, and need not know how many there are.
"""

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diffmoe.config import Shares
from diffmoe.distributed import ALONE, Group
from diffmoe.model import Condition, DiT, Peers, Prediction, RoutingPlan, unused_weights
from diffmoe.training.shares import Meshes, Share, local_tensor, shares_of

__all__ = ["Parallel", "averages_of", "parallelize"]


@dataclass(frozen=True)
class Parallel:
    """How a network is called and its gradients are put together; alone it is the network."""

    model: DiT
    shares: Mapping[str, Share]
    group: Group = ALONE
    call: Callable[..., Any] | None = None  # instead of the network, where gradients are averaged
    peers: Peers | None = None  # who hold the other parts of this process's pools
    last_pass: Callable[[bool], AbstractContextManager[None]] = field(
        default=lambda last: nullcontext()
    )

    @property
    def moe_layers(self) -> Any:
        """Those of the network."""
        return self.model.moe_layers

    def __call__(
        self, x_t: Tensor, t: Tensor, condition: Condition, plan: RoutingPlan
    ) -> Prediction:
        """What the network answers, with gradients that will be averaged over processes."""
        answer: Prediction = (self.call or self.model)(x_t, t, condition, plan)
        return answer

    def compile(self) -> None:
        """Compile the network: as a whole, or block by block where hooks lie between the blocks."""
        if self.group.size == 1:
            self.model.compile(fullgraph=True)
        else:
            for block in self.model.blocks:
                block.compile()

    def clear_gradients(self) -> None:
        """Forget all gradients."""
        for parameter in self.model.parameters():
            parameter.grad = None
        for share in self.shares.values():
            share.own.grad = None

    def collect_gradients(self) -> list[tuple[Tensor, int]]:
        """The gradient of each share, now its own, and how many processes hold the same."""
        found = []
        for share, parameter in zip(self.shares.values(), self.model.parameters(), strict=True):
            if parameter.grad is None:
                continue
            own = local_tensor(parameter.grad)
            share.own.grad = own / share.spread if share.spread > 1 else own
            found.append((share.own.grad, share.replicas))
        return found


def parallelize(
    model: DiT,
    shares: Shares,
    group: Group = ALONE,
    *,
    device: torch.device,
    low: torch.dtype | None = None,
) -> Parallel:
    """Spread `model`, which is changed, over the processes of `group`, each with a `device`.

    Where weights travel, they do so in the dtype `low` of products, if there is one.
    """
    if shares.whole:
        model.to(device)
    if group.size == 1:
        return Parallel(model, shares_of(model))
    peers = _pool_peers(group.size, shares.pool_processes)
    if shares.whole:
        own = {n: Share(s.own, s.place, group.size) for n, s in shares_of(model).items()}
        network = _replicated(model, device)
        return Parallel(
            model, own, group, network, peers, lambda last: _unless(last, network.no_sync)
        )
    meshes = _meshes(device, group.size, shares.shard_degree, shares.expert_degree)
    _shard(model, meshes, low)  # from the host block by block: the whole may not fit a device
    model.to(device)
    if device.type == "cpu":
        _add_up_in_order(model)
    passing = functools.partial(_average_last, model, shares.shard_degree > 1)
    return Parallel(model, shares_of(model, meshes), group, None, peers, passing)


@torch.no_grad()
def averages_of(network: Parallel, twin: DiT | None) -> Parallel:
    """Weights beside those of `network`, equal to them now, that no process ever calls.

    They are those of `twin`, where every process holds all; else of no network, but for buffers.
    """
    if twin is not None:
        twin.requires_grad_(False)
        return Parallel(twin, shares_of(twin), network.group)
    with torch.device("meta"):
        twin = DiT(network.model.config).requires_grad_(False)
    for module, like in zip(_with_buffers(twin), _with_buffers(network.model), strict=True):
        for name, value in like.named_buffers(recurse=False):
            setattr(module, name, value.clone())
    own = {
        name: Share(nn.Parameter(share.own.clone(), requires_grad=False), share.place, 1)
        for name, share in network.shares.items()
    }
    return Parallel(twin, own, network.group)


def _with_buffers(model: DiT) -> list[nn.Module]:
    return [module for module in model.modules() if list(module.buffers(recurse=False))]


def _unless(last: bool, without: Callable[[], AbstractContextManager[None]]) -> Any:
    return nullcontext() if last else without()


def _pool_peers(size: int, parts: int) -> Peers | None:
    if parts == 1:
        return None
    import torch.distributed as dist

    from diffmoe.distributed import PoolPeers

    # Groups of their own: while blocks are recomputed, exchanges come between sums of gradients.
    own, _ = dist.new_subgroups(parts)
    return PoolPeers(own)


def _replicated(model: DiT, device: torch.device) -> nn.Module:
    """Data parallel: whole copies whose gradients are averaged while they are computed."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from diffmoe.distributed import mean_in_order

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # its new name is not in older versions
        network = DistributedDataParallel(
            model,
            broadcast_buffers=False,  # equal by construction: from statistics of all processes
            gradient_as_bucket_view=True,
            find_unused_parameters=bool(unused_weights(model.config)),
        )
    if device.type == "cpu":
        network.register_comm_hook(dist.group.WORLD, mean_in_order)
    return network


def _meshes(device: torch.device, size: int, shards: int, experts: int) -> Meshes:
    """Processes as (copies, shares of one), for experts of their own as the experts are spread."""
    from torch.distributed.device_mesh import init_device_mesh

    inner = max(1, shards // experts)
    dense = init_device_mesh(
        device.type, (size // shards, shards), mesh_dim_names=("replicate", "shard")
    )
    if experts == 1:
        return {"dense": dense}
    spread = init_device_mesh(
        device.type,
        (size // (experts * inner), inner, experts),  # rows travel most: between neighbours
        mesh_dim_names=("replicate", "shard", "expert"),
    )
    return {
        "dense": dense,
        "experts": spread["replicate", "shard"],
        "spread": spread["expert"].get_group(),
    }


def _shard(model: DiT, meshes: Meshes, low: torch.dtype | None) -> None:
    """FSDP2, block by block: weights travel in the dtype of products, gradients in float32.

    Routers, and what is outside of blocks, are gathered as they are: they decide who computes what.
    """
    from torch.distributed.fsdp import (
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    products = MixedPrecisionPolicy(
        param_dtype=low, reduce_dtype=torch.float32 if low else None, cast_forward_inputs=False
    )
    exact = MixedPrecisionPolicy(cast_forward_inputs=False)
    dense = {"mesh": meshes["dense"], "shard_placement_fn": _axis(meshes["dense"])}
    for layer in model.moe_layers:
        fully_shard(layer.router, mp_policy=exact, reshard_after_forward=False, **dense)
        register_fsdp_forward_method(layer.router, "route")
        if "experts" in meshes:
            from diffmoe.training.spread_experts import SpreadExperts

            layer.experts = SpreadExperts(layer.experts, meshes["spread"])
            own = {"mesh": meshes["experts"], "shard_placement_fn": _axis(meshes["experts"])}
            fully_shard(layer.experts, mp_policy=products, **own)
    for block in model.blocks:
        fully_shard(block, mp_policy=products, **dense)
    fully_shard(model, mp_policy=exact, **dense)


def _axis(mesh: Any) -> Callable[[nn.Parameter], Any]:
    """Shares of axis 0, or of axis 1 where there are fewer experts than processes."""
    from torch.distributed.tensor import Shard

    shards = mesh.size(1)

    def axis(weight: nn.Parameter) -> Any:
        few = weight.dim() > 1 and weight.shape[0] < shards and weight.shape[1] % shards == 0
        return Shard(1 if few else 0)

    return axis


def _add_up_in_order(model: DiT) -> None:
    from torch.distributed.fsdp import FSDPModule

    from diffmoe.distributed import OrderedReduceScatter

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_custom_reduce_scatter(OrderedReduceScatter())


@contextmanager
def _average_last(model: Any, sharded: bool, last: bool) -> Iterator[None]:
    """Copies average their gradients once a step; shares of one add them up at each pass.

    A process that holds a share of the weights has no room for all of the gradients.
    """
    if sharded:
        model.set_requires_all_reduce(last)
    else:
        model.set_requires_gradient_sync(last)
    yield
