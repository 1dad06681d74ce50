"""Scores tell real images, copies, wrong classes and noise apart."""

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import tiny
from diffmoe.data import DigitsSource
from diffmoe.evaluation import Judge, Scores, nearest_neighbours, score

DIGITS = DigitsSource()
REAL, LABELS = DIGITS.images, DIGITS.labels
FLAT = REAL.flatten(1)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.fit(FLAT, LABELS)


def scores_of(samples: Tensor, asked: Tensor) -> Scores:
    return score(samples, asked, REAL, LABELS)


# --- the judge ----------------------------------------------------------------------------------


def test_the_judge_reads_97_of_100_scans_it_has_not_seen(judge: Judge) -> None:
    assert judge.held_out_accuracy >= 0.97


def test_the_judge_is_the_same_every_time(judge: Judge) -> None:
    again = Judge.fit(FLAT, LABELS)
    assert again.held_out_accuracy == judge.held_out_accuracy
    assert torch.equal(again.read(FLAT), judge.read(FLAT))


def test_what_is_held_out_is_not_fitted() -> None:
    """Labels without meaning cannot be read on held-out images, however well they are fitted."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(400, 64, generator=generator)
    labels = torch.randint(0, 10, (400,), generator=generator)
    judge = Judge.fit(noise, labels)
    assert judge.held_out_accuracy < 0.25
    assert (judge.read(noise) == labels).double().mean() > 0.7


def test_a_class_of_one_image_is_fitted_and_not_held_out() -> None:
    labels = torch.tensor([0] * 8 + [1] * 8 + [7])
    images = labels[:, None] * 3.0 + 0.1 * tiny.normals(17, 4).float()
    judge = Judge.fit(images, labels)
    assert judge.held_out_accuracy == 1 and judge.read(images).tolist() == labels.tolist()


def test_one_class_is_read_as_itself() -> None:
    judge = Judge.fit(tiny.normals(8, 4).float(), torch.full((8,), 3))
    assert judge.read(tiny.normals(2, 4, seed=1).float()).tolist() == [3, 3]


def test_without_held_out_images_there_is_no_accuracy() -> None:
    judge = Judge.fit(tiny.normals(4, 4).float(), torch.tensor([0, 0, 1, 1]))
    assert judge.held_out_accuracy is None
    few = tiny.normals(4, 1, 2, 2).float().clamp(-1, 1)
    found = score(few, torch.tensor([0, 0, 1, 1]), few, torch.tensor([0, 0, 1, 1])).as_dict()
    assert json.loads(json.dumps(found, allow_nan=False))["held_out_accuracy"] is None


# --- neighbours ---------------------------------------------------------------------------------


def test_neighbours_are_those_of_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffmoe.evaluation.scores._BLOCK", 4)
    samples, real = tiny.normals(6, 5), tiny.normals(11, 5, seed=1)
    found = nearest_neighbours(samples, real)

    def rms(a: Tensor, b: Tensor) -> float:
        return (sum((x - y) ** 2 for x, y in zip(a.tolist(), b.tolist(), strict=True)) / 5) ** 0.5

    for i, sample in enumerate(samples):
        distances = [rms(sample, image) for image in real]
        assert found.index[i] == distances.index(min(distances))
        assert found.distance[i].item() == pytest.approx(min(distances), rel=1e-9)
    for i, image in enumerate(real):
        others = [rms(image, other) for j, other in enumerate(real) if j != i]
        assert found.between_real[i].item() == pytest.approx(min(others), rel=1e-9)


def test_a_copy_is_at_no_distance_at_all() -> None:
    """However far from zero the images lie."""
    found = nearest_neighbours(FLAT[:50] + 100, FLAT + 100)
    assert found.index.tolist() == list(range(50)) and not found.distance.any()


# --- scores -------------------------------------------------------------------------------------


def test_copies_are_called_copies() -> None:
    found = scores_of(REAL[:300], LABELS[:300])
    assert found.copies == 1 and found.nearest_median == 0
    assert found.nearest_median_real > 0.2 and found.samples == 300


def test_copies_as_8_bit_images_are_still_copies() -> None:
    pixels = ((REAL[:300] + 1) * 127.5).round() / 127.5 - 1
    assert scores_of(pixels, LABELS[:300]).copies == 1


def test_copies_of_a_set_with_duplicates_are_still_copies() -> None:
    twice = torch.cat([REAL[:200], REAL[:200]])
    labels = torch.cat([LABELS[:200], LABELS[:200]])
    assert score(REAL[:50], LABELS[:50], twice, labels).copies == 1


def test_other_images_are_no_copies() -> None:
    half = len(REAL) // 2
    other = score(REAL[:half], LABELS[:half], REAL[half:], LABELS[half:])
    assert other.copies < 0.05
    assert other.nearest_median == pytest.approx(other.nearest_median_real, rel=0.2)
    noise = tiny.normals(200, 1, 8, 8).float().clamp(-1, 1)
    found = scores_of(noise, LABELS[:200])
    assert found.copies == 0 and found.nearest_median > 2 * found.nearest_median_real


def test_real_images_agree_with_their_labels_and_not_with_others() -> None:
    assert scores_of(REAL, LABELS).agreement > 0.98
    order = torch.randperm(len(LABELS), generator=torch.Generator().manual_seed(0))
    assert scores_of(REAL, LABELS[order]).agreement == pytest.approx(0.1, abs=0.03)


def test_the_distance_grows_with_the_damage() -> None:
    noise = tiny.normals(*REAL.shape, seed=3).float()
    found = [scores_of(REAL + s * noise, LABELS).frechet_distance for s in (0.0, 0.1, 0.3, 1.0)]
    assert found == sorted(found) and found[0] == pytest.approx(0, abs=1e-9)
    assert found[3] == pytest.approx(64 * (1**2), rel=0.6)


def test_scores_have_names() -> None:
    found = scores_of(REAL[:20], LABELS[:20]).as_dict()
    assert found["samples"] == 20 and found["components"] == 64
    assert all(isinstance(value, int | float) for value in found.values())


@pytest.mark.parametrize(("samples", "caution"), [(999, "biased: use 1,000 or more"), (1000, "")])
def test_few_samples_are_a_caution(samples: int, caution: str) -> None:
    found = replace(scores_of(REAL[:20], LABELS[:20]), samples=samples)
    assert found.caution.startswith(caution) and bool(found.caution) == bool(caution)
