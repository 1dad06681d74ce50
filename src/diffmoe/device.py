"""Where tensors live: the one place that turns a device's name into a device."""

import resource

import torch

from diffmoe.errors import ConfigError

__all__ = ["peak_memory", "resolve_device"]


def resolve_device(name: str) -> torch.device:
    """The device `name` means; `auto` is the first accelerator, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"machine.device {name} cannot be used here",
            remedy="use auto or cpu, or install a torch build for this accelerator",
        ) from error
    return device


def peak_memory(device: torch.device) -> float:
    """Largest memory used so far, GiB: of the accelerator, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
