"""Streaming moments against numpy, the Frechet distance and its bias against known answers."""

from functools import reduce

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from diffmoe.errors import ConfigError, DataError
from diffmoe.evaluation.frechet import frechet_bias, frechet_caution, frechet_distance
from diffmoe.evaluation.moments import Moments

FEATURES = 7 + tiny.normals(60, 9) @ tiny.normals(9, 9, seed=1)


def streamed(features: Tensor, *sizes: int) -> Moments:
    moments = Moments.none(features.shape[1])
    for part in features.split(list(sizes)):
        moments = moments.update(part)
    return moments


def difference(found: Tensor, wanted: np.ndarray) -> float:
    return float(np.abs(found.numpy() - wanted).max() / np.abs(wanted).max())


def normal(mean: Tensor, covariance: Tensor) -> Moments:
    return Moments(mean.double(), covariance.double())


# --- moments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes", [[60], [1] * 60, [1, 59], [59, 1], [2] * 30, [0, 17, 1, 0, 40, 2], [30, 30]]
)
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_any_split_gives_the_moments_of_the_whole(sizes: list[int], offset: float) -> None:
    features = FEATURES + offset
    found, whole = streamed(features, *sizes), features.numpy()
    assert found.count == 60
    assert difference(found.mean, whole.mean(axis=0)) < 1e-12
    assert difference(found.covariance, np.cov(whole, rowvar=False)) < 1e-12


def test_many_small_batches_do_not_wear_it_out() -> None:
    features = 5 + tiny.normals(6_000, 3)
    found = streamed(features, *[3] * 2_000)
    assert difference(found.covariance, np.cov(features.numpy(), rowvar=False)) < 1e-12


