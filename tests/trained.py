"""Networks that behave as trained ones do: nothing is zero, thresholds are measured."""

from dataclasses import replace
from typing import Any

import torch

import tiny
from diffmoe.config import DDPMConfig, RouterOptions, RunConfig, SamplingConfig
from diffmoe.model import DiT, RoutingPlan, build_model
from diffmoe.presets import preset

BASE = preset("digits-diffmoe")


def config(router: RouterOptions | None = None, **sampling: Any) -> RunConfig:
    """The demo's run, or its DDPM twin where the sampler asks for one, with few steps."""
    model = BASE.model if router is None else replace(BASE.model, router=router)
    settings = SamplingConfig(**{"steps": 4, "guidance": 1.0, **sampling})
    if settings.sampler in DDPMConfig.samplers:
        model = replace(model, out_channels=2)
        return replace(BASE, model=model, objective=DDPMConfig(), sampling=settings)
    return replace(BASE, model=model, sampling=settings)


def network(run: RunConfig, measured: bool = True) -> DiT:
    """A network of `run`, its thresholds measured on noisy images of all times."""
    made = build_model(run.model, 0).requires_grad_(False)
    generator = torch.Generator().manual_seed(7)
    for name, parameter in made.named_parameters():
        if "modulate" in name or name.startswith("final.") or name.endswith("router.weight"):
            parameter.normal_(std=0.15, generator=generator)
    if measured:
        _measure(made)
    return made


def _measure(model: DiT) -> None:
    config, images = model.config, 33
    x = tiny.normals(images, config.channels, config.input_size, config.input_size).float()
    labels = torch.arange(images) % (config.num_classes + 1)
    times = torch.linspace(0, 1000, images)
    records = model(x, times, labels, RoutingPlan(selection="train")).routing
    for layer, record in zip(model.moe_layers, records, strict=True):
        layer.router.update(layer.router.statistics(record))
