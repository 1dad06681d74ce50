"""The Frechet distance against closed forms and an independent computation."""

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from diffmoe.errors import ConfigError
from diffmoe.evaluation import Moments, frechet_distance, principal_components


def covariance(size: int, rank: int, seed: int) -> Tensor:
    factor = tiny.normals(size, rank, seed=seed)
    return factor @ factor.t()


def by_eigenvalues(one: Moments, other: Moments) -> float:
    """tr((C1 C2)^(1/2)) from the eigenvalues of the unsymmetric product, in numpy."""
    first, second = one.covariance.numpy(), other.covariance.numpy()
    values = np.linalg.eigvals(first @ second).real.clip(min=0)
    shift = ((one.mean - other.mean).numpy() ** 2).sum()
    return float(shift + np.trace(first) + np.trace(second) - 2 * np.sqrt(values).sum())


def moments(size: int, rank: int, seed: int) -> Moments:
    return Moments(tiny.normals(size, seed=seed + 50), covariance(size, rank, seed))


def test_commuting_normals_have_a_closed_form() -> None:
    mean1, mean2 = tiny.normals(2, 6)
    first, second = tiny.normals(2, 6, seed=1).square() + 0.1
    turn = torch.linalg.qr(tiny.normals(6, 6, seed=2)).Q
    one, other = (
        Moments(mean, turn @ diagonal.diag() @ turn.t())
        for mean, diagonal in ((mean1, first), (mean2, second))
    )
    wanted = (mean1 - mean2).square().sum() + (first.sqrt() - second.sqrt()).square().sum()
    assert frechet_distance(one, other) == pytest.approx(wanted.item(), rel=1e-9)


def test_in_one_dimension_it_is_the_distance_of_mean_and_deviation() -> None:
    one = Moments(torch.tensor([1.0]).double(), torch.tensor([[4.0]]).double())
    other = Moments(torch.tensor([-2.0]).double(), torch.tensor([[25.0]]).double())
    assert frechet_distance(one, other) == pytest.approx(9 + 9, abs=1e-9)


@pytest.mark.parametrize("size", [2, 17, 64])
def test_it_is_that_of_an_independent_computation(size: int) -> None:
    one, other = moments(size, 2 * size, 0), moments(size, 3 * size, 1)
    found = frechet_distance(one, other)
    assert found == pytest.approx(by_eigenvalues(one, other), rel=1e-6)
    assert frechet_distance(other, one) == pytest.approx(found, rel=1e-9)


@pytest.mark.parametrize(("rank1", "rank2"), [(5, 5), (1, 64), (0, 64), (0, 0)])
def test_it_is_sound_when_a_covariance_is_rank_deficient(rank1: int, rank2: int) -> None:
    one, other = moments(64, rank1, 0), moments(64, rank2, 1)
    assert frechet_distance(one, other) == pytest.approx(by_eigenvalues(one, other), rel=1e-6)


@pytest.mark.parametrize("width", [5, 64])
@pytest.mark.parametrize(("count", "rank"), [(100, 64), (500, 64), (100, 3), (40, 64)])
def test_features_are_at_the_distance_of_an_independent_computation(
    count: int, rank: int, width: int
) -> None:
    """From the features to the number in numpy; few samples or directions leave no full rank."""
    mix = tiny.normals(rank, width, seed=2)
    sets = [shift + tiny.normals(count, rank, seed=shift) @ mix for shift in (0, 1)]
    means = [x.numpy().mean(axis=0) for x in sets]
    first, second = (np.cov(x.numpy(), rowvar=False) for x in sets)
    roots = np.sqrt(np.linalg.eigvals(first @ second).real.clip(min=0)).sum()
    wanted = ((means[0] - means[1]) ** 2).sum() + np.trace(first + second) - 2 * roots
    found = frechet_distance(*(Moments.of(x.float()) for x in sets))
    assert found == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("rank", [0, 3, 40, 64])
def test_nothing_is_at_no_distance_from_itself(rank: int) -> None:
    one = moments(64, rank, 0)
    assert frechet_distance(one, one) <= 1e-9 * (1 + one.covariance.trace().item())


def test_disjoint_directions_keep_both_spreads() -> None:
    mean = torch.zeros(4, dtype=torch.float64)
    one = Moments(mean, torch.tensor([2.0, 3.0, 0.0, 0.0]).double().diag())
    other = Moments(mean, torch.tensor([0.0, 0.0, 5.0, 7.0]).double().diag())
    assert frechet_distance(one, other) == pytest.approx(17, abs=1e-9)


def test_moments_are_those_of_a_loop() -> None:
    features = tiny.normals(9, 3).float()
    found = Moments.of(features)
    rows = features.double().tolist()
    mean = [sum(row[i] for row in rows) / 9 for i in range(3)]
    assert found.mean.tolist() == pytest.approx(mean, rel=1e-12)
    for i in range(3):
        for j in range(3):
            wanted = sum((row[i] - mean[i]) * (row[j] - mean[j]) for row in rows) / 8
            assert found.covariance[i, j].item() == pytest.approx(wanted, rel=1e-10)


def test_one_feature_is_a_matrix_too() -> None:
    assert Moments.of(torch.tensor([[1.0], [3.0]])).covariance.tolist() == [[2.0]]


def test_one_image_has_no_covariance() -> None:
    with pytest.raises(ConfigError, match="1 images are too few"):
        Moments.of(torch.zeros(1, 4))


def test_principal_components_are_the_directions_of_largest_variance() -> None:
    spread = torch.tensor([3.0, 0.1, 2.0, 1.0]).double()
    features = 5 + tiny.normals(4_000, 4) * spread
    centre, directions = principal_components(features, 2)
    torch.testing.assert_close(centre, features.mean(dim=0))
    torch.testing.assert_close(directions.t() @ directions, torch.eye(2).double())
    projected = (features - centre) @ directions
    largest = torch.linalg.eigvalsh(torch.cov(features.t())).flip(0)[:2]
    torch.testing.assert_close(projected.var(dim=0), largest)
    assert directions[0, 0].abs() > 0.99 and directions[2, 1].abs() > 0.99
