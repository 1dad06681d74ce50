"""Frechet distance of two sets of features, in float64 throughout."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffmoe.errors import ConfigError

__all__ = ["Moments", "frechet_distance", "principal_components"]


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of a set of features."""

    mean: Float[Tensor, "F"]
    covariance: Float[Tensor, "F F"]

    @classmethod
    def of(cls, features: Float[Tensor, "N F"]) -> "Moments":
        """The moments of features, with the unbiased covariance."""
        if features.shape[0] < 2:
            raise ConfigError(
                f"{len(features)} images are too few for a covariance", remedy="give two or more"
            )
        wide = features.double()
        return cls(wide.mean(dim=0), torch.cov(wide.t()).reshape(wide.shape[1], wide.shape[1]))


def frechet_distance(first: Moments, second: Moments) -> float:
    """|mu1 - mu2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Dowson & Landau 1982).

    The trace of the root is the sum of the singular values of C1^(1/2) C2^(1/2). No root is taken
    of what rounding left of a zero, so it is exact when a covariance is rank-deficient, too.
    """
    roots = _square_root(first.covariance) @ _square_root(second.covariance)
    inner = torch.linalg.svdvals(roots).sum()
    shift = (first.mean - second.mean).square().sum()
    traces = first.covariance.trace() + second.covariance.trace()
    return max(0.0, float(shift + traces - 2 * inner))


def _square_root(matrix: Float[Tensor, "F F"]) -> Float[Tensor, "F F"]:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.t()


def principal_components(
    reference: Float[Tensor, "N F"], count: int
) -> tuple[Float[Tensor, "F"], Float[Tensor, "F K"]]:
    """Centre and the `count` directions of largest variance of a reference set."""
    centre = reference.double().mean(dim=0)
    _, _, directions = torch.linalg.svd(reference.double() - centre, full_matrices=False)
    return centre, directions[:count].t()
