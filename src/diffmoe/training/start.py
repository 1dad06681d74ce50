"""Before several processes train as one: they are the same program, and what they send arrives."""

import logging
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from diffmoe.checkpoint import RunFolder
from diffmoe.config import ExpertChoice, ModelConfig, RunConfig, Shares, share_out, to_dict
from diffmoe.distributed import (
    Group,
    code_fingerprint,
    refuse_broken_collectives,
    refuse_difference,
)
from diffmoe.errors import PeerError, StorageError
from diffmoe.model import RoutingPlan, build_model
from diffmoe.training.parallel import parallelize
from diffmoe.training.shares import whole_tensor

__all__ = ["refuse_unequal", "refuse_unseen"]

_LOG = logging.getLogger(__name__)


def refuse_unequal(config: RunConfig, group: Group, device: torch.device) -> RunConfig:
    """The config of this process, with its share of the batch, once all have agreed and tried.

    Raises ConfigError if the processes cannot share the batch, PeerError if they are not of one
    code and config or a collective, or a sharded network, gives other numbers than it should.
    """
    began = time.perf_counter()
    if group.size > 1:
        program = {"code": code_fingerprint(), "torch": torch.__version__}
        refuse_difference(group, program | _fields(to_dict(config)))
    shares = share_out(config, group.size)
    if group.size > 1:
        refuse_broken_collectives(group, device)
        _refuse_unlike_networks(group, device)
        _LOG.info(
            "%d processes passed the start-up test in %.1f s: %d to a copy of the weights, %d to a"
            " set of experts, %d to a pool",
            *(group.size, time.perf_counter() - began),
            *(shares.shard_degree, shares.expert_degree, shares.pool_processes),
        )
    return replace(config, machine=replace(config.machine, micro_batch=shares.micro_batch))


def _fields(values: Mapping[str, Any], head: str = "") -> dict[str, str]:
    """The fields of a config by their dotted names."""
    found: dict[str, str] = {}
    for name, value in values.items():
        inner = isinstance(value, Mapping)
        found |= _fields(value, f"{head}{name}.") if inner else {head + name: str(value)}
    return found


def refuse_unseen(folder: RunFolder, lock: int, group: Group) -> None:
    """Raise PeerError unless all processes see the file by which the first one has the run folder.

    Its open file is `lock`, on the first process.
    """
    if group.size == 1:
        return
    signed = group.first_says(lambda: _sign(folder, lock))
    blind = [rank for rank, seen in enumerate(group.gather(_signature(folder))) if seen != signed]
    if blind:
        raise group.spoken(
            PeerError(
                f"process {', '.join(map(str, blind))} does not see the run folder of process 0",
                where=str(folder.path),
                remedy="put the run on a file system that all machines share",
            )
        )


def _sign(folder: RunFolder, lock: int) -> str:
    """What was written into the file that is `lock`, and is on its disk."""
    signature = secrets.token_hex(8)
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, signature.encode(), 0)
        os.fsync(lock)
    except OSError as error:
        raise StorageError(
            f"cannot write to the run folder ({error.strerror})",
            where=str(folder.path),
            remedy="check its permissions and the free space",
        ) from error
    return signature


def _signature(folder: RunFolder) -> str:
    try:
        return (folder.path / ".lock").read_text()
    except (OSError, ValueError):
        return ""


def _refuse_unlike_networks(group: Group, device: torch.device) -> None:
    """FSDP2 and data parallel give a toy the same gradients, to rounding."""
    copies, one = (_toy_gradient(group, device, degree) for degree in (1, group.size))
    apart = ((copies - one).abs().max() / copies.abs().max()).item()
    if group.largest(int(not apart < 1e-5))[0]:
        raise group.spoken(
            PeerError(
                f"FSDP2 gives a toy other gradients than data parallel does (apart by {apart:.1g})",
                remedy="check the versions of torch and of its communication library everywhere",
            )
        )


def _toy_gradient(group: Group, device: torch.device, shard_degree: int) -> Tensor:
    """The gradient of a small network, averaged over processes that have images of their own."""
    model, size = build_model(_TOY, 0, device), _TOY.input_size
    _fill(model, seed=0)
    shares = Shares(group.size, 1, 1, 1, shard_degree, 1)
    network = parallelize(model, shares, group, device=device)
    x, t = torch.empty(1, _TOY.channels, size, size, device=device), torch.full((1,), 0.5)
    torch.nn.init.normal_(x, generator=torch.Generator(device).manual_seed(group.rank))
    label = torch.zeros(1, dtype=torch.int64, device=device)
    plan = RoutingPlan(selection="train", pool_of_image=(0,))
    network(x, t.to(device), label, plan).sample.square().mean().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return torch.cat([whole_tensor(gradient).flatten() for gradient in gradients])


@torch.no_grad()
def _fill(model: torch.nn.Module, seed: int) -> None:
    """Weights none of which are zero, as they are at first: gradients would be zero too."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)


_TOY = ModelConfig(
    input_size=4,
    patch_size=2,
    channels=1,
    out_channels=1,
    width=8,
    depth=2,
    heads=2,
    mlp_ratio=2,
    num_classes=2,
    router=ExpertChoice(num_experts=2, capacity=1.0),
    moe_period=2,
    pool_images=1,
)
