"""scikit-learn's 1,797 scans of hand-written digits, and a split of them for classifiers."""

from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffmoe.data.fingerprint import fingerprint
from diffmoe.errors import ConfigError
from diffmoe.randomness import permutation

__all__ = ["DigitsSource", "Split", "digits_split"]

WHITE = 16  # the largest grey value of a scan
HELD_OUT = 4  # one scan in so many is held out


class DigitsSource:
    """The scans as (1, 8, 8) images in [-1, 1], held in memory; they are never mirrored."""

    encoded = False

    def __init__(self) -> None:
        scans, self.labels = _load()
        self.images: Float[Tensor, "N 1 8 8"] = scans.unsqueeze(1) * (2 / WHITE) - 1
        self.class_names = tuple(str(digit) for digit in range(10))
        self.shape = (1, 8, 8)

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of labels and scans."""
        return fingerprint("digits", self.labels, self.images.numpy().tobytes())

    def load(self, index: int, flip: bool) -> Float[Tensor, "1 8 8"]:
        """One scan; a mirrored digit is no digit, so `flip` changes nothing."""
        return self.images[index]


class Split(NamedTuple):
    """Indices of scans to fit a classifier on, and of those held out to judge it."""

    train: Int[Tensor, " T"]
    held_out: Int[Tensor, " H"]


def digits_split() -> Split:
    """The same quarter of every digit's scans held out on every call."""
    labels = _load()[1]
    order = torch.from_numpy(permutation(0, "digits/split", len(labels)))
    by_class = [order[labels[order] == digit] for digit in range(10)]
    held_out = torch.cat([scans[: len(scans) // HELD_OUT] for scans in by_class])
    train = torch.cat([scans[len(scans) // HELD_OUT :] for scans in by_class])
    return Split(train.sort().values, held_out.sort().values)


def _load() -> tuple[Float[Tensor, "N 8 8"], Int[Tensor, " N"]]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError(
            "the digits come with scikit-learn, which is not installed",
            remedy="pip install 'diffmoe[demo]'",
        ) from error
    digits = load_digits()
    return torch.from_numpy(digits.images).float(), torch.from_numpy(digits.target).long()
