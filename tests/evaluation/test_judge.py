"""The judge of scenes on true pictures, on damaged ones, and on prompts that are wrong."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from diffmoe.data.scenes import Scene, Thing, draw_scene, make_scene
from diffmoe.evaluation.judge import judge, mutations, read_picture
from diffmoe.evaluation.judge.verdict import stands
from diffmoe.randomness import normals
from long_record import hold

COUNT = 600  # pictures
DAMAGES = ((0.0, 0.0), (10.0, 0.5), (25.5, 0.5))
KINDS = {"colour", "shape", "count", "relation", "swapped colours"}


def some_scenes(count: int, first: int = 0) -> Iterator[Scene]:
    """As many of validation as with held-out pairs."""
    for index in range(first, first + count // 2):
        yield make_scene(9, "validation", index)
        yield make_scene(9, "held_out", index)


def damaged(picture: np.ndarray, number: int, noise: float, blur: float) -> np.ndarray:
    """Blurred, then noisy."""
    values = gaussian_filter(picture.astype(np.float64), (0, blur, blur))
    values += noise * normals(1, "judge", number, 1, picture.shape)[0].numpy()
    return np.rint(values.clip(0, 255)).astype(np.uint8)


def figures(count: int, noise: float = 0.0, blur: float = 0.0, first: int = 0) -> dict[str, int]:
    """How many pictures are read right and accepted, and how many wrong prompts are."""
    found: Counter[str] = Counter(pictures=count)
    for number, scene in enumerate(some_scenes(count, first)):
        picture = damaged(draw_scene(scene), number, noise, blur)
        reading = read_picture(picture)
        truth = Counter((thing.shape, thing.colour) for thing in scene.things)
        found["read"] += Counter((seen.shape, seen.colour) for seen in reading) == truth
        verdict = judge(scene.prompt, reading)
        found["lenient"] += verdict.lenient
        found["strict"] += verdict.strict
        for kind, prompt in mutations(scene):
            wrong = judge(prompt, reading)
            found[f"tried {kind}"] += 1
            found[f"accepted {kind}"] += wrong.lenient
            found["wrong"] += 1
            found["accepted"] += wrong.lenient or wrong.strict
    return dict(found)


@pytest.mark.parametrize(
    ("noise", "blur", "least"),
    [(0.0, 0.0, 0.995), (0.0, 0.5, 0.98), (10.0, 0.5, 0.98), (25.5, 0.5, 0.98)],
)
def test_the_judge_is_right(noise: float, blur: float, least: float) -> None:
    found = figures(COUNT, noise, blur)
    assert found["read"] >= least * COUNT, found
    assert found["strict"] >= least * COUNT, found
    assert found["lenient"] >= found["strict"]
    assert found["accepted"] <= 0.005 * found["wrong"], found
    assert {kind for kind in KINDS if found[f"tried {kind}"] >= 50} == KINDS


@pytest.mark.long
def test_the_judge_is_right_on_ten_thousand_pictures() -> None:
    def measure() -> dict[str, dict[str, int]]:
        outcome = {f"{noise}/{blur}": figures(10_000, noise, blur, 300) for noise, blur in DAMAGES}
        for name, found in outcome.items():
            least = 0.995 if name == "0.0/0.0" else 0.98
            assert min(found["read"], found["strict"]) >= least * found["pictures"], name
            assert found["accepted"] <= 0.005 * found["wrong"], name
        return outcome

    promise = "scenes are read right and wrong prompts refused, clean, noisy and blurred"
    hold("scenes-judge", promise, 10_000, measure)


@pytest.mark.parametrize(
    ("place", "planted", "kind"),
    [
        ("verdict.stands", lambda one, other, relation: one.x < other.x, "relation"),
        ("verdict.stands", lambda one, other, relation: True, "relation"),
        ("verdict._exceeded", lambda prompt, reading: "", "count"),
        ("verdict._miscoloured", lambda clause, chosen: None, "colour"),
        ("verdict._shaped", lambda clause, reading: reading, "shape"),
    ],
)
def test_a_planted_fault_lets_wrong_prompts_pass(
    place: str, planted, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert figures(120)[f"accepted {kind}"] == 0
    monkeypatch.setattr(f"diffmoe.evaluation.judge.{place}", planted)
    found = figures(120)
    assert found[f"accepted {kind}"] > 0.1 * found[f"tried {kind}"], found


def test_a_mirrored_rule_refuses_true_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "diffmoe.evaluation.judge.verdict.stands",
        lambda one, other, relation: stands(other, one, relation),
    )
    assert figures(120)["strict"] < 0.9 * 120


@pytest.mark.parametrize("channels", [[1, 0, 2], [0, 2, 1], [2, 1, 0]])
def test_a_planted_exchange_of_channels_is_seen(channels: list[int]) -> None:
    wrong = 0
    for scene in some_scenes(60):
        wrong += not judge(scene.prompt, draw_scene(scene)[channels]).lenient
    assert wrong > 6


def test_places_and_areas_are_read() -> None:
    for scene in some_scenes(60):
        reading = read_picture(draw_scene(scene, 64))
        assert [seen.score for seen in reading] == sorted((s.score for s in reading), reverse=True)
        for thing in scene.things:
            near = min(
                reading, key=lambda seen: np.hypot(seen.x / 64 - thing.x, seen.y / 64 - thing.y)
            )
            assert np.hypot(near.x - 64 * thing.x, near.y - 64 * thing.y) < 0.5
            assert (near.shape, near.colour) == (thing.shape, thing.colour)
            assert near.area < (64 * thing.size / 2) ** 2 * np.pi * 1.05


@pytest.mark.parametrize("contrast", [1.1, 0.85, 0.7])
def test_fainter_things_are_read(contrast: float) -> None:
    right = 0
    for scene in some_scenes(200):
        behind = np.array(scene.background)[:, None, None]
        faint = np.rint(behind + contrast * (draw_scene(scene) - behind)).clip(0, 255)
        right += judge(scene.prompt, faint.astype(np.uint8)).strict
    assert right >= 196


@pytest.mark.parametrize("shift", [-14, 20, 45])
def test_darker_and_lighter_backgrounds_are_read(shift: int) -> None:
    right = 0
    for scene in some_scenes(200):
        shade = tuple(value + shift for value in scene.background)
        moved = Scene(
            *(scene.task, scene.caption, scene.include, scene.exclude, scene.things),
            background=shade,
        )
        right += judge(scene.prompt, draw_scene(moved)).strict
    assert right >= 196


def test_the_background_is_found_behind_many_things() -> None:
    quarters = [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)]
    things = tuple(Thing("ring", "green", x, y, 13 / 32, 0.0) for x, y in quarters)
    picture = draw_scene(Scene("counting", "", (), (), things))
    for number in range(20):
        reading = read_picture(damaged(picture, number, 10.0, 0.5))
        assert [seen.shape for seen in reading] == ["ring"] * 4
        assert min(seen.score for seen in reading) > 0.8


def bar(h: int = 4, w: int = 14) -> np.ndarray:
    mask = np.zeros((32, 32), dtype=bool)
    mask[10 : 10 + h, 8 : 8 + w] = True
    return mask


def half_circle() -> np.ndarray:
    y, x = np.mgrid[:32, :32] - 15.5
    return (np.hypot(x, y) < 8) & (y < 0)


def two_touching() -> np.ndarray:
    y, x = np.mgrid[:32, :32] - 15.5
    return (np.hypot(x - 5, y) < 5.6) | (np.hypot(x + 5, y) < 5.6)


def corner() -> np.ndarray:
    return bar(4, 14) | bar(14, 4)


@pytest.mark.parametrize("mask", [bar(), half_circle(), two_touching(), corner()])
def test_what_is_no_shape_is_unknown_and_fails_the_strict_rule_only(mask: np.ndarray) -> None:
    scene = Scene("single_object", "a circle", (), (), ())
    picture = draw_scene(scene)
    picture[:, mask] = np.array([[50], [185], [70]])
    (seen,) = read_picture(picture)
    assert (seen.shape, seen.colour) == (None, "green") and seen.score < 0.8
    verdict = judge(scene.prompt, picture)
    assert (verdict.lenient, verdict.strict) == (True, False)
    assert verdict.reason == "found a green patch of no known shape"


def test_dirt_is_nothing() -> None:
    picture = draw_scene(Scene("single_object", "a circle", (), (), ()))
    picture[:, 5:7, 5:7] = 240
    assert read_picture(picture) == ()


def test_halves_of_two_colours_are_no_shape() -> None:
    scene = Scene("colors", "", (), (), (Thing("circle", "red", 0.5, 0.5, 0.5, 0.0),))
    picture = draw_scene(scene)
    picture[:, :, 16:] = draw_scene(
        Scene("colors", "", (), (), (Thing("circle", "blue", 0.5, 0.5, 0.5, 0.0),))
    )[:, :, 16:]
    reading = read_picture(picture)  # and the seam, whose mixed colour may have a name
    assert {seen.shape for seen in reading} == {None}
    assert {seen.colour for seen in reading} >= {"red", "blue"}


def test_noise_alone_holds_nothing() -> None:
    for number in range(20):
        empty = draw_scene(Scene("single_object", "", (), (), ()))
        assert read_picture(damaged(empty, number, 25.5, 0.0)) == ()


def test_pictures_of_pure_noise_are_judged() -> None:
    generator = torch.Generator().manual_seed(0)
    wild = torch.randint(0, 256, (20, 3, 32, 32), generator=generator, dtype=torch.uint8).numpy()
    flat = np.full((1, 3, 32, 32), 255, dtype=np.uint8)
    for picture in [*wild, *flat, flat[0] * 0]:
        assert all(seen.shape is None for seen in read_picture(picture))
