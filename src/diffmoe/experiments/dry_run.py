"""What a run would need, without data, accelerator or weights."""

from dataclasses import dataclass

from diffmoe.config import RunConfig
from diffmoe.experiments.planning import one_process
from diffmoe.model import activated_parameters, count_parameters

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

    Of one process. What a step holds at most is counted on fake tensors, but for what an operator
    needs within itself.
    """
    total = count_parameters(config.model).total
    return Needs(
        parameters=total,
        activated=activated_parameters(config.model),
        memory=one_process(config).parts,
        checkpoint=4 * _BYTES * total,
        checkpoints=config.loop.keep_checkpoints + 1,
        milestones=config.loop.keep_every is not None,
    )
