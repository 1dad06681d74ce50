"""The machine a plan is for, and how fast it is taken to be."""

from dataclasses import dataclass, replace

import torch

from diffmoe.config import RunConfig
from diffmoe.device import machine_of, resolve_device
from diffmoe.experiments.speed.measure import measure_ceilings

__all__ = ["PlannedMachine", "measured", "usual_peak"]

# Dense, without sparsity: NVIDIA's data sheet of the H100 SXM.
_H100 = {"bfloat16": 989e12, "float32": 67e12}


@dataclass(frozen=True, kw_only=True)
class PlannedMachine:
    """Equal GPUs in equal nodes; the rates are assumptions, and named in every plan."""

    gpus: int
    memory: float  # bytes of one GPU
    per_node: int = 8  # GPUs
    peak: float  # operations a second of one GPU, in matrix products
    peak_source: str
    efficiency: float = 0.35  # share of the peak that a step reaches
    bandwidth: float = 300e9  # bytes a second of one GPU to others of its node
    network: float = 40e9  # bytes a second of one GPU to other nodes
    reserve: float = 0.05  # share of the memory that is left to drivers, kernels and gaps

    @property
    def room(self) -> float:
        """Bytes that a step may take."""
        return (1 - self.reserve) * self.memory

    def seconds(self, sent: float, span: int) -> float:
        """How long one GPU sends so many bytes among so many consecutive processes."""
        return sent / (self.bandwidth if span <= self.per_node else self.network)


def usual_peak(config: RunConfig) -> tuple[float, str]:
    """The published peak of an H100 SXM in the config's precision, and where it is from."""
    precision = config.training.precision
    return _H100[precision], f"published dense {precision} peak of an H100 SXM"


def measured(machine: PlannedMachine, config: RunConfig) -> PlannedMachine:
    """The machine with the peak of a large matrix product on the device at hand."""
    device = resolve_device(config.machine.device)
    low = config.training.precision == "bfloat16"
    ceilings = measure_ceilings(device, torch.bfloat16 if low else torch.float32)
    name = machine_of(device)["device_name"]
    source = f"measured here in {config.training.precision}, {name}"
    return replace(machine, peak=ceilings.operations, peak_source=source)
