"""Inception score and kernel distance against loops."""

import math
import statistics

import pytest
import torch
from torch import Tensor

import tiny
from diffmoe.errors import ConfigError, DataError
from diffmoe.evaluation.metrics import (
    Estimate,
    InceptionScoreSums,
    inception_score,
    kernel_distance,
)
from diffmoe.randomness import permutation

PROBABILITIES = (2 * tiny.normals(47, 6)).softmax(dim=1)


# --- inception score ----------------------------------------------------------------------------


def score_by_loops(rows: list[list[float]]) -> float:
    classes = range(len(rows[0]))
    marginal = [sum(row[k] for row in rows) / len(rows) for k in classes]
    divergences = [sum(row[k] * math.log(row[k] / marginal[k]) for k in classes) for row in rows]
    return math.exp(sum(divergences) / len(rows))


def test_the_inception_score_is_that_of_loops() -> None:
    order = permutation(2020, "inception score", 47).tolist()
    rows = [PROBABILITIES[i].tolist() for i in order]
    parts = [score_by_loops(rows[47 * i // 10 : 47 * (i + 1) // 10]) for i in range(10)]
    found = inception_score(PROBABILITIES)
    assert found.mean == pytest.approx(statistics.fmean(parts), rel=1e-12)
    assert found.deviation == pytest.approx(statistics.pstdev(parts), rel=1e-12)


def test_one_split_does_not_depend_on_the_order() -> None:
    found = inception_score(PROBABILITIES, splits=1)
    assert found.deviation == 0
    assert found.mean == pytest.approx(score_by_loops(PROBABILITIES.tolist()), rel=1e-12)


def test_samples_in_the_order_of_their_classes_are_shuffled() -> None:
    """In their order each split would hold one class and score 1."""
    sorted_by_class = torch.eye(10, dtype=torch.float64).repeat_interleave(100, dim=0)
    assert inception_score(sorted_by_class).mean > 9
    assert inception_score(sorted_by_class, seed=1) != inception_score(sorted_by_class)


def test_sure_and_varied_scores_the_number_of_classes_and_unsure_scores_one() -> None:
    assert inception_score(torch.eye(7).repeat(3, 1), splits=1).mean == pytest.approx(7)
    assert inception_score(torch.full((40, 8), 1 / 8)).mean == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("values", [tiny.normals(20, 4), torch.full((20, 4), torch.nan)])
def test_what_are_no_probabilities_is_refused(values: Tensor) -> None:
    with pytest.raises(ConfigError, match="give the softmax of the logits"):
        inception_score(values)


@pytest.mark.parametrize(("splits", "count"), [(0, 47), (48, 47), (10, 0)])
def test_splits_that_cannot_be_made_are_refused(splits: int, count: int) -> None:
    with pytest.raises(ConfigError, match=f"splits {splits} cannot be made of {count}"):
        inception_score(PROBABILITIES[:count], splits=splits)


# --- inception score of parts -------------------------------------------------------------------


def summed(parts: list[tuple[int, int]], **how: int) -> InceptionScoreSums:
    sums = InceptionScoreSums(47, **how)
    for start, end in parts:
        sums.add(start, PROBABILITIES[start:end])
    return sums


def assert_equal(found: Estimate, wanted: Estimate) -> None:
    assert found.mean == pytest.approx(wanted.mean, rel=1e-12)
    assert found.deviation == pytest.approx(wanted.deviation, rel=1e-12, abs=1e-13)


@pytest.mark.parametrize(
    "parts",
    [
        [(0, 47)],
        [(i, i + 1) for i in range(47)],
        [(40, 47), (0, 13), (13, 13), (13, 40)],
        [(i, min(i + 8, 47)) for i in range(40, -1, -8)],
    ],
)
@pytest.mark.parametrize("how", [{}, {"splits": 1}, {"splits": 47}, {"splits": 3, "seed": 5}])
def test_parts_in_any_order_give_the_score_of_the_whole(
    parts: list[tuple[int, int]], how: dict[str, int]
) -> None:
    assert_equal(summed(parts, **how).estimate(), inception_score(PROBABILITIES, **how))


def test_sure_probabilities_in_single_precision_are_summed_in_double() -> None:
    sure = torch.eye(7).repeat(30, 1)
    sums = InceptionScoreSums(210)
    for start in range(0, 210, 10):
        sums.add(start, sure[start : start + 10])
    assert_equal(sums.estimate(), inception_score(sure))
    rough = PROBABILITIES.float()
    sums = InceptionScoreSums(47)
    sums.add(0, rough)
    assert_equal(sums.estimate(), inception_score(rough))


def test_a_sample_counts_once() -> None:
    sums = summed([(0, 20)])
    with pytest.raises(DataError, match="3 samples would count twice"):
        sums.add(17, PROBABILITIES[17:30])
    with pytest.raises(DataError, match="27 of 47 samples are missing"):
        sums.estimate()
    sums.add(20, PROBABILITIES[20:])
    assert_equal(sums.estimate(), inception_score(PROBABILITIES))


@pytest.mark.parametrize("start", [-1, 40])
def test_a_sample_outside_of_the_set_is_refused(start: int) -> None:
    with pytest.raises(ConfigError, match="are not among 47"):
        InceptionScoreSums(47).add(start, PROBABILITIES[:10])


def test_what_cannot_be_summed_is_refused() -> None:
    with pytest.raises(ConfigError, match="give the softmax of the logits"):
        InceptionScoreSums(20).add(0, tiny.normals(20, 4))
    with pytest.raises(ConfigError, match="splits 10 cannot be made of 9"):
        InceptionScoreSums(9)
    with pytest.raises(ConfigError, match="of 3 and of 6 classes"):
        summed([(0, 9)]).add(9, torch.full((2, 3), 1 / 3))
    with pytest.raises(DataError, match="47 of 47 samples are missing"):
        InceptionScoreSums(47).estimate()


# --- kernel distance ----------------------------------------------------------------------------


def discrepancy_by_loops(x: list[list[float]], y: list[list[float]]) -> float:
    def kernel(a: list[float], b: list[float]) -> float:
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    own = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    real = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return own + real - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


def test_the_kernel_distance_is_that_of_loops() -> None:
    samples, reference = 0.3 + tiny.normals(13, 5), tiny.normals(17, 5, seed=1)
    parts = []
    for i in range(4):
        one = permutation(7, f"kernel distance/{i}/samples", 13)[:6]
        other = permutation(7, f"kernel distance/{i}/reference", 17)[:6]
        parts.append(discrepancy_by_loops(samples[one].tolist(), reference[other].tolist()))
    found = kernel_distance(samples, reference, subsets=4, size=6, seed=7)
    assert found.mean == pytest.approx(statistics.fmean(parts), rel=1e-10)
    assert found.deviation == pytest.approx(statistics.pstdev(parts), rel=1e-10)


def test_a_subset_of_all_images_is_all_of_them() -> None:
    samples, reference = tiny.normals(9, 4), tiny.normals(9, 4, seed=1)
    wanted = discrepancy_by_loops(samples.tolist(), reference.tolist())
    found = kernel_distance(samples, reference, subsets=3, size=9)
    assert found.mean == pytest.approx(wanted, rel=1e-10)
    assert found.deviation == pytest.approx(0, abs=1e-12)


def test_equal_distributions_scatter_around_0() -> None:
    pairs = [tiny.normals(2, 100, 6, seed=seed) for seed in range(60)]
    found = [kernel_distance(x, y, subsets=1, size=100).mean for x, y in pairs]
    assert min(found) < 0 < max(found)
    assert abs(statistics.fmean(found)) < 3 * statistics.stdev(found) / 60**0.5


def test_a_shift_is_seen_and_the_seed_decides_the_subsets() -> None:
    samples, reference = 1 + tiny.normals(400, 6), tiny.normals(400, 6, seed=1)
    found = kernel_distance(samples, reference, subsets=10, size=100)
    assert found.mean > 5 * found.deviation > 0
    assert kernel_distance(samples, reference, subsets=10, size=100) == found
    assert kernel_distance(samples, reference, subsets=10, size=100, seed=1) != found


def test_single_precision_is_widened() -> None:
    samples, reference = tiny.normals(2, 30, 4).float()
    wide = kernel_distance(samples.double(), reference.double(), subsets=2, size=20)
    assert kernel_distance(samples, reference, subsets=2, size=20) == wide


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"size": 1}, "size 1 is no size of a subset of 20 images"),
        ({}, "size 1000 is no size of a subset of 20 images"),
        ({"size": 5, "subsets": 0}, "subsets 0 is not positive"),
    ],
)
def test_subsets_that_cannot_be_drawn_are_refused(changes: dict[str, int], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        kernel_distance(tiny.normals(20, 3), tiny.normals(30, 3), **changes)


def test_other_numbers_of_features_are_refused() -> None:
    with pytest.raises(ConfigError, match="samples have 3 features and the reference 4"):
        kernel_distance(tiny.normals(9, 3), tiny.normals(9, 4), size=5)
