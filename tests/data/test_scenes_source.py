"""Scenes as samples of a data set."""

import pickle

import numpy as np
import pytest
import torch

from diffmoe.data import Source
from diffmoe.data.scenes import TASKS, ScenesSource, draw_scene
from diffmoe.errors import ConfigError, DataError


def test_scenes_are_a_source() -> None:
    source = ScenesSource(3, count=20)
    assert isinstance(source, Source) and len(source) == 20
    assert (source.shape, source.encoded, source.class_names) == ((3, 32, 32), False, TASKS)
    assert source.labels.dtype == torch.int64
    for index in range(20):
        assert TASKS[source.labels[index]] == source.scene(index).task
        sample = source.load(index, False)
        picture = draw_scene(source.scene(index))
        assert sample.dtype == torch.float32 and sample.shape == source.shape
        assert np.array_equal(((sample + 1) * 127.5).round().byte().numpy(), picture)


def test_held_out_labels_are_those_of_all_tasks() -> None:
    source = ScenesSource(count=9, split="held_out")
    assert source.labels.tolist() == [2, 3, 4, 5, 2, 3, 4, 5, 2]
    assert [TASKS[label] for label in source.labels] == [source.scene(i).task for i in range(9)]


def test_a_scene_is_never_mirrored() -> None:
    source = ScenesSource(count=5, side=40)
    assert torch.equal(source.load(4, True), source.load(4, False))


def test_captions_are_a_sequence() -> None:
    source = ScenesSource(1, count=30, split="validation")
    assert len(source.captions) == 30
    assert list(source.captions) == [source.scene(index).caption for index in range(30)]
    assert source.captions[-1] == source.captions[29]
    assert source.captions[3:9:2] == [source.captions[index] for index in (3, 5, 7)]
    with pytest.raises(IndexError):
        source.captions[30]


def test_the_fingerprint_tells_sources_apart() -> None:
    assert ScenesSource(count=100).fingerprint == "100 scenes sha256:ac182acf0f4f99fa"
    same, others = {"count": 12}, [{"count": 13}, {"side": 33}, {"split": "validation"}]
    found = {ScenesSource(**same | other).fingerprint for other in [{}, *others, {"seed": 1}]}
    assert len(found) == 5
    assert ScenesSource(count=1).fingerprint.startswith("1 scenes sha256:")


def test_the_fingerprint_sees_another_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = ScenesSource(count=10).fingerprint
    monkeypatch.setattr(
        "diffmoe.data.scenes.source.draw_scene", lambda scene, side: draw_scene(scene, side) ^ 1
    )
    assert ScenesSource(count=10).fingerprint != before


def test_a_source_travels_to_other_processes() -> None:
    source = ScenesSource(4, count=8)
    again = pickle.loads(pickle.dumps(source))
    assert torch.equal(again.load(7, False), source.load(7, False))
    assert again.captions[7] == source.captions[7]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"count": 0}, "count 0 is less than 1 — "),
        ({"count": 1, "side": 8}, "side 8 is less than 32 pixels"),
        ({"count": 1, "split": "tests"}, "split 'tests' is not known — "),
    ],
)
def test_what_is_no_source_is_refused(arguments: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ScenesSource(**arguments)


@pytest.mark.parametrize("index", [-1, 6])
def test_a_scene_that_is_not_there_is_refused(index: int) -> None:
    with pytest.raises(DataError, match=rf"scene {index} is not in 0\.\.5 — "):
        ScenesSource(count=6).load(index, False)
