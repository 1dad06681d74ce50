"""Inception score and kernel distance of features, in float64."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffmoe.errors import ConfigError
from diffmoe.randomness import permutation

__all__ = ["Estimate", "inception_score", "kernel_distance"]

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
    if not 1 <= splits <= count:
        raise ConfigError(
            f"splits {splits} cannot be made of {count} samples", remedy=f"give 1 to {count}"
        )
    order = torch.from_numpy(permutation(seed, "inception score", count)).to(probabilities.device)
    edges = [count * i // splits for i in range(splits + 1)]
    parts = (order[a:b] for a, b in pairwise(edges))
    return Estimate.of([_score_of_split(probabilities[part].double()) for part in parts])


def _score_of_split(probabilities: Float[Tensor, "N K"]) -> float:
    marginal = probabilities.mean(dim=0)
    own = torch.special.xlogy(probabilities, probabilities).sum(dim=1)
    shared = torch.special.xlogy(probabilities, marginal).sum(dim=1)
    return float((own - shared).mean().exp())


def _check_probabilities(probabilities: Float[Tensor, "N K"]) -> None:
    wrong = (probabilities.double().sum(dim=1) - 1).abs().max() if len(probabilities) else 0
    if not wrong <= _SUMS_TO_ONE or (probabilities < 0).any():
        raise ConfigError(
            f"probabilities are negative or their sums differ from 1 by {float(wrong):.3g}",
            remedy="give the softmax of the logits",
        )


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
