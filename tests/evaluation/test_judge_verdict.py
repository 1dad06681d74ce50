"""Verdicts on readings made by hand, the reasons they give, and the table of them."""

import sys

import numpy as np
import pytest

from diffmoe.data.scenes import TASKS, Clause, Prompt, draw_scene, make_scene
from diffmoe.errors import ConfigError, DataError, ExitCode
from diffmoe.evaluation.judge import (
    Seen,
    Verdict,
    judge,
    judge_pictures,
    mutations,
    read_picture,
    read_pictures,
    tabulate,
)


def seen(shape: str | None, colour: str = "red", x: float = 8.0, y: float = 8.0) -> Seen:
    return Seen(shape, colour, x, y, 50.0, 0.95)


def asked(task: str, *include: Clause, exclude: tuple[Clause, ...] = ()) -> Prompt:
    return Prompt(task, "a caption", include, exclude)


TWO_CIRCLES = asked("counting", Clause("circle", 2), exclude=(Clause("circle", 3),))
RED_CIRCLE = asked("colors", Clause("circle", colour="red"))
STAR_ABOVE_RING = asked("position", Clause("ring"), Clause("star", relation="above"))
CIRCLE_AND_RING = asked("two_object", Clause("circle"), Clause("ring"))


@pytest.mark.parametrize(
    ("prompt", "reading", "lenient", "strict", "reason"),
    [
        (RED_CIRCLE, [seen("circle")], True, True, "as asked for"),
        (RED_CIRCLE, [], False, False, "found no circles, one was asked for"),
        (RED_CIRCLE, [seen("circle", "blue")], False, False, "found a blue circle, red was asked"),
        (RED_CIRCLE, [seen("circle", "blue"), seen("circle")], False, False, "found a blue circle"),
        (RED_CIRCLE, [seen("circle"), seen("circle", "blue")], True, False, "found a blue circle,"),
        (RED_CIRCLE, [seen("circle"), seen("circle")], True, False, "found two things, one was"),
        (RED_CIRCLE, [seen("circle"), seen("ring")], True, False, "found a red ring, which was"),
        (RED_CIRCLE, [seen("circle"), seen(None)], True, False, "found a red patch of no known"),
        (TWO_CIRCLES, [seen("circle")] * 2, True, True, "as asked for"),
        (TWO_CIRCLES, [seen("circle")] * 3, False, False, "found three circles, two were asked"),
        (TWO_CIRCLES, [seen("circle")] * 5, False, False, "found 5 circles, two were asked for"),
        (TWO_CIRCLES, [seen("circle")], False, False, "found one circle, two were asked for"),
        (
            TWO_CIRCLES,
            [seen("circle")] * 2 + [seen("star")],
            True,
            False,
            "found a red star, which",
        ),
        (CIRCLE_AND_RING, [seen("ring"), seen("circle")], True, True, "as asked for"),
        (CIRCLE_AND_RING, [seen("ring")] * 2, False, False, "found no circles, one was asked for"),
    ],
)
def test_verdicts(prompt: Prompt, reading: list, lenient: bool, strict: bool, reason: str) -> None:
    verdict = judge(prompt, tuple(reading))
    assert (verdict.lenient, verdict.strict) == (lenient, strict)
    assert verdict.reason.startswith(reason) and verdict.prompt is prompt


@pytest.mark.parametrize(
    ("x", "y", "right"),
    [(8, 4, True), (11, 4, True), (12, 4, False), (8, 12, False), (16, 7, False)],
)
def test_the_longer_difference_decides_on_position(x: float, y: float, right: bool) -> None:
    verdict = judge(STAR_ABOVE_RING, (seen("ring"), seen("star", x=x, y=y)))
    assert verdict.lenient == verdict.strict == right
    assert verdict.reason == ("as asked for" if right else "no star is above the ring")


@pytest.mark.parametrize(
    ("relation", "x", "y"),
    [("left of", -5, 3), ("right of", 5, -3), ("above", 3, -5), ("below", -3, 5)],
)
def test_each_relation_is_one_direction(relation: str, x: float, y: float) -> None:
    for other in ("left of", "right of", "above", "below"):
        prompt = asked("position", Clause("ring"), Clause("star", relation=other))
        verdict = judge(prompt, (seen("ring"), seen("star", x=8 + x, y=8 + y)))
        assert verdict.strict == (other == relation)


