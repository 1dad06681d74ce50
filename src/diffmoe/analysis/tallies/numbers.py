"""The few statistics that findings are made of."""

import numpy as np
from jaxtyping import Float, Int

from diffmoe.analysis.tallies.archive import Described

__all__ = [
    "clustered_error",
    "counter",
    "deviation",
    "information",
    "rank_correlation",
    "ratio",
    "total_bytes",
]

_DIGITS = 9  # values that agree to so many decimals differ by rounding, if at all


def counter(*shape: int) -> Int[np.ndarray, "..."]:
    """Zeros to count in."""
    return np.zeros(shape, np.int64)


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`part / whole`; NaN where the whole is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole != 0)


def deviation(total: np.ndarray, squares: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Standard deviation of samples from their sums; NaN where there are fewer than two."""
    spread = np.maximum(squares - ratio(total, number) * total, 0.0)
    return np.sqrt(ratio(spread, np.where(number > 1, number - 1, 0)))


def clustered_error(
    part: Float[np.ndarray, "N *rest"], whole: Float[np.ndarray, "N *rest"]
) -> Float[np.ndarray, "*rest"]:
    """Standard error of sum(part) / sum(whole) over N independent clusters; NaN of fewer than two.

    The linearised error of a ratio (Cochran, Sampling Techniques, Sec. 6.3): of clusters of one
    each it is the deviation over the root of their number. Clusters whose whole is 0 have no part.
    """
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    number, total = (whole != 0).sum(axis=0), whole.sum(axis=0)
    residual = part - ratio(part.sum(axis=0), total) * whole
    spread = np.square(residual).sum(axis=0)
    return ratio(np.sqrt(ratio(spread * number, np.where(number > 1, number - 1, 0))), total)


def _ranks(values: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Places in rising order, from 1; equal values share the mean of their places."""
    _, place, times = np.unique(np.round(values, _DIGITS), return_inverse=True, return_counts=True)
    return (np.cumsum(times) - (times - 1) / 2)[place]


def rank_correlation(one: Float[np.ndarray, "n"], other: Float[np.ndarray, "n"]) -> float:
    """Spearman's correlation; NaN of fewer than three pairs, or where all values are equal."""
    if len(one) < 3:
        return float("nan")
    x, y = _ranks(one), _ranks(other)
    x, y = x - x.mean(), y - y.mean()
    norm = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / norm) if norm else float("nan")


def information(counts: Int[np.ndarray, "A L E"]) -> Float[np.ndarray, "L"]:
    """Mutual information, in bits, of what A counts and the expert, for each layer.

    The plug-in estimate, which is never below 0 and too large by about (A - 1)(E - 1) / (2 N ln 2)
    for N independent pairs; NaN for a layer without pairs.
    """
    joint = ratio(counts, counts.sum(axis=(0, 2), keepdims=True))
    apart = joint.sum(axis=2, keepdims=True) * joint.sum(axis=0, keepdims=True)
    gain = np.log2(ratio(joint, apart), out=np.zeros_like(joint), where=joint > 0)
    found = (joint * gain).sum(axis=(0, 2))
    return np.where(np.isnan(found), found, np.maximum(found, 0.0))


def total_bytes(arrays: dict[str, Described]) -> int:
    """Bytes of the arrays of a tally."""
    return sum(one.values.nbytes for one in arrays.values())
