"""Counter-based random numbers: a row is a function of (seed, stream, row) and nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffmoe.randomness import normals, permutation, uniforms

few = settings(max_examples=60, deadline=None, derandomize=True)
starts = st.integers(0, 2**40)
counts = st.integers(1, 9)


@few
@given(start=starts, count=counts, offset=st.integers(0, 8), width=st.integers(1, 11))
def test_a_row_of_uniforms_is_the_same_in_every_block(
    start: int, count: int, offset: int, width: int
) -> None:
    block = uniforms(5, "time", start, count + offset, width)
    assert block.shape == (count + offset, width)
    assert torch.equal(uniforms(5, "time", start + offset, count, width), block[offset:])


@few
@given(
    start=starts,
    count=counts,
    offset=st.integers(0, 8),
    shape=st.lists(st.integers(1, 5), max_size=3).map(tuple),
)
def test_a_row_of_normals_is_the_same_in_every_block(
    start: int, count: int, offset: int, shape: tuple[int, ...]
) -> None:
    block = normals(5, "noise", start, count + offset, shape)
    assert block.shape == (count + offset, *shape) and block.dtype == torch.float32
    assert torch.equal(normals(5, "noise", start + offset, count, shape), block[offset:])


def test_rows_do_not_repeat() -> None:
    assert len(uniforms(0, "time", 0, 10_000, 3).unique(dim=0)) == 10_000
    assert len(normals(0, "noise", 0, 2_000, (2, 3)).flatten(1).unique(dim=0)) == 2_000


def test_uniforms_are_uniform_in_the_half_open_interval() -> None:
    u = uniforms(1, "time", 0, 50_000, 4).double()
    assert 0 <= u.min() < 1e-4 and 1 - 1e-4 < u.max() < 1
    error = 4 / u.numel() ** 0.5
    for power in (1, 2, 3):
        assert u.pow(power).mean().item() == pytest.approx(1 / (power + 1), abs=error)
    counts = torch.histc(u, 20, 0, 1)
    assert ((counts / 10_000 - 1).abs() < 5 / 100).all()


def test_a_double_next_to_one_does_not_round_up_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "diffmoe.randomness._doubles", lambda *_: np.full((2, 1), np.nextafter(1.0, 0.0))
    )
    assert (uniforms(0, "time", 0, 2) < 1).all()


def test_normals_are_standard_and_uncorrelated() -> None:
    z = normals(2, "noise", 0, 40_000, (2, 3)).double().flatten(1)
    error = 5 / len(z) ** 0.5
    assert (z.mean(dim=0).abs() < error).all()
    assert ((torch.cov(z.t()) - torch.eye(6)).abs() < 2 * error).all()
    assert z.pow(4).mean().item() == pytest.approx(3, abs=0.1)
    share = (z.abs() < 1.959964).double().mean().item()
    assert share == pytest.approx(0.95, abs=0.003)
    assert bool(z.isfinite().all())


def test_a_uniform_of_zero_gives_a_finite_normal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "diffmoe.randomness._doubles", lambda *_: np.array([[0.0, 0.25], [np.nextafter(1, 0), 0]])
    )
    assert bool(normals(0, "noise", 0, 2, (2,)).isfinite().all())


@pytest.mark.parametrize(
    ("seed", "stream"),
    [(1, "time"), (0, "noise"), (10, "time"), (0, "time "), (2**62, "time")],
)
def test_seeds_and_streams_are_independent(seed: int, stream: str) -> None:
    one = uniforms(0, "time", 0, 4_000, 4).flatten()
    other = uniforms(seed, stream, 0, 4_000, 4).flatten()
    assert torch.isclose(one, other, rtol=0, atol=1e-6).float().mean() < 1e-3
    assert torch.corrcoef(torch.stack([one, other]))[0, 1].abs() < 0.03


def test_neighbouring_rows_are_independent() -> None:
    u = uniforms(0, "time", 0, 20_000)[:, 0]
    assert torch.corrcoef(torch.stack([u[1:], u[:-1]]))[0, 1].abs() < 0.03


def test_a_permutation_is_a_permutation_of_its_seed_and_stream() -> None:
    one = permutation(0, "order/1", 1797)
    assert sorted(one.tolist()) == list(range(1797))
    assert (one == permutation(0, "order/1", 1797)).all()
    for other in (permutation(1, "order/1", 1797), permutation(0, "order/2", 1797)):
        assert (one == other).mean() < 0.02


def test_no_global_generator_is_touched_or_read() -> None:
    def draw() -> list[torch.Tensor]:
        order = torch.from_numpy(permutation(0, "order", 9))
        return [uniforms(0, "a", 3, 4, 2), normals(0, "a", 3, 4, (2,)), order]

    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()
    first = draw()
    assert torch.equal(torch.get_rng_state(), before[0])
    after = np.random.get_state()
    assert all(np.array_equal(a, b) for a, b in zip(before[1], after, strict=True))
    torch.manual_seed(2)
    np.random.seed(2)
    assert all(torch.equal(a, b) for a, b in zip(first, draw(), strict=True))


def test_the_numbers_are_those_of_the_first_release() -> None:
    """A change here changes every run and every seed's image."""
    u = uniforms(0, "time", 7, 1, 2)[0].tolist()
    z = normals(3, "sampling", 0, 1, (2,))[0].tolist()
    assert u == pytest.approx([0.7901593446731567, 0.6662891507148743], abs=1e-7)
    assert z == pytest.approx([1.0827915668487549, 1.0236133337020874], abs=1e-6)
    assert permutation(0, "order", 5).tolist() == [3, 2, 0, 4, 1]
