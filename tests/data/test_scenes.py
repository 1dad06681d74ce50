"""Scenes: what is drawn, what is said of it, and that both are functions of a number."""

import hashlib
import math
from collections import Counter
from itertools import combinations, pairwise, product

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from diffmoe.data.scenes import (
    COLOURS,
    HELD_OUT_PAIRS,
    PALETTE,
    RELATIONS,
    SHAPES,
    TASKS,
    TEMPLATES,
    draw_scene,
    make_prompts,
    make_scene,
    object_map,
    scene_sheet,
    word_class,
)
from diffmoe.errors import ConfigError

PIXEL = 1 / 32
PICTURES = "7086a33fa5568170"
CAPTIONS = "ded039930a2a1c7c"
VOCABULARY = {
    *("a", "an", "and", "background", "dark", "exactly", "image", "is", "are", "it", "of", "on"),
    *("photo", "picture", "that", "the", "there", "to", "together", "with"),
    *("one", "two", "three", "four", "left", "right", "above", "below"),
    *(*SHAPES, *COLOURS, "circles", "squares", "triangles", "stars", "crosses", "rings"),
}
PLURALS = {shape: "crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES}
CLASSES = {
    "colour": set(COLOURS),
    "shape": {*SHAPES, *PLURALS.values()},
    "count": {"one", "two", "three", "four"},
    "position": {"left", "right", "above", "below"},
}


def some_scenes(count: int):
    """Scenes of every split."""
    for split in ("train", "validation", "held_out"):
        yield from (make_scene(0, split, index) for index in range(count))


def test_pictures_and_captions_are_constants() -> None:
    digest, words = hashlib.sha256(), hashlib.sha256()
    for split, index in product(("train", "held_out"), range(24)):
        scene = make_scene(3, split, index)
        digest.update(draw_scene(scene).tobytes())
        words.update(scene.caption.encode())
    assert (words.hexdigest()[:16], digest.hexdigest()[:16]) == (CAPTIONS, PICTURES)


def test_a_scene_depends_on_seed_split_and_index_alone() -> None:
    forward = [make_scene(1, "train", index) for index in range(40)]
    backward = [make_scene(1, "train", index) for index in reversed(range(40))]
    assert forward == backward[::-1]
    others = [make_scene(2, "train", 7), make_scene(1, "validation", 7), make_scene(1, "train", 13)]
    assert all(forward[7].things != other.things for other in others)


def test_a_scene_is_the_same_at_any_size() -> None:
    for index in range(30):
        scene = make_scene(0, "train", index)
        small, large = draw_scene(scene, 32).astype(float), draw_scene(scene, 128).astype(float)
        mean = large.reshape(3, 32, 4, 32, 4).mean(axis=(2, 4))
        assert np.abs(mean - small).mean() < 1.0
        assert (object_map(scene, 64) > 0).any()


def test_no_held_out_pair_is_in_twenty_thousand_training_scenes() -> None:
    seen: Counter[tuple[str, str]] = Counter()
    for index in range(20_000):
        seen.update((thing.shape, thing.colour) for thing in make_scene(0, "train", index).things)
    every = set(product(SHAPES, COLOURS))
    assert len(HELD_OUT_PAIRS) == len(set(HELD_OUT_PAIRS)) == 10
    assert seen.keys() == every - set(HELD_OUT_PAIRS)  # so every shape and every colour is seen
    assert min(seen.values()) > 300


def test_validation_is_drawn_as_training_is() -> None:
    shown = [
        Counter(
            (thing.shape, thing.colour)
            for index in range(6000)
            for thing in make_scene(0, split, index).things
        )
        for split in ("train", "validation")
    ]
    assert shown[0].keys() == shown[1].keys()
    for pair, count in shown[0].items():
        assert abs(count - shown[1][pair]) < 6 * math.sqrt(2 * count), pair


def test_each_held_out_prompt_names_a_held_out_pair() -> None:
    tasks = set()
    for index in range(2000):
        scene = make_scene(0, "held_out", index)
        tasks.add(scene.task)
        assert any((clause.shape, clause.colour) in HELD_OUT_PAIRS for clause in scene.include)
    assert tasks == set(TASKS) - {"single_object", "two_object"}


def test_things_are_apart_and_inside() -> None:
    for scene in some_scenes(1500):
        for one, other in combinations(scene.things, 2):
            far = math.dist((one.x, one.y), (other.x, other.y)) - (one.size + other.size) / 2
            assert far >= 2 * PIXEL - 1e-9, scene
        for thing in scene.things:
            low, high = PIXEL + thing.size / 2 - 1e-9, 1 - PIXEL - thing.size / 2 + 1e-9
            assert low <= min(thing.x, thing.y) and max(thing.x, thing.y) <= high, scene
            assert 9 * PIXEL <= thing.size <= 20 * PIXEL and abs(thing.angle) <= 7


def test_the_gap_is_in_the_picture() -> None:
    side = 256  # 8 pixels for one of 32
    for index in range(2, 242, 6):  # counting, the fullest
        shown = object_map(make_scene(0, "train", index), side)
        for number in range(1, shown.max() + 1):
            away = distance_transform_edt(shown != number)
            others = away[(shown > 0) & (shown != number)]
            assert others.size == 0 or others.min() >= 2 * 8
        edge = np.ones_like(shown, dtype=bool)
        edge[8:-8, 8:-8] = False
        assert not shown[edge].any()


def test_scenes_are_true_to_their_clauses() -> None:
    for scene in some_scenes(3000):
        for clause in scene.include:
            alike = [t for t in scene.things if t.shape == clause.shape]
            assert len(alike) == clause.count
            assert clause.colour is None or {t.colour for t in alike} == {clause.colour}
            if clause.relation:
                target = scene.include[clause.target].shape
                (other,) = (t for t in scene.things if t.shape == target)
                assert degrees_from(clause.relation, alike[0], other) <= 35 + 1e-6, scene
        for clause in scene.exclude:
            assert sum(t.shape == clause.shape for t in scene.things) == clause.count - 1
        assert len(scene.things) == sum(clause.count for clause in scene.include)


def degrees_from(relation: str, one, other) -> float:
    """The angle between where one thing is seen from another and an axis of the page."""
    axis = {"left of": 180, "right of": 0, "above": -90, "below": 90}[relation]
    turn = math.degrees(math.atan2(one.y - other.y, one.x - other.x)) - axis
    return abs((turn + 180) % 360 - 180)


def test_captions_say_what_the_clauses_say() -> None:
    for scene in some_scenes(3000):
        words = scene.caption.split()
        for clause in scene.include:
            shape = clause.shape if clause.count == 1 else PLURALS[clause.shape]
            place = words.index(shape)
            near = {words[place - 1], *words[place + 1 : place + 4]}
            assert clause.colour is None or clause.colour in near, scene.caption
            if clause.count > 1:
                number = ("two", "three", "four")[clause.count - 2]
                assert number in words[max(0, place - 2) : place], scene.caption
            if clause.relation:
                before = words[: words.index(clause.relation.split()[0])]
                said = [word for word in before if word in CLASSES["shape"]]
                assert said[-1] == clause.shape, scene.caption
        colours = Counter(word for word in words if word in COLOURS)
        assert colours == Counter(c.colour for c in scene.include if c.colour)
        assert Counter(w for w in words if w in RELATIONS or w in CLASSES["position"]) == Counter(
            c.relation.split()[0] for c in scene.include if c.relation
        )


def test_captions_are_short_plain_and_of_few_words() -> None:
    said: set[str] = set()
    for scene in some_scenes(4000):
        words = scene.caption.split(" ")
        said.update(words)
        assert len(words) <= 16 and scene.caption.isascii() and scene.caption.islower()
        for article, noun in pairwise(words):
            assert article not in ("a", "an") or (article == "an") == (noun[0] in "aeio")
    assert said == VOCABULARY
    assert all(len(templates) >= 5 for templates in TEMPLATES.values())


def test_words_have_classes() -> None:
    for word in VOCABULARY:
        expected = [kind for kind, words in CLASSES.items() if word in words]
        assert [word_class(word)] == (expected or ["other"]), word
    assert word_class("elephant") == "other"


def test_metadata_is_that_of_geneval() -> None:
    found = {prompt.task: prompt.metadata for prompt in make_prompts(40)}
    assert tuple(found) == TASKS
    for task, metadata in found.items():
        assert list(metadata) == [
            *("tag", "include"),
            *(["exclude"] if task == "counting" else []),
            "prompt",
        ]
        assert metadata["tag"] == task
    counting = found["counting"]
    (include,), (exclude,) = counting["include"], counting["exclude"]
    assert exclude == {"class": include["class"], "count": include["count"] + 1}
    first, second = found["position"]["include"]
    assert "position" not in first and second["position"][1] == 0
    assert second["position"][0] in RELATIONS
    assert found["color_attr"]["include"][1].keys() == {"class", "count", "color"}


def test_prompts_are_balanced_and_distinct() -> None:
    for split, tasks in (("validation", TASKS), ("held_out", (TASKS[2], *TASKS[3:]))):
        prompts = make_prompts(40, seed=5, split=split)
        assert Counter(prompt.task for prompt in prompts) == dict.fromkeys(tasks, 40)
        assert len({prompt.caption for prompt in prompts}) == len(prompts)
        assert prompts == make_prompts(40, seed=5, split=split)
    many = make_prompts(100)
    assert Counter(prompt.task for prompt in many) == dict.fromkeys(TASKS, 100)
    single = {prompt.caption for prompt in many if prompt.task == "single_object"}
    assert len(single) == len(SHAPES) * len(TEMPLATES["single_object"]) == 42


def test_object_words_are_those_of_shapes() -> None:
    for scene in some_scenes(200):
        words = scene.caption.split()
        named = [word for word in words if word in CLASSES["shape"]]
        assert list(scene.prompt.object_words) == named
        assert len(named) == len(scene.include)


def test_a_map_shows_what_the_picture_shows() -> None:
    for scene in some_scenes(30):
        picture, shown = draw_scene(scene).astype(int), object_map(scene)
        assert set(np.unique(shown)) == set(range(len(scene.things) + 1))
        for number, thing in enumerate(scene.things, 1):
            of_thing = picture[:, shown == number].T
            ends = np.array([PALETTE[thing.colour], scene.background])
            away = np.abs(of_thing[:, None, :] - ends).sum(axis=2)
            assert (away[:, 0] <= away[:, 1] + 3).all()
        border = picture[:, 0].T
        assert (border == scene.background).all() and max(scene.background) < 40


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: make_scene(0, "test", 0), "split 'test' is not known — use one of train, "),
        (lambda: make_prompts(0), "count_per_task 0 is less than 1 — "),
        (lambda: make_prompts(3, split="all"), "split 'all' is not known — "),
        (lambda: draw_scene(make_scene(0, "train", 0), 16), "side 16 is less than 32 pixels"),
        (lambda: object_map(make_scene(0, "train", 0), 31), "side 31 is less than 32 pixels"),
    ],
)
def test_what_cannot_be_made_is_refused(call, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_sheet_shows_each_task() -> None:
    sheet = np.asarray(scene_sheet(columns=2))
    assert sheet.ndim == 3 and sheet.shape[0] > 6 * 128 and sheet.shape[1] > 2 * 128
    assert scene_sheet(split="held_out", columns=2).height < sheet.shape[0]
