"""Where tensors live: the one place that turns a device's name into a device."""

import ctypes
import os
import platform
import resource
import sys
import warnings
from pathlib import Path

import torch

from diffmoe.errors import ConfigError

__all__ = [
    "is_first_process",
    "keep_freed_memory",
    "machine_of",
    "peak_memory",
    "resolve_device",
]

_PEAK_UNIT = 1 if sys.platform == "darwin" else 2**10  # bytes of one unit of ru_maxrss


def resolve_device(name: str) -> torch.device:
    """The device `name` means; `auto` is an accelerator if there is one, else the CPU.

    Of several accelerators a process takes the first, or the one of its LOCAL_RANK where a
    launcher such as torchrun has set that.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and os.environ.get("LOCAL_RANK"):
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that torch is about to forget
            device = torch.device(name)
        (torch.ones(1, device=device) + 1).item()  # `meta` makes tensors and cannot compute
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ConfigError(
            f"machine.device {name} cannot be used here",
            remedy="use auto or cpu, or install a torch build for this accelerator",
        ) from error
    return device


def machine_of(device: torch.device) -> dict[str, str]:
    """The kind of a device and its name, as they stand beside what it has computed."""
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else _processor()
    return {"device": device.type, "device_name": name}


def _processor() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def is_first_process() -> bool:
    """Whether this is the only process of its job, or the first that a launcher has started."""
    return os.environ.get("RANK", "0") in ("", "0")


def peak_memory(device: torch.device) -> float:
    """Largest memory used so far, GiB: of the accelerator, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _PEAK_UNIT / 2**30


_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # parameters of glibc's mallopt


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, where it can be told to (glibc).

    By default it gives large tensors back to the kernel, which hands them out again page by page,
    each filled with zeros: with many experts, a tenth of a training step on a CPU. It holds for
    the whole process, so programs and measurements call it and nothing else does.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
