"""Precision and recall of samples: who lies among whose neighbours."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffmoe.errors import ConfigError, DataError

__all__ = ["PrecisionRecall", "precision_recall"]

_HELD = 2**24  # squared distances held at a time, 128 MiB
_WIDE = 2**22  # values of features held in float64 at a time, 32 MiB, and twice
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
    Beyond its inputs, of any precision, it needs about 0.5 GB, however many images there are.
    """
    _check(samples, reference, neighbours)
    centre = _mean(reference)
    fake, real = _Centred(samples, centre), _Centred(reference, centre)
    return PrecisionRecall(
        precision=float(_within(fake, real, _squared_radii(real, neighbours)).double().mean()),
        recall=float(_within(real, fake, _squared_radii(fake, neighbours)).double().mean()),
    )


class _Centred:
    """Features as they came, and a part of them at a time in float64 around a centre."""

    def __init__(self, features: Float[Tensor, "N F"], centre: Float[Tensor, "F"]) -> None:
        self._features, self._centre = features, centre
        self.squares = torch.cat([part.square().sum(dim=1) for _, part in self.parts()])

    def __len__(self) -> int:
        return len(self._features)

    def parts(self, rows: int = _HELD) -> Iterator[tuple[int, Float[Tensor, "R F"]]]:
        """Parts of so many rows or of what `_WIDE` values hold, each with where it starts."""
        rows = min(rows, _rows(self._features))
        for start in range(0, len(self), rows):  # the centre is float64, so the difference is
            yield start, self._features[start : start + rows] - self._centre


def _mean(features: Float[Tensor, "N F"]) -> Float[Tensor, "F"]:
    """The mean in float64, without a copy of all of them in float64."""
    sums = [part.double().sum(dim=0) for part in features.split(_rows(features))]
    return torch.stack(sums).sum(dim=0) / len(features)


def _squared_radii(features: _Centred, neighbours: int) -> Float[Tensor, "N"]:
    """Squared distance of each image to its k-th nearest other one."""
    radii = torch.empty_like(features.squares)  # small results apart would scatter the large ones
    for start, distance in _squared_distances(features, features):
        distance.diagonal(start).fill_(torch.inf)
        nearest = distance.topk(neighbours, dim=1, largest=False).values
        radii[start : start + len(distance)] = nearest.amax(dim=1)
    return radii


def _within(images: _Centred, centres: _Centred, radii: Float[Tensor, "M"]) -> Bool[Tensor, "N"]:
    """Whether each image lies in one of the balls."""
    reach = radii + _TOLERANCE * centres.squares
    slack = _TOLERANCE * images.squares
    found = torch.empty_like(slack, dtype=torch.bool)
    for start, distance in _squared_distances(images, centres):
        end = start + len(distance)
        found[start:end] = (distance.sub_(slack[start:end, None]) <= reach).any(dim=1)
    return found


def _squared_distances(x: _Centred, y: _Centred) -> Iterator[tuple[int, Float[Tensor, "R M"]]]:
    """Distances of some images to all others, as many as `_HELD` holds, and where they start.

    Those of the next images take their place in memory.
    """
    most = min(len(x), max(1, _HELD // len(y)))
    held = torch.empty(most, len(y), dtype=torch.float64, device=y.squares.device)
    for start, rows in x.parts(most):
        distance = held[: len(rows)]
        torch.add(x.squares[start : start + len(rows), None], y.squares, out=distance)
        for first, columns in y.parts():
            distance[:, first : first + len(columns)].addmm_(rows, columns.t(), alpha=-2)
        yield start, distance


def _rows(features: Tensor) -> int:
    return max(1, _WIDE // max(1, features.shape[1]))


def _check(samples: Tensor, reference: Tensor, neighbours: int) -> None:
    if samples.shape[1] != reference.shape[1]:
        raise ConfigError(
            f"samples have {samples.shape[1]} features and the reference {reference.shape[1]}",
            remedy="compute both with one network",
        )
    parts = (part for features in (samples, reference) for part in features.split(_rows(features)))
    if not all(part.isfinite().all() for part in parts):
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
