"""Inception score and kernel distance of features, in float64."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffmoe.errors import ConfigError, DataError
from diffmoe.randomness import permutation

__all__ = ["Estimate", "InceptionScoreSums", "inception_score", "kernel_distance"]

_SUMS_TO_ONE = 1e-3  # what probabilities in half precision keep of it


@dataclass(frozen=True)
class Estimate:
    """Mean of a number over parts of the samples, and its deviation between the parts."""

    mean: float
    deviation: float  # of the parts, divided by their number, as the field reports it

    @classmethod
    def of(cls, values: list[float]) -> "Estimate":
        """The estimate that several parts give."""
        return cls(float(np.mean(values)), float(np.std(values)))


def inception_score(
    probabilities: Float[Tensor, "N K"], *, splits: int = 10, seed: int = 2020
) -> Estimate:
    """exp(mean KL(p(y|x) | p(y))) over splits of the samples (Salimans et al. 2016).

    It depends on which samples share a split, and files lie in the order of their classes: the
    seed shuffles them. Probabilities of the ADM protocol are `InceptionFeatures.probabilities`.
    """
    _check_probabilities(probabilities)
    count = len(probabilities)
    _check_splits(splits, count)
    order = torch.from_numpy(permutation(seed, "inception score", count)).to(probabilities.device)
    parts = (order[a:b] for a, b in _edges(count, splits))
    return Estimate.of([_score_of_split(probabilities[part].double()) for part in parts])


def _score_of_split(probabilities: Float[Tensor, "N K"]) -> float:
    marginal = probabilities.mean(dim=0)
    own = torch.special.xlogy(probabilities, probabilities).sum(dim=1)
    shared = torch.special.xlogy(probabilities, marginal).sum(dim=1)
    return float((own - shared).mean().exp())


def _edges(count: int, splits: int) -> Iterator[tuple[int, int]]:
    """Where each split starts and ends in the shuffled row of samples."""
    return pairwise(count * i // splits for i in range(splits + 1))


def _check_splits(splits: int, count: int) -> None:
    if not 1 <= splits <= count:
        raise ConfigError(
            f"splits {splits} cannot be made of {count} samples", remedy=f"give 1 to {count}"
        )


def _check_probabilities(probabilities: Float[Tensor, "N K"]) -> None:
    wrong = (probabilities.double().sum(dim=1) - 1).abs().max() if len(probabilities) else 0
    if not wrong <= _SUMS_TO_ONE or (probabilities < 0).any():
        raise ConfigError(
            f"probabilities are negative or their sums differ from 1 by {float(wrong):.3g}",
            remedy="give the softmax of the logits",
        )


class InceptionScoreSums:
    """The sums behind an inception score, of samples that arrive in parts and in any order.

    It gives the number that `inception_score` gives of all samples at once and holds a few float64
    sums of each split, whatever the number of samples: the seed decides at once who is in which.
    """

    def __init__(self, count: int, *, splits: int = 10, seed: int = 2020) -> None:
        _check_splits(splits, count)
        order = torch.from_numpy(permutation(seed, "inception score", count))
        self._split: Int[Tensor, " N"] = torch.empty(count, dtype=torch.int64)
        for number, (first, end) in enumerate(_edges(count, splits)):
            self._split[order[first:end]] = number
        self._seen: Bool[Tensor, " N"] = torch.zeros(count, dtype=torch.bool)
        self._probability: Float[Tensor, "S K"] | None = None  # sum of p; None while K is open
        self._information: Float[Tensor, " S"] = torch.zeros(splits, dtype=torch.float64)

    def add(self, start: int, probabilities: Float[Tensor, "B K"]) -> None:
        """Take in samples `start`, `start` + 1, ...; DataError for one that is in already."""
        _check_probabilities(probabilities)
        seen, end = torch.zeros_like(self._seen), start + len(probabilities)
        if not 0 <= start <= end <= len(seen):
            raise ConfigError(
                f"samples {start} to {end - 1} are not among {len(seen)}",
                remedy="say how many samples there are",
            )
        seen[start:end] = True
        p, split = probabilities.double().cpu(), self._split[start:end]
        zeros = torch.zeros(len(self._information), p.shape[1], dtype=torch.float64)
        information = torch.special.xlogy(p, p).sum(dim=1)
        self._take(
            seen,
            zeros.index_add(0, split, p),
            torch.zeros_like(self._information).index_add(0, split, information),
        )

    def estimate(self) -> Estimate:
        """The score; raises DataError as long as samples are missing."""
        missing = int((~self._seen).sum())
        if missing or self._probability is None:
            raise DataError(
                f"{missing} of {len(self._seen)} samples are missing from the inception score",
                remedy="give each sample once",
            )
        size = self._split.bincount(minlength=len(self._information)).double()
        marginal = self._probability / size[:, None]
        shared = torch.special.xlogy(marginal, marginal).sum(dim=1)
        return Estimate.of((self._information / size - shared).exp().tolist())

    def _take(
        self,
        seen: Bool[Tensor, "N"],
        probability: Float[Tensor, "S K"],
        information: Float[Tensor, "S"],
    ) -> None:
        own = torch.zeros_like(probability) if self._probability is None else self._probability
        if own.shape != probability.shape:
            raise ConfigError(
                f"probabilities of {probability.shape[1]} and of {own.shape[1]} classes have no"
                " inception score together",
                remedy="compute all with one network",
            )
        if twice := int((self._seen & seen).sum()):
            raise DataError(
                f"{twice} samples would count twice in the inception score",
                remedy="give each sample once",
            )
        self._seen = self._seen | seen
        self._probability = own + probability
        self._information = self._information + information


def kernel_distance(
    samples: Float[Tensor, "N F"],
    reference: Float[Tensor, "M F"],
    *,
    subsets: int = 100,
    size: int = 1000,
    seed: int = 2020,
) -> Estimate:
    """Kernel Inception distance: unbiased MMD^2 with the kernel (x.y / F + 1)^3 over subsets.

    Each subset draws `size` of both sets without repetition (Binkowski et al. 2018, section 4). It
    may be negative: without a bias it scatters around 0 for equal distributions.
    """
    _check_kernel_distance(samples, reference, subsets, size)
    return Estimate.of(
        [
            _squared_discrepancy(
                _subset(samples, size, seed, f"kernel distance/{i}/samples"),
                _subset(reference, size, seed, f"kernel distance/{i}/reference"),
            )
            for i in range(subsets)
        ]
    )


def _check_kernel_distance(samples: Tensor, reference: Tensor, subsets: int, size: int) -> None:
    if samples.shape[1] != reference.shape[1]:
        raise ConfigError(
            f"samples have {samples.shape[1]} features and the reference {reference.shape[1]}",
            remedy="compute both with one network",
        )
    fewer = min(len(samples), len(reference))
    if not 2 <= size <= fewer:
        raise ConfigError(
            f"size {size} is no size of a subset of {fewer} images", remedy=f"give 2 to {fewer}"
        )
    if subsets < 1:
        raise ConfigError(f"subsets {subsets} is not positive", remedy="give 1 or more")


def _subset(features: Float[Tensor, "N F"], size: int, seed: int, stream: str) -> Tensor:
    chosen = torch.from_numpy(permutation(seed, stream, len(features))[:size])
    return features[chosen.to(features.device)].double()


def _squared_discrepancy(x: Float[Tensor, "S F"], y: Float[Tensor, "S F"]) -> float:
    """MMD^2 as a U-statistic within the sets (Gretton et al. 2012, equation 3)."""
    within = _off_diagonal_mean(_kernel(x, x)) + _off_diagonal_mean(_kernel(y, y))
    return float(within - 2 * _kernel(x, y).mean())


def _kernel(x: Float[Tensor, "S F"], y: Float[Tensor, "S F"]) -> Float[Tensor, "S S"]:
    return (x @ y.t() / x.shape[1] + 1) ** 3


def _off_diagonal_mean(kernel: Float[Tensor, "S S"]) -> Float[Tensor, ""]:
    size = len(kernel)
    return (kernel.sum() - kernel.trace()) / (size * (size - 1))