def test_of_several_the_surest_decides() -> None:
    """As GenEval has it: it looks at colour and place of the first `count` detections alone."""
    high, low, ring = seen("star", y=2), seen("star", y=12), seen("ring")
    first = judge(STAR_ABOVE_RING, (ring, high, low))
    assert (first.lenient, first.strict) == (True, False)
    assert first.reason == "found three things, two were asked for"
    second = judge(STAR_ABOVE_RING, (ring, low, high))
    assert (second.lenient, second.reason) == (False, "no star is above the ring")


def test_the_lenient_rule_accepts_what_geneval_accepts() -> None:
    for index in range(1, 240, 6):  # two_object
        scene = make_scene(0, "validation", index)
        one = Prompt("single_object", "one of two", scene.include[:1])
        verdict = judge(one, draw_scene(scene))
        assert (verdict.lenient, verdict.strict) == (True, False)


def test_mutations_change_one_thing_each() -> None:
    for index in range(120):
        scene = make_scene(0, "held_out", index)
        for kind, prompt in mutations(scene):
            assert prompt.task == scene.task and prompt.include != scene.include
            assert bool(prompt.exclude) == bool(scene.exclude)
            changed = sum(a != b for a, b in zip(prompt.include, scene.include, strict=True))
            assert changed == (2 if kind == "swapped colours" else 1)
            assert all(clause.shape in prompt.caption for clause in prompt.include)


def test_pictures_are_judged_one_at_a_time() -> None:
    scenes = [make_scene(0, "validation", index) for index in range(8)]
    drawn = []

    def pictures():
        for scene in scenes:
            drawn.append(scene)
            yield draw_scene(scene)

    verdicts = judge_pictures((scene.prompt for scene in scenes), pictures())
    assert not drawn and next(verdicts).strict and len(drawn) == 1
    assert all(verdict.strict for verdict in verdicts) and len(drawn) == 8
    assert [len(reading) for reading in read_pictures(pictures())] == [
        len(scene.things) for scene in scenes
    ]
    with pytest.raises(ValueError):
        list(judge_pictures([RED_CIRCLE, RED_CIRCLE], [draw_scene(scenes[0])]))


def verdict(task: str, caption: str, lenient: bool, strict: bool) -> Verdict:
    return Verdict(lenient, strict, "", Prompt(task, caption, ()))


MADE = [
    *(verdict("color_attr", f"{i}", i < 1, False) for i in range(8)),
    *(verdict("single_object", f"{i // 2}", i < 78, i < 40) for i in range(80)),
]


def test_the_table_has_the_layout_of_geneval() -> None:
    assert tabulate(MADE).lines == (
        *("Summary", "=======", "Total images: 88", "Total prompts: 48"),
        *("% correct images: 89.77%", "% correct prompts: 83.33%", ""),
        *("Task breakdown", "=============="),
        "single_object    = 97.50% (78 / 80)",
        "color_attr       = 12.50% (1 / 8)",
        *("", "Overall score (avg. over tasks): 0.55000"),
    )
    strict = tabulate(iter(MADE), strict=True)
    assert [(t.task, t.right, t.total) for t in strict.tasks] == [
        ("single_object", 40, 80),
        ("color_attr", 0, 8),
    ]


def test_the_tasks_are_in_the_order_of_geneval() -> None:
    table = tabulate(verdict(task, "", True, True) for task in reversed(TASKS))
    assert tuple(task.task for task in table.tasks) == TASKS
    assert table.overall == 1.0 and table.overall_error == 0.0


def test_errors_are_those_of_drawing_again() -> None:
    table = tabulate(MADE)
    generator = np.random.default_rng(0)
    drawn = [generator.binomial(t.total, t.score, 20_000) / t.total for t in table.tasks]
    for task, scores in zip(table.tasks, drawn, strict=True):
        assert task.error == pytest.approx(scores.std(), rel=0.03)
    assert table.overall_error == pytest.approx(np.mean(drawn, axis=0).std(), rel=0.03)


def test_a_table_of_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="there are no verdicts") as caught:
        tabulate([])
    assert caught.value.exit_code == ExitCode.BAD_DATA


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((3, 32, 32)),
        np.zeros((32, 32, 3), dtype=np.uint8),
        np.zeros((3, 32, 40), dtype=np.uint8),
        np.zeros((3, 16, 16), dtype=np.uint8),
        np.zeros((32, 32), dtype=np.uint8),
    ],
)
def test_what_is_no_picture_is_refused(image: np.ndarray) -> None:
    with pytest.raises(ConfigError, match=r"is no picture of a scene — give bytes of shape \(3"):
        read_picture(image)


def test_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ConfigError, match="needs the package scipy — pip install"):
        read_picture(draw_scene(make_scene(0, "train", 0)))
