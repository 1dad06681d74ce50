"""Precision and recall of samples: who lies among whose neighbours."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffmoe.errors import ConfigError, DataError

__all__ = ["PrecisionRecall", "precision_recall"]

_HELD = 2**24  # squared distances held at a time, 128 MiB; a block of them needs about three times
_TOLERANCE = 1e-12  # of the two squared lengths: rounding must not push a copy off a ball of size 0


@dataclass(frozen=True)
class PrecisionRecall:
    """How much of the samples is real, and how much of what is real is in the samples."""

    precision: float  # share of samples within the reference's neighbourhoods
    recall: float  # share of the reference within the samples' neighbourhoods


def precision_recall(
    samples: Float[Tensor, "N F"], reference: Float[Tensor, "M F"], neighbours: int = 3
) -> PrecisionRecall:
    """Precision and recall of samples (Kynkaanniemi et al. 2019, equations 1 and 2).

    A set's manifold is the union of balls, one around each image that reaches to its k-th nearest
    other image and includes its border. Distances are float64; one that exceeds a radius by less
    than 1e-12 of the squared lengths, measured from the reference's mean, counts as on the border.
    """
    _check(samples, reference, neighbours)
    centre = reference.double().mean(dim=0)
    fake, real = samples.double() - centre, reference.double() - centre
    return PrecisionRecall(
        precision=float(_within(fake, real, _squared_radii(real, neighbours)).double().mean()),
        recall=float(_within(real, fake, _squared_radii(fake, neighbours)).double().mean()),
    )


def _squared_radii(features: Float[Tensor, "N F"], neighbours: int) -> Float[Tensor, "N"]:
    """Squared distance of each image to its k-th nearest other one."""
    radii = []
    for start, block in _blocks(features, len(features)):
        distance = _squared_distances(block, features)
        distance.diagonal(start).fill_(torch.inf)
        radii.append(distance.kthvalue(neighbours, dim=1).values)
    return torch.cat(radii)


def _within(
    images: Float[Tensor, "N F"], centres: Float[Tensor, "M F"], radii: Float[Tensor, "M"]
) -> Bool[Tensor, "N"]:
    """Whether each image lies in one of the balls."""
    reach = radii + _TOLERANCE * centres.square().sum(dim=1)
    found = []
    for _, block in _blocks(images, len(centres)):
        slack = _TOLERANCE * block.square().sum(dim=1, keepdim=True)
        found.append((_squared_distances(block, centres) - slack <= reach).any(dim=1))
    return torch.cat(found)


def _blocks(features: Float[Tensor, "N F"], others: int) -> Iterator[tuple[int, Tensor]]:
    """The features in blocks whose distances to `others` fit, each with where it starts."""
    rows = max(1, _HELD // others)
    yield from ((start, features[start : start + rows]) for start in range(0, len(features), rows))


def _squared_distances(x: Float[Tensor, "N F"], y: Float[Tensor, "M F"]) -> Float[Tensor, "N M"]:
    lengths = x.square().sum(dim=1)[:, None] + y.square().sum(dim=1)
    return torch.addmm(lengths, x, y.t(), alpha=-2)


def _check(samples: Tensor, reference: Tensor, neighbours: int) -> None:
    if samples.shape[1] != reference.shape[1]:
        raise ConfigError(
            f"samples have {samples.shape[1]} features and the reference {reference.shape[1]}",
            remedy="compute both with one network",
        )
    if not (samples.isfinite().all() and reference.isfinite().all()):
        raise DataError(
            "features hold values that are not finite and have no neighbours",
            remedy="look for NaN or infinity in the images",
        )
    fewer = min(len(samples), len(reference))
    if not 1 <= neighbours < fewer:
        raise ConfigError(
            f"neighbours {neighbours} cannot be found among {fewer} images",
            remedy=f"give 1 to {fewer - 1}" if fewer > 1 else "give more images",
        )
