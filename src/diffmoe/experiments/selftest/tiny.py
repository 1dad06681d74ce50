"""Runs and networks small enough for hundreds of trials in a minute."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffmoe.checkpoint import RunFolder, newest_checkpoint, read_part
from diffmoe.config import RunConfig, from_dict, to_dict
from diffmoe.experiments.selftest.children import Child, begin
from diffmoe.model import DiT, RoutingPlan, build_model
from diffmoe.presets import preset
from diffmoe.randomness import normals
from diffmoe.training import train

__all__ = [
    "OBJECTIVES",
    "PARTS",
    "ROUTERS",
    "begin_training",
    "changed",
    "different",
    "latents",
    "lively_network",
    "newest_state",
    "tiny_run",
    "trained_until",
]

SAMPLES = 24  # of the data; a step takes 16, so most steps lie in no whole epoch
PARTS = ("model", "ema", "optimizer")
OBJECTIVES = ("flow", "ddpm")
ROUTERS: dict[str, dict[str, Any]] = {
    "batch_pool": {
        "kind": "batch_pool",
        "num_experts": 4,
        "capacity": 1.0,
        "predictor_weight": 1.0,
        "threshold_decay": 0.95,
    },
    "token_choice": {"kind": "token_choice", "num_experts": 4, "top_k": 1, "balance_weight": 0.01},
    "expert_choice": {"kind": "expert_choice", "num_experts": 4, "capacity": 1.0},
    "dense": {"kind": "dense"},
}
_SMALL: dict[str, Any] = {
    "model.width": 16,
    "model.depth": 2,
    "model.heads": 2,
    "model.pool_images": 8,
    "training.global_batch": 16,
    "training.warmup_steps": 2,
    "training.decay_steps": 40,
    "loop.steps": 4,
    "loop.log_every": 2,
    "loop.checkpoint_every": 2,
    "sampling.steps": 3,
    "sampling.batch": 4,
    "machine.device": "cpu",
}
_DDPM: dict[str, Any] = {
    "objective": {"kind": "ddpm", "timesteps": 50},
    "model.out_channels": 2,
    "sampling.sampler": "ancestral",
}


def changed(config: RunConfig, changes: dict[str, Any]) -> RunConfig:
    """A config with fields replaced all at once; names are dotted, values as in its text."""
    content = to_dict(config)
    for name, value in changes.items():
        *groups, field = name.split(".")
        place = content
        for group in groups:
            place = place[group]
        place[field] = value
    return from_dict(content, where="self-test")


def latents(folder: Path) -> Path:
    """A folder with a few random latents and their labels."""
    folder.mkdir(exist_ok=True)
    values = normals(0, "selftest/latents", 0, SAMPLES, (1, 8, 8)).clamp(-3, 3)
    np.save(folder / "latents.npy", values.numpy())
    np.save(folder / "labels.npy", np.arange(SAMPLES) % 10)
    return folder


def tiny_run(
    folder: Path, router: str = "batch_pool", objective: str = "flow", **changes: Any
) -> RunConfig:
    """A run of width 16 on latents below `folder`; `changes` are named `group__field`."""
    own: dict[str, Any] = {"model.router": ROUTERS[router]}
    own["data"] = {"kind": "folder", "path": str(latents(folder / "data")), "flip": False}
    own |= _DDPM if objective == "ddpm" else {}
    own |= {name.replace("__", "."): value for name, value in changes.items()}
    return changed(preset("digits-diffmoe"), _SMALL | own)


def trained_until(config: RunConfig, path: Path, *stops: int) -> dict[str, Any]:
    """The newest state after training up to each stop by a command of its own."""
    for stop in stops:
        train(changed(config, {"loop.steps": stop}), path, progress=False)
    return newest_state(path)


def begin_training(config: RunConfig, path: Path, **options: Any) -> Child:
    """A child that trains, and has nothing to answer but how that ended."""
    return begin(lambda: train(config, path, progress=False, **options) and None)


def newest_state(path: Path) -> dict[str, Any]:
    """All that the newest checkpoint of a run holds: tensors, counters, step and samples."""
    found = newest_checkpoint(RunFolder(path).checkpoints)
    if found is None:
        return {}
    checkpoint, manifest = found
    tensors = {f"{p}/{n}": t for p in PARTS for n, t in read_part(checkpoint, p).items()}
    counted = {f"state/{name}": value for name, value in manifest.state.items()}
    return tensors | counted | {"step": manifest.step, "samples": manifest.samples}


def different(left: dict[str, Any], right: dict[str, Any]) -> list[str]:
    """The names of what is not bit for bit the same in two states."""
    return [n for n in {**left, **right} if not _same(left.get(n), right.get(n))]


def _same(one: Any, other: Any) -> bool:
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return type(one) is type(other) and bool(one == other)
    bits = [value.detach().contiguous().view(-1).view(torch.uint8) for value in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*bits)


@torch.no_grad()
def lively_network(config: RunConfig, seed: int) -> DiT:
    """A network that behaves as trained ones do: nothing is zero, thresholds are measured."""
    model = build_model(config.model, seed).requires_grad_(False).eval()
    scale = 1.2 / math.sqrt(config.model.width)
    for name, parameter in model.named_parameters():
        drawn = normals(seed, f"selftest/{name}", 0, 1, tuple(parameter.shape))[0]
        parameter.copy_(scale * drawn)
    shape = (config.model.channels, config.model.input_size, config.model.input_size)
    x = normals(seed, "selftest/images", 0, 32, shape)
    labels = torch.arange(32) % config.model.num_classes
    records = model(x, torch.linspace(0, 1, 32), labels, RoutingPlan(selection="train")).routing
    for layer, record in zip(model.moe_layers, records, strict=True):
        layer.router.update(layer.router.statistics(record))
    return model
