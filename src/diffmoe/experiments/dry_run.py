"""What a run would need, without data, accelerator or weights."""

from dataclasses import dataclass

import torch

from diffmoe.config import RunConfig
from diffmoe.model import activated_parameters, count_parameters, saved_bytes

__all__ = ["Needs", "needs"]

_BYTES = 4  # weights, gradients, moments and averages are float32


@dataclass(frozen=True)
class Needs:
    """Parameters, bytes of memory on one device, and bytes of disk."""

    parameters: int
    activated: dict[str, float]  # at C = 1, by Eq. 40 and as executed
    memory: dict[str, int]  # part -> bytes
    checkpoint: int  # bytes of one
    checkpoints: int  # as many are kept at once, and one more while it is written
    milestones: bool  # whether more are kept for good

    @property
    def total(self) -> int:
        """Bytes of all parts together."""
        return sum(self.memory.values())


def needs(config: RunConfig) -> Needs:
    """The parameters and memory of a training step of `config`.

    Activations are counted on fake tensors, so they are exact for what autograd keeps; what an
    operator needs while it runs comes on top.
    """
    total = count_parameters(config.model).total
    low = config.training.precision == "bfloat16"
    activations = saved_bytes(
        config.model,
        config.micro_batch,
        torch.bfloat16 if low else torch.float32,
        config.machine.activation_checkpointing,
    )
    return Needs(
        parameters=total,
        activated=activated_parameters(config.model),
        memory={
            "weights": _BYTES * total,
            "gradients": _BYTES * total,
            "AdamW moments": 2 * _BYTES * total,
            "averaged weights": _BYTES * total,
            f"activations, {config.micro_batch} images": activations,
        },
        checkpoint=4 * _BYTES * total,
        checkpoints=config.loop.keep_checkpoints + 1,
        milestones=config.loop.keep_every is not None,
    )
