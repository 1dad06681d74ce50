"""Strict sampling: an image has the same bits whatever its batch, mates, order and threads.

Three things make it so, on CPUs: one thread, as several divide a tensor where vectors do not end;
products on at least 16 rows, which the model sees to anyway; and the mode of MKL in which the place
of a number in memory does not count. What they give is tried before the first image is drawn.
"""

import contextlib
import os
import weakref
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from diffmoe.config import SamplingConfig
from diffmoe.errors import ConfigError
from diffmoe.model import DiT, some_conditions
from diffmoe.sampling.conditions import some_of
from diffmoe.sampling.policy import sampling_plan

__all__ = ["is_strict", "refuse_strict", "refuse_unsteady", "strict_facts", "under_strict"]

_SWITCH, _MODE, _KERNELS = "DIFFMOE_STRICT", "MKL_CBWR", "AVX2,STRICT"
_IMAGES, _CONDITIONS = (1, 2, 4), (1, 2, 17, 46)  # tried in one batch, and in batches of so many


def is_strict() -> bool:
    """Whether DIFFMOE_STRICT is set, as `--strict` does it."""
    return os.environ.get(_SWITCH, "") not in ("", "0")


def strict_facts() -> dict[str, str]:
    """What a stamp says of the mode; nothing where it is off."""
    mode = os.environ.get(_MODE, "unset")
    return {"strict": f"one thread, {_MODE} {mode}"} if is_strict() else {}


@contextlib.contextmanager
def under_strict() -> Iterator[None]:
    """One thread while it lasts, where the mode is on."""
    before = torch.get_num_threads()
    if is_strict():
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if is_strict():
            torch.set_num_threads(before)


def refuse_strict(settings: SamplingConfig, device: torch.device) -> None:
    """Raise ConfigError where the mode is on and the device or the settings cannot have it."""
    if not is_strict():
        return
    _refuse_device(device)
    if settings.selection == "pool":
        raise ConfigError(
            "in sampling.selection pool images compete with their mates, strict or not",
            remedy="use selection token, gate or image",
        )
    if settings.shared_step:
        raise ConfigError(
            "sampling.shared_step makes an image depend on its mates, strict or not",
            remedy="leave it out",
        )


def _refuse_device(device: torch.device) -> None:
    if device.type != "cpu":
        raise ConfigError(
            f"strict sampling is for CPUs, not for {device.type}, whose kernels change with the"
            " number of images",
            remedy="say --device cpu, or leave strict out",
        )


def _refuse_double(model: DiT) -> None:
    if any(parameter.dtype == torch.float64 for parameter in model.parameters()):
        raise ConfigError(
            "strict sampling is for models in float32 or bfloat16, not in float64",
            remedy="cast the model with .float(), or leave strict out",
        )


_TRIED: weakref.WeakKeyDictionary[DiT, set[object]] = weakref.WeakKeyDictionary()


def refuse_unsteady(
    model: DiT, network: DiT, settings: SamplingConfig, thresholds: Tensor | None
) -> None:
    """Raise ConfigError where the mode is on and images of `network` differ alone and together.

    It is tried on noise, once for each way to draw from `model`, of which `network` is a cast.
    Where images compete by the settings there is nothing to try.
    """
    if not is_strict():
        return
    _refuse_device(model.positions.device)
    _refuse_double(model)
    if settings.selection == "pool" or settings.shared_step:
        return
    way = (settings.selection, settings.policy, settings.max_capacity, settings.precision)
    tried = _TRIED.setdefault(model, set())
    if way in tried:
        return
    low = torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.precision == "bfloat16")
    with under_strict(), torch.inference_mode(), low:
        steady = _steady_conditions(network) and _steady_images(network, settings, thresholds)
    if not steady:
        raise ConfigError(
            "strict sampling does not hold here: on noise, images alone and in a batch differ in"
            f" their last bits with {_MODE} {os.environ.get(_MODE, 'unset')}",
            remedy=f"set {_SWITCH}=1 and {_MODE}={_KERNELS} before Python starts, or leave strict"
            " out",
        )
    tried.add(way)


def _steady_conditions(network: DiT) -> bool:
    """Whether what a condition does to an image is the same in any batch."""
    number = sum(_CONDITIONS)
    times = torch.linspace(0, 1000, number)
    told = some_conditions(network.config, number)

    def conditions(part: slice) -> Tensor:
        given = network.conditioned(times[part], some_of(told, part))
        modulated = [*network.final_modulate(given.vector)]
        text = [] if given.text is None else [given.text.flatten(1)[:, None]]
        return torch.cat(modulated + text, dim=-1)

    return _is_steady(conditions, _CONDITIONS)


def _steady_images(network: DiT, settings: SamplingConfig, thresholds: Tensor | None) -> bool:
    """Whether the network predicts the same of an image in any batch."""
    config, number = network.config, sum(_IMAGES)
    shape = (number, config.channels, config.input_size, config.input_size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    times = torch.linspace(0, 1000, number)
    told = some_conditions(config, number)

    def predictions(part: slice) -> Tensor:
        images = len(times[part])
        plan = sampling_plan(network, settings, images, thresholds=thresholds)
        return network(noise[part], times[part], some_of(told, part), plan).sample

    return _is_steady(predictions, _IMAGES)


def _is_steady(compute: Callable[[slice], Tensor], sizes: tuple[int, ...]) -> bool:
    """Whether parts of so many give together the bits of the whole."""
    parts, first = [], 0
    for size in sizes:
        parts.append(compute(slice(first, first + size)))
        first += size
    return torch.equal(torch.cat(parts), compute(slice(0, first)))
