"""Frechet distance of two sets of features, in float64 throughout, and its bias."""

import torch
from jaxtyping import Float
from torch import Tensor

from diffmoe.errors import ConfigError, DataError
from diffmoe.evaluation.moments import Moments
from diffmoe.randomness import normals

__all__ = [
    "Moments",
    "frechet_bias",
    "frechet_caution",
    "frechet_distance",
    "principal_components",
]

_DRAWN = 2048  # normal samples held at a time


def frechet_distance(first: Moments, second: Moments) -> float:
    """|mu1 - mu2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Dowson & Landau 1982).

    The trace of the root is the sum of the singular values of R1^T R2, where C = R R^T: products
    of roots lose half as many digits as roots of the product. What rounding left of a zero is
    dropped before its root is taken, so it is sound when a covariance is rank-deficient, too.
    """
    if first.mean.shape != second.mean.shape:
        raise ConfigError(
            f"moments of {len(first.mean)} and of {len(second.mean)} features have no distance",
            remedy="compute both with one network",
        )
    second = second.to(first.mean.device)
    roots = _root(first.covariance).t() @ _root(second.covariance)
    inner = torch.linalg.svdvals(roots).sum()
    shift = (first.mean - second.mean).square().sum()
    traces = first.covariance.trace() + second.covariance.trace()
    return max(0.0, float(shift + traces - 2 * inner))


def _root(matrix: Float[Tensor, "F F"]) -> Float[Tensor, "F R"]:
    """R with R R^T = matrix, one column for each eigenvalue above rounding."""
    if not matrix.isfinite().all():
        raise DataError(
            "features hold values that are not finite and have no Frechet distance",
            remedy="look for NaN or infinity in the images",
        )
    values, vectors = torch.linalg.eigh(matrix)
    rounding = len(values) * torch.finfo(values.dtype).eps * values.abs().max()
    kept = values > rounding
    return vectors[:, kept] * values[kept].sqrt()


def frechet_bias(reference: Moments, count: int, seed: int = 0) -> float:
    """The distance of `count` samples drawn from the normal that the reference describes.

    It is what samples lose by being few, found in one draw along the reference's axes. Of many it
    is (5/4 sum_i v_i + 1/2 sum_ij v_i v_j / (v_i + v_j)) / count for variances v along them.
    """
    variances = torch.linalg.eigvalsh(reference.to("cpu").covariance).clamp_min(0)
    drawn = Moments.none(len(variances))
    for start in range(0, count, _DRAWN):
        size = min(_DRAWN, count - start)
        unit = normals(seed, "frechet bias", start, size, (len(variances),))
        drawn = drawn.update(unit.double() * variances.sqrt())
    return frechet_distance(drawn, Moments(torch.zeros_like(variances), variances.diag()))


def frechet_caution(samples: Moments, reference: Moments) -> str:
    """What to say beside a distance whose samples do not outnumber the features, else nothing."""
    count, width = samples.count, len(samples.mean)
    if count is None or count > width:
        return ""
    return (
        f"biased: {count:,} samples vary in at most {max(0, count - 1):,} of {width:,} directions,"
        f" so samples of the reference's own distribution would score about"
        f" {frechet_bias(reference, max(1, count)):.4g} instead of 0; compare equal numbers of"
        f" samples only, better use many more than {width:,}"
    )


def principal_components(
    reference: Float[Tensor, "N F"], count: int
) -> tuple[Float[Tensor, "F"], Float[Tensor, "F K"]]:
    """Centre and the `count` directions of largest variance of a reference set."""
    centre = reference.double().mean(dim=0)
    _, _, directions = torch.linalg.svd(reference.double() - centre, full_matrices=False)
    return centre, directions[:count].t()
