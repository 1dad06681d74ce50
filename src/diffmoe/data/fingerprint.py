"""What a set of samples is, told in one line and cheap enough for a million of them."""

import hashlib

import numpy as np
from jaxtyping import Int
from torch import Tensor

__all__ = ["fingerprint", "spread"]

SAMPLED = 64  # samples whose content counts, whatever their number


def fingerprint(kind: str, labels: Int[Tensor, " N"], *content: bytes) -> str:
    """The number of samples, their kind, and a hash of the labels and of what stands for them."""
    digest = hashlib.sha256()
    for part in (labels.numpy().astype("<i8").tobytes(), *content):
        digest.update(len(part).to_bytes(8, "little"))  # where one part ends belongs to the hash
        digest.update(part)
    return f"{len(labels)} {kind} sha256:{digest.hexdigest()[:16]}"


def spread(count: int) -> list[int]:
    """At most `SAMPLED` indices, evenly spread over `count`, both ends among them."""
    places = np.linspace(0, count - 1, min(count, SAMPLED))
    return [int(place) for place in places.round()]
