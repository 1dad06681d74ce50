"""Capacity by the words of prompts, against lists of images."""

import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffmoe.analysis import rows_of, word_capacity_figure
from diffmoe.analysis.findings import WordCapacity
from diffmoe.analysis.tallies import BatchSums, ClassTally
from diffmoe.analysis.tallies.numbers import clustered_error
from diffmoe.analysis.words import word_capacity, words_of
from diffmoe.data import make_prompts, word_class

PROMPTS = ["a red circle", "two red stars", "A star, a RING!", "", "blue", "a a a circle"]
FIRST = {"a", "red", "circle", "two", "stars"}
ALL = FIRST | {"star", "ring", "blue"}
DRAWS = np.random.default_rng(3)


def counted(prompts: int, images: int) -> tuple[ClassTally, list[tuple[int, float]]]:
    """A tally of random images of the first prompts in turn, and each with its capacity."""
    tally, seen = ClassTally.empty(len(PROMPTS)), []
    for first in range(0, images, 4):
        here = range(first, min(first + 4, images))
        labels = np.array([image % prompts for image in here])
        taken = DRAWS.integers(0, 30, (len(here), 2, 3))
        tally.add(BatchSums(here, labels, 48, 0, 2, taken, None))
        seen += list(zip(labels.tolist(), (taken.sum(axis=(1, 2)) / 96).tolist(), strict=True))
    return tally, seen


def slow_error(values: dict[int, list[float]]) -> float:
    """Standard error of the mean of all values, groups of one key being one draw."""
    every = [value for own in values.values() for value in own]
    mean, groups = sum(every) / len(every), len(values)
    if groups < 2:
        return float("nan")
    spread = sum(sum(value - mean for value in own) ** 2 for own in values.values())
    return math.sqrt(spread * groups / (groups - 1)) / len(every)


def test_words_have_the_images_of_a_slow_count() -> None:
    tally, seen = counted(6, 23)
    found = word_capacity(tally, PROMPTS, word_class)
    assert found is not None
    own: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for prompt, capacity in seen:
        for word in {"".join(filter(str.isalpha, w)).lower() for w in PROMPTS[prompt].split()}:
            own[word][prompt].append(capacity)
    assert set(found.words.names) == set(own) == ALL
    for place, word in enumerate(found.words.names):
        every = [value for values in own[word].values() for value in values]
        assert found.words.prompts[place] == len(own[word])
        assert found.words.images[place] == len(every)
        assert found.words.capacity[place] == pytest.approx(sum(every) / len(every))
        assert found.words.error[place] == pytest.approx(slow_error(own[word]), nan_ok=True)
        alone = np.std(every, ddof=1) / math.sqrt(len(every))
        assert found.words.error_of_images[place] == pytest.approx(alone)
    assert found.average == pytest.approx(sum(value for _, value in seen) / len(seen))


def test_kinds_have_each_image_once_and_stand_together() -> None:
    tally, seen = counted(6, 30)
    found = word_capacity(tally, PROMPTS, word_class)
    assert found is not None
    assert found.by_kind.names == ["colour", "count", "shape", "other"]
    assert found.by_kind.images.tolist() == [15, 5, 20, 15]
    shapes = [value for prompt, value in seen if prompt in (0, 1, 2, 5)]
    assert found.by_kind.capacity[2] == pytest.approx(sum(shapes) / len(shapes))
    assert found.kinds == sorted(found.kinds, key=found.by_kind.names.index)
    for kind in found.by_kind.names:
        capacity = found.words.capacity[[own == kind for own in found.kinds]]
        assert (np.diff(capacity) <= 0).all()


def test_prompts_that_were_not_drawn_count_for_nothing() -> None:
    tally, _ = counted(2, 8)
    found = word_capacity(tally, PROMPTS, word_class)
    assert found is not None and set(found.words.names) == FIRST
    assert word_capacity(ClassTally.empty(6), PROMPTS) is None
    tally, _ = counted(1, 4)
    assert word_capacity(tally, ["..."] * 6) is None


def test_words_of_no_kind_are_the_most_frequent() -> None:
    prompts = [f"every word{i} {'often' * (i % 2)}" for i in range(60)]
    tally = ClassTally.empty(60)
    taken = DRAWS.integers(0, 9, (60, 1, 4))
    tally.add(BatchSums(range(60), np.arange(60), 16, 0, 1, taken, None))
    found = word_capacity(tally, prompts)
    assert found is not None and len(found.words.names) == 40 and found.kinds == []
    assert {"every", "often"} <= set(found.words.names)
    assert (np.diff(found.words.capacity) <= 0).all()
    assert list(rows_of(found)) == ["capacity_by_word"]


def test_a_word_is_letters_or_numbers_in_small_letters() -> None:
    assert words_of("A dog's well-lit Café, 3 x_y!") == [
        "a",
        "dog's",
        "well-lit",
        "café",
        "3",
        "x",
        "y",
    ]


def test_an_error_of_clusters_of_one_is_that_of_a_mean() -> None:
    values = DRAWS.random((50, 3))
    error = clustered_error(values, np.ones_like(values))
    np.testing.assert_allclose(error, values.std(axis=0, ddof=1) / math.sqrt(50))
    assert np.isnan(clustered_error(values[:1], np.ones((1, 3)))).all()


def test_an_error_of_clusters_is_that_of_many_draws_of_them() -> None:
    """Against the spread of the ratio itself, over many draws of 40 clusters of all sizes."""
    size = DRAWS.integers(0, 6, (4000, 40))
    own = DRAWS.normal(1, 0.3, (4000, 40))
    part = size * own
    found = part.sum(axis=1) / size.sum(axis=1)
    errors = [clustered_error(p, s) for p, s in zip(part, size, strict=True)]
    assert np.mean(errors) == pytest.approx(found.std(ddof=1), rel=0.05)


@pytest.fixture
def of_scenes() -> WordCapacity:
    prompts = [prompt.caption for prompt in make_prompts(8)]
    tally = ClassTally.empty(len(prompts))
    images = range(2 * len(prompts))
    taken = DRAWS.integers(0, 30, (len(images), 2, 3))
    labels = np.array([image % len(prompts) for image in images])
    tally.add(BatchSums(images, labels, 96, 0, 1, taken, None))
    found = word_capacity(tally, prompts, word_class)
    assert found is not None
    return found


def test_a_figure_of_words(of_scenes: WordCapacity, tmp_path: Path) -> None:
    files = word_capacity_figure(of_scenes, tmp_path / "words", command="diffmoe analyze $x$")
    with Image.open(files[0]) as picture:
        assert min(picture.size) > 600
    svg = files[1].read_text()
    for word in ("colour", "position", "triangle"):
        assert f"<!-- {word} -->" in svg
    plain = replace(of_scenes, kinds=[])
    assert word_capacity_figure(plain, tmp_path / "plain")
    even = replace(of_scenes.words, capacity=np.ones(len(of_scenes.words.names)))
    assert word_capacity_figure(replace(of_scenes, words=even), tmp_path / "even") == []


def test_tables_of_words(of_scenes: WordCapacity) -> None:
    tables = rows_of(of_scenes)
    words = tables["capacity_by_word"]
    assert [line["word"] for line in words] == of_scenes.words.names
    assert [line["kind"] for line in words] == of_scenes.kinds
    assert words[3]["capacity"] == of_scenes.words.capacity[3]
    kinds = tables["capacity_by_word_kind"]
    assert [line["kind"] for line in kinds] == ["colour", "count", "position", "shape", "other"]
    assert kinds[1]["error"] == of_scenes.by_kind.error[1]
