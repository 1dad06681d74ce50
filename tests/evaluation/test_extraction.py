"""Features in parts add up to what they are of all images at once."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diffmoe.errors import ConfigError, DataError
from diffmoe.evaluation import (
    PART,
    Described,
    Features,
    ImageSet,
    Moments,
    NpzSet,
    Reference,
    completed,
    describe,
    extract,
    frechet_distance,
    inception_score,
    kernel_distance,
    measure,
    part_of,
    precision_recall,
    refuse_sizes,
    some,
)

NUMBERS = itertools.count()
COUNT = 2 * PART + 37
MIX = torch.from_numpy(np.random.default_rng(1).normal(size=(48, 11))) / 48


class Mixer:
    """A network that is one product, in float64: exact whatever the batch."""

    name, fingerprint, side = "inception", "ab" * 32, None

    def features(self, images: Tensor) -> Features:
        flat = images.flatten(1).double() / 255 @ MIX
        return Features(flat[:, :6].float(), flat[:, 6:9].float(), flat.softmax(dim=1))


class Places:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, number: int) -> Path:
        return self.folder / str(number)


def images(tmp_path: Path, seed: int = 0, count: int = COUNT) -> NpzSet:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    pixels[5] = pixels[count - 1] = pixels[3]  # two duplicates, in other parts
    np.savez(tmp_path / f"{seed}.npz", arr_0=pixels)
    return NpzSet(tmp_path / f"{seed}.npz")


def described(found: ImageSet, tmp_path: Path, keep: int = 10**6, score: bool = True) -> Described:
    numbers = range(-(-len(found) // PART))
    for number in reversed(numbers):  # as other processes may
        folder = tmp_path / str(number)
        folder.mkdir(exist_ok=True)
        extract(found, Mixer(), part_of(number, len(found)), folder)
    scratch = tmp_path / f"scratch-{next(NUMBERS)}.npy"
    return describe(Places(tmp_path), numbers, len(found), keep=keep, score=score, scratch=scratch)


def whole(found: ImageSet) -> Features:
    return Mixer().features(torch.stack([found.read(n)[0] for n in range(len(found))]))


def test_parts_add_up_to_the_whole(tmp_path: Path) -> None:
    found = images(tmp_path)
    one, all_of = described(found, tmp_path), whole(found)
    assert one.count == COUNT and one.side == (4, 4) and one.duplicates == 2
    assert torch.equal(one.features, all_of.pooled)
    for part, features in ((one.pooled, all_of.pooled), (one.spatial, all_of.spatial)):
        direct = Moments.of(features)  # type: ignore[arg-type]
        assert torch.allclose(part.mean, direct.mean, rtol=1e-12, atol=1e-14)  # type: ignore[union-attr]
        assert torch.allclose(part.covariance, direct.covariance, rtol=1e-10, atol=1e-14)  # type: ignore[union-attr]
    direct_score = inception_score(all_of.probabilities)  # type: ignore[arg-type]
    assert one.inception_score is not None
    assert one.inception_score.mean == pytest.approx(direct_score.mean, rel=1e-12)
    assert one.read_as is not None
    assert torch.equal(one.read_as, all_of.probabilities.argmax(dim=1))  # type: ignore[union-attr]


def test_some_features_are_kept_drawn_by_a_seed(tmp_path: Path) -> None:
    found = images(tmp_path)
    one = described(found, tmp_path, keep=100, score=False)
    places = some(COUNT, 100)
    assert len(set(places)) == 100 and places == sorted(places)
    assert len({place % 10 for place in places}) == 10  # of classes that have their turn, all
    assert torch.equal(one.features, whole(found).pooled[places])
    assert one.inception_score is None


def test_other_pixels_have_another_hash(tmp_path: Path) -> None:
    same = [described(images(tmp_path, count=600), tmp_path).sha256 for _ in range(2)]
    assert same[0] == same[1]
    assert described(images(tmp_path, seed=1, count=600), tmp_path).sha256 != same[0]
    fewer = images(tmp_path, count=599)
    assert described(fewer, tmp_path).sha256 != same[0]


def test_the_numbers_are_those_of_the_whole_sets(tmp_path: Path) -> None:
    ours, theirs = images(tmp_path, 0), images(tmp_path, 1, count=700)
    samples = described(ours, tmp_path)
    reference = completed(
        Reference("r", theirs), described(theirs, tmp_path, score=False, keep=300)
    )
    found = measure(samples, reference, "inception", Mixer.fingerprint)
    a, b = whole(ours), whole(theirs)
    few = b.pooled[some(700, 300)]
    both = precision_recall(a.pooled, few)
    wanted = {
        f"fd_inception@{COUNT}": frechet_distance(Moments.of(a.pooled), Moments.of(b.pooled)),
        f"sfd_inception@{COUNT}": frechet_distance(
            Moments.of(a.spatial),  # type: ignore[arg-type]
            Moments.of(b.spatial),  # type: ignore[arg-type]
        ),
        "inception_score": inception_score(a.probabilities).mean,  # type: ignore[arg-type]
        "precision": both.precision,
        "recall": both.recall,
        "kid": kernel_distance(a.pooled, few, size=300).mean,
    }
    assert found.values == pytest.approx(wanted, rel=1e-9)
    assert found.settings["subset_size"] == 300 and found.settings["reference_features"] == 300
    assert not found.cautions


def test_few_samples_are_cautioned_of(tmp_path: Path) -> None:
    few, many = images(tmp_path, 0, count=9), images(tmp_path, 1, count=700)
    samples = described(few, tmp_path)
    narrow = described(many, tmp_path)
    reference = completed(Reference("r", many), narrow)
    assert not measure(samples, reference, "small", "x").cautions  # 9 images, 6 features
    fewer = described(images(tmp_path, 2, count=6), tmp_path, score=False)
    (said,) = measure(fewer, reference, "small", "x").cautions
    assert said.startswith("fd_small@6 is biased: 6 samples vary in at most 5 of 6 directions")


@pytest.mark.parametrize("change", ["", "network", "count", "reference"])
def test_only_the_adm_protocol_gives_its_name(
    tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = described(images(tmp_path, count=600), tmp_path)
    samples = Described(**{**vars(found), "count": 50_000 if change != "count" else 49_999})
    reference = completed(Reference("r", images(tmp_path, 1, count=600)), found)
    monkeypatch.setattr(Reference, "is_adm256", change != "reference")
    fingerprint = ("6726825e" if change == "network" else "6726825d") + "0" * 56
    names = list(measure(samples, reference, "inception", fingerprint).values)
    assert ("fid_adm50k" in names) == (change == "")
    assert ("sfid_adm50k" in names) == (change == "")
    assert any(name.startswith("fd_inception@") for name in names) == (change != "")


def test_a_network_that_sees_nothing_is_refused(tmp_path: Path) -> None:
    found = described(images(tmp_path, count=600), tmp_path)
    dead = Moments.of(torch.ones(600, 6))
    reference = completed(Reference("r", images(tmp_path, 1, count=600), dead), found)
    with pytest.raises(DataError, match="network small says the same of every image"):
        measure(found, reference, "small", "x")


def test_sizes_must_agree(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="samples are 8 x 8 pixels and the reference 64 x 64"):
        refuse_sizes((8, 8), Reference("r", side=(64, 64)))
    refuse_sizes((8, 8), Reference("r", side=None))  # published statistics do not tell


def test_statistics_of_the_reference_are_kept_beside_its_images(tmp_path: Path) -> None:
    found = images(tmp_path, count=600)
    given = Moments.of(whole(found).pooled + 1)
    reference = completed(
        Reference("r", found, given, count=1_281_167), described(found, tmp_path, score=False)
    )
    assert reference.pooled is given and reference.spatial is None
    assert reference.features is not None and reference.count == 1_281_167
    assert reference.side == (4, 4)
