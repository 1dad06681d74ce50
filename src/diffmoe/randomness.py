"""Counter-based random numbers: each value is a function of (seed, stream, row), never of history.

Row n of a stream is the same whether it is drawn alone or inside any block, so neither the
micro-batch, the number of processes nor a resume changes what sample n sees.
"""

import hashlib

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["normals", "permutation", "uniforms"]

_WORDS_PER_COUNT = 4  # Philox-4x64 yields four 64-bit words for each counter value


def _philox(seed: int, stream: str, *, advance: int = 0) -> np.random.Generator:
    digest = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=16).digest()
    bits = np.random.Philox(key=np.frombuffer(digest, dtype=np.uint64))
    return np.random.Generator(bits.advance(advance))


def _doubles(seed: int, stream: str, start: int, count: int, width: int) -> np.ndarray:
    per_row = -(-width // _WORDS_PER_COUNT)
    generator = _philox(seed, stream, advance=start * per_row)
    return generator.random((count, per_row * _WORDS_PER_COUNT))[:, :width]


def uniforms(
    seed: int, stream: str, start: int, count: int, width: int = 1
) -> Float[Tensor, "count width"]:
    """Rows `start .. start + count` of a stream of numbers uniform in [0, 1), float32."""
    values = _doubles(seed, stream, start, count, width)
    return torch.from_numpy(values).to(torch.float32).clamp_(max=1 - 2**-24)


def normals(
    seed: int, stream: str, start: int, count: int, shape: tuple[int, ...]
) -> Float[Tensor, "count *shape"]:
    """Rows `start .. start + count` of a stream of standard normal arrays, float32.

    Box-Muller spends a fixed number of uniforms on each value; a rejection method would
    let the position of row n depend on the rows before it.
    """
    size = int(np.prod(shape))
    half = -(-size // 2)
    values = torch.from_numpy(_doubles(seed, stream, start, count, 2 * half))
    radius = (-2.0 * torch.log1p(-values[:, :half])).sqrt_()
    angle = values[:, half:] * (2.0 * torch.pi)
    both = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :size]
    return both.to(torch.float32).reshape(count, *shape)


def permutation(seed: int, stream: str, length: int) -> np.ndarray:
    """A permutation of `range(length)` that depends on (seed, stream) only."""
    return _philox(seed, stream).permutation(length)