def test_ranks_merge_in_any_order() -> None:
    ranks = [streamed(part, *[2] * (len(part) // 2)) for part in FEATURES.split([10, 2, 28, 20])]
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        found = reduce(Moments.merge, [ranks[i] for i in order])
        assert difference(found.covariance, np.cov(FEATURES.numpy(), rowvar=False)) < 1e-12
    pairs = ranks[0].merge(ranks[1]).merge(ranks[2].merge(ranks[3]))
    assert difference(pairs.mean, FEATURES.numpy().mean(axis=0)) < 1e-12


def test_a_merge_leaves_its_parts_as_they_were() -> None:
    one, other = Moments.of(FEATURES[:20]), Moments.of(FEATURES[20:])
    before = one.covariance.clone(), other.covariance.clone()
    one.merge(other)
    assert torch.equal(one.covariance, before[0]) and torch.equal(other.covariance, before[1])


def test_single_precision_is_widened_before_anything_is_added() -> None:
    features = (FEATURES + 1000).float()
    wanted = np.cov(features.double().numpy(), rowvar=False)
    assert difference(streamed(features, 25, 35).covariance, wanted) < 1e-12


def test_memory_does_not_grow_with_the_number_of_images() -> None:
    sizes = {streamed(FEATURES[:n], n).covariance.numel() for n in (2, 60)}
    assert sizes == {81}


def test_arrays_go_out_and_come_in() -> None:
    moments = Moments.of(FEATURES)
    again = Moments.from_arrays(moments.mu, moments.sigma, 60)
    assert torch.equal(again.mean, moments.mean)
    assert torch.equal(again.covariance, moments.covariance)
    assert again.update(FEATURES).count == 120


def test_published_moments_without_a_count_cannot_be_merged() -> None:
    published = Moments.from_arrays(np.zeros(9), np.eye(9))
    with pytest.raises(ConfigError, match="unknown number of images"):
        published.update(FEATURES)


@pytest.mark.parametrize(
    ("mu", "sigma", "what"),
    [
        (np.zeros(3), np.eye(4), r"shape \(3,\) and sigma of shape \(4, 4\)"),
        (np.zeros((3, 1)), np.eye(3), "no mean and covariance"),
        (np.array([0, np.nan]), np.eye(2), "not finite"),
        (np.zeros(2), np.array([[1.0, 2.0], [0.0, 1.0]]), "not symmetric"),
        (np.zeros(2), np.array([[np.inf, 0.0], [0.0, 1.0]]), "not finite"),
    ],
)
def test_arrays_that_are_no_moments_are_refused(
    mu: np.ndarray, sigma: np.ndarray, what: str
) -> None:
    with pytest.raises(DataError, match=what):
        Moments.from_arrays(mu, sigma)


# --- distance -----------------------------------------------------------------------------------


def test_two_by_two_covariances_that_do_not_commute_have_a_closed_form() -> None:
    """The root of a 2x2 matrix M has the trace sqrt(tr M + 2 sqrt(det M))."""
    first = torch.tensor([[2.0, 0.5], [0.5, 1.0]]).double()
    second = torch.tensor([[1.0, -0.8], [-0.8, 3.0]]).double()
    product = first @ second
    assert not torch.allclose(product, second @ first)
    inner = (product.trace() + 2 * product.det().sqrt()).sqrt()
    wanted = 1 + 4 + first.trace() + second.trace() - 2 * inner
    one, other = normal(torch.zeros(2), first), normal(torch.tensor([1.0, -2.0]), second)
    assert frechet_distance(one, other) == pytest.approx(wanted.item(), abs=1e-9)


@pytest.mark.parametrize("size", [3, 8])
def test_it_is_that_of_forty_digits(size: int) -> None:
    factors = tiny.normals(2, size, size, seed=size)
    first, second = (factor @ factor.t() for factor in factors)
    with mpmath.workdps(40):
        one, other = mpmath.matrix(first.tolist()), mpmath.matrix(second.tolist())
        roots = [mpmath.sqrt(value.real) for value in mpmath.eig(one * other)[0]]
        exact = mpmath.fsum([*first.diag().tolist(), *second.diag().tolist()]) - 2 * sum(roots)
        wanted = float(exact)
    zero = torch.zeros(size)
    found = frechet_distance(normal(zero, first), normal(zero, second))
    assert found == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize(("n", "m"), [(20, 500), (20, 30), (64, 65), (2, 2)])
def test_fewer_images_than_features_are_sound(n: int, m: int) -> None:
    """The trace of the root is the nuclear norm of A^T B, where C = A A^T needs no root."""
    sets = 1 + tiny.normals(n, 64), tiny.normals(m, 64, seed=1)
    a, b = ((x - x.mean(dim=0)).t() / (len(x) - 1) ** 0.5 for x in sets)
    shift = (sets[0].mean(dim=0) - sets[1].mean(dim=0)).square().sum()
    wanted = shift + a.square().sum() + b.square().sum() - 2 * torch.linalg.svdvals(a.t() @ b).sum()
    one, other = (Moments.of(x) for x in sets)
    found = frechet_distance(one, other)
    assert found == pytest.approx(wanted.item(), abs=1e-9)
    assert frechet_distance(other, one) == pytest.approx(found, rel=1e-12)


@pytest.mark.parametrize("count", [2, 20, 64, 65, 1000])
def test_a_set_is_at_no_distance_from_itself(count: int) -> None:
    one = Moments.of(100 * tiny.normals(count, 64))
    assert 0 <= frechet_distance(one, one) <= 1e-11 * one.covariance.trace().item()


def test_other_numbers_of_features_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 and of 4 features"):
        frechet_distance(Moments.none(3), Moments.none(4))


def test_features_that_are_not_finite_have_no_distance() -> None:
    broken = FEATURES.clone()
    broken[3, 2] = torch.inf
    with pytest.raises(DataError, match="not finite"):
        frechet_distance(Moments.of(broken), Moments.of(FEATURES))


# --- bias ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [[1.0] * 20, [0.25 * i for i in range(30)]])
def test_the_bias_of_many_samples_is_that_of_the_closed_form(spread: list[float]) -> None:
    v = torch.tensor(spread).double()
    turn = torch.linalg.qr(tiny.normals(len(v), len(v))).Q
    reference = normal(tiny.normals(len(v)), turn @ v.diag() @ turn.t())
    pairs = [a * b / (a + b) for a in spread for b in spread if a + b]
    wanted = (1.25 * sum(spread) + 0.5 * sum(pairs)) / 3_000
    found = [frechet_bias(reference, 3_000, seed) for seed in range(40)]
    assert np.mean(found) == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize("drawn", [1, 50])
def test_the_bias_does_not_depend_on_how_it_is_drawn(
    drawn: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = Moments.of(FEATURES)
    wanted = frechet_bias(reference, 51)
    monkeypatch.setattr("diffmoe.evaluation.frechet._DRAWN", drawn)
    assert frechet_bias(reference, 51) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("count", [64, 32, 2])
def test_too_few_samples_are_a_caution_that_says_how_much_they_cost(count: int) -> None:
    reference = normal(torch.zeros(64), torch.eye(64))
    samples = Moments.of(tiny.normals(count, 64))
    caution = frechet_caution(samples, reference)
    assert f"{count} samples vary in at most {count - 1} of 64 directions" in caution
    told = float(caution.split("about ")[1].split(" ")[0])
    assert told == pytest.approx(frechet_distance(samples, reference), rel=0.1)


def test_enough_samples_are_no_caution() -> None:
    reference = normal(torch.zeros(4), torch.eye(4))
    assert frechet_caution(Moments.of(tiny.normals(5, 4)), reference) == ""
    assert frechet_caution(reference, reference) == ""
