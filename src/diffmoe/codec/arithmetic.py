"""Arithmetic of frozen networks that repeats, and blocks that free a result from its company."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["blocks", "exact_arithmetic"]


def blocks(items: Tensor, size: int) -> Iterator[tuple[Tensor, int]]:
    """The rows in blocks of `size`, the last filled with its last row, and how many count.

    The last digits of what a network gives depend on the number of rows it sees at once.
    """
    for part in items.split(size) if len(items) else ():
        missing = size - len(part)
        filling = part[-1:].expand(missing, *part.shape[1:])
        yield torch.cat([part, filling]) if missing else part, len(part)


@contextmanager
def exact_arithmetic(device: torch.device) -> Iterator[None]:
    """Arithmetic that repeats and is not reduced: neither TensorFloat-32 nor autocast."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False), exact:
            yield
    finally:
        torch.set_float32_matmul_precision(before)
