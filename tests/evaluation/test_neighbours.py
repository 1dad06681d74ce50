"""Precision and recall against loops, and in cases where the answer is known."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import tiny
from diffmoe.errors import ConfigError, DataError
from diffmoe.evaluation.neighbours import PrecisionRecall, precision_recall


def by_loops(samples: Tensor, reference: Tensor, k: int) -> PrecisionRecall:
    def distance(a: list[float], b: list[float]) -> float:
        return sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) ** 0.5

    def covered(images: list[list[float]], centres: list[list[float]]) -> float:
        radii = [
            sorted(distance(c, o) for j, o in enumerate(centres) if j != i)[k - 1]
            for i, c in enumerate(centres)
        ]
        inside = [
            any(distance(image, c) <= r for c, r in zip(centres, radii, strict=True))
            for image in images
        ]
        return sum(inside) / len(images)

    fake, real = samples.tolist(), reference.tolist()
    return PrecisionRecall(precision=covered(fake, real), recall=covered(real, fake))


@pytest.mark.parametrize("neighbours", [1, 3, 5])
@pytest.mark.parametrize("held", [1, 100, 2**24])
@pytest.mark.parametrize("wide", [1, 12, 2**22])
def test_it_is_that_of_loops_whatever_the_blocks(
    neighbours: int, held: int, wide: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffmoe.evaluation.neighbours._HELD", held)
    monkeypatch.setattr("diffmoe.evaluation.neighbours._WIDE", wide)
    samples, reference = tiny.normals(31, 4) + 1.5, tiny.normals(23, 4, seed=1)
    wanted = by_loops(samples, reference, neighbours)
    assert 0 < wanted.precision < 1 and 0 < wanted.recall < 1
    assert precision_recall(samples, reference, neighbours) == wanted


def test_swapped_sets_swap_precision_and_recall() -> None:
    one, other = 0.5 * tiny.normals(40, 3), tiny.normals(50, 3, seed=1)
    there, back = precision_recall(one, other), precision_recall(other, one)
    assert there.precision > there.recall
    assert (there.precision, there.recall) == (back.recall, back.precision)


def test_a_generator_that_collapsed_is_precise_and_recalls_nothing() -> None:
    reference = tiny.normals(200, 6)
    near = reference[5] + 1e-3 * tiny.normals(200, 6, seed=1)
    found = precision_recall(near, reference)
    assert found.precision == 1 and found.recall <= 1 / 200
    same = precision_recall(reference[5].expand(200, 6), reference)
    assert same.precision == 1 and same.recall == 1 / 200


def test_samples_from_elsewhere_have_neither() -> None:
    found = precision_recall(100 + tiny.normals(50, 4), tiny.normals(50, 4, seed=1))
    assert (found.precision, found.recall) == (0, 0)


def test_the_set_itself_has_both() -> None:
    images = tiny.normals(60, 4)
    assert precision_recall(images, images) == PrecisionRecall(1, 1)


def test_a_ball_includes_its_border() -> None:
    """Whole numbers on a line: each ball reaches 2 and no rounding moves the border."""
    reference = torch.arange(0.0, 60.0, 2.0)[:, None]
    on_the_border = torch.tensor([[-2.0], [60.0], [-2.5], [60.5]])
    assert precision_recall(on_the_border, reference, neighbours=1).precision == 0.5


def test_an_image_is_not_its_own_neighbour() -> None:
    """Were it one, the only neighbour would be at no distance and the balls would be points."""
    reference = torch.arange(10.0)[:, None]
    assert precision_recall(reference + 0.5, reference, neighbours=1).precision == 1


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_duplicates_make_balls_of_size_0_that_still_hold_copies(offset: float) -> None:
    distinct = offset + tiny.normals(20, 64)
    reference = distinct.repeat(4, 1)
    near = distinct + 1e-3 * tiny.normals(20, 64, seed=1)
    assert precision_recall(distinct[:5].repeat(2, 1), reference).precision == 1
    assert precision_recall(near, reference).precision == 0


def test_single_precision_images_far_from_zero_lose_nothing() -> None:
    samples, reference = (1000 + tiny.normals(30, 5, seed=seed) for seed in (0, 1))
    wanted = by_loops(samples.float().double(), reference.float().double(), 3)
    assert precision_recall(samples.float(), reference.float()) == wanted


def test_features_are_widened_a_part_at_a_time_and_left_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The largest tensor that is made, of any kind, is far smaller than the features."""
    monkeypatch.setattr("diffmoe.evaluation.neighbours._HELD", 2**12)
    monkeypatch.setattr("diffmoe.evaluation.neighbours._WIDE", 2**12)
    samples, reference = tiny.normals(200, 256).float(), tiny.normals(190, 256, seed=1).float()
    before = samples.clone(), reference.clone()
    with Largest() as largest:
        precision_recall(samples, reference)
    assert 0 < largest.made <= reference.numel() // 8
    assert torch.equal(samples, before[0]) and torch.equal(reference, before[1])


class Largest(TorchDispatchMode):
    """Keeps the number of values in the largest new tensor."""

    made = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        known = {x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)}
        for x in found if isinstance(found, tuple | list) else [found]:
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in known:
                self.made = max(self.made, x.numel())
        return found


@pytest.mark.parametrize(
    ("count", "neighbours", "what"),
    [
        (3, 3, "neighbours 3 cannot be found among 3 images — give 1 to 2"),
        (9, 0, "neighbours 0 cannot be found among 9 images"),
        (1, 1, "give more images"),
    ],
)
def test_too_few_images_are_refused(count: int, neighbours: int, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        precision_recall(tiny.normals(count, 2), tiny.normals(10, 2), neighbours)


def test_other_numbers_of_features_are_refused() -> None:
    with pytest.raises(ConfigError, match="samples have 3 features and the reference 4"):
        precision_recall(tiny.normals(9, 3), tiny.normals(9, 4))


def test_features_that_are_not_finite_are_refused() -> None:
    """Nothing is nearer than NaN: it would count as absent, without a word."""
    samples = tiny.normals(9, 3)
    samples[4, 1] = torch.nan
    with pytest.raises(DataError, match="not finite"):
        precision_recall(samples, tiny.normals(9, 3))
