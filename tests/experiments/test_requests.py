"""Classes by number and by name, and those that were trained."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from autoencoders import autoencoder, codec_config
from diffmoe.checkpoint import RunFolder, load
from diffmoe.cli import main
from diffmoe.config import FolderData, SamplingConfig, read_config
from diffmoe.errors import ConfigError
from diffmoe.experiments import (
    analyze,
    class_numbers,
    evaluate,
    report,
    sweep,
    trained_classes,
)
from diffmoe.sampling import ImageRequest, calibrate
from diffmoe.training import train
from runs import run_config

NAMES = ("flower", "temple", "7")  # the last is called by a number that is not its own
CLASSES = 8  # of the model: five have no images


def images(folder: Path, side: int, names: tuple[str, ...] = NAMES) -> Path:
    """Six small images of every class."""
    for shade, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for index in range(6):
            picture = Image.new("RGB", (side, side), color=(60 * shade, 10 * index, 90))
            picture.save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three named classes, of a model that has more."""
    home = tmp_path_factory.mktemp("named")
    folder = images(home / "images", 8, ("flower", "temple", "zoo"))
    config = run_config(
        data=FolderData(path=folder),
        model__num_classes=CLASSES,
        model__channels=3,
        model__out_channels=3,
    )
    train(config, home / "run", progress=False)
    RunFolder(home / "run").keep_class_names(NAMES)
    return home / "run"


# --- names ---------------------------------------------------------------------------------------


def test_a_class_is_known_by_its_number_and_by_its_name(run: Path) -> None:
    assert class_numbers(run, ("temple", "0", "flower", "temple")) == (1, 0, 0, 1)
    assert class_numbers(run, ("7", "-1")) == (7, -1)  # a number is one, whoever is called so
    assert class_numbers(run, ()) == ()
    assert class_numbers(run.parent / "no names", ("3",)) == (3,)


@pytest.mark.parametrize(
    ("names", "word", "said"),
    [
        (NAMES, "tempel", "no class is called 'tempel' — did you mean temple?"),
        (NAMES, "xyz", "no class is called 'xyz' — the classes are flower, temple, 7"),
        (("crane", "bird", "crane"), "crane", "classes 0 and 2 are all called 'crane' — give a"),
        (("0", "1"), "xyz", "no class is called 'xyz' — the run's classes are numbers, 0..1"),
        ((), "xyz", "no class is called 'xyz' — give a number"),
        ([f"n{i:08}" for i in range(99)], "xyz", "n00000008, n00000009, ..."),
    ],
    ids=["near", "far", "twice", "numbers", "none", "many"],
)
def test_a_name_that_names_no_class_is_one_sentence(
    names: tuple[str, ...], word: str, said: str, tmp_path: Path
) -> None:
    RunFolder(tmp_path).keep_class_names(names) if names else None
    with pytest.raises(ConfigError) as caught:
        class_numbers(tmp_path, ("0", word))
    assert said in str(caught.value)


def test_the_verbs_take_names(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--labels", "temple", "0", "--count", "5", "--out", "s", "--quiet"]
    assert main(["sample", str(run), *words]) == 0
    told = json.loads(Path("s/samples.json").read_text())
    assert [(one["label"], one["seed"]) for one in told["images"]] == [
        (1, 0), (0, 1), (1, 2), (0, 3), (1, 4)
    ]  # fmt: skip
    assert told["labels"] == "given"
    assert told["images"][0]["file"] == "000000-class-1-seed-0.png"
    capsys.readouterr()
    assert main(["analyze", str(run), "--classes", "tempel"]) == 2
    assert "did you mean temple?" in capsys.readouterr().err
    shown: list[Any] = []
    monkeypatch.setattr(
        "diffmoe.experiments.analyze", lambda *_, **given: shown.append(given["classes"]) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        main(["analyze", str(run), "--classes", "temple", "2"])
    assert shown == [(1, 2)]


def test_a_caption_names_the_class_in_one_line() -> None:
    asked = ImageRequest([0, 1, 2, 3], [5, 6, 7, 8], ["temple", "1", "a\nb\u2028 c", " "])
    assert [asked.caption(image) for image in range(4)] == [
        "temple\nseed 5",
        "class 1\nseed 6",
        "a b c\nseed 7",
        "class 3\nseed 8",
    ]


# --- classes that were trained -------------------------------------------------------------------


def test_the_trained_classes_are_those_with_names(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="diffmoe"):
        assert trained_classes(tmp_path, 10) == 10  # no names
        RunFolder(tmp_path).keep_class_names([str(label) for label in range(10)])
        assert trained_classes(tmp_path, 10) == 10
        assert trained_classes(tmp_path, 4) == 4  # never more than the model has
        assert not caplog.records
        assert trained_classes(run, CLASSES) == 3 == load(run).trained_classes
    assert caplog.text.count("of the model's 8 classes the 3 that were trained are drawn") == 1


@pytest.mark.parametrize("law", ["balanced", "random"])
def test_only_trained_classes_are_drawn_unless_others_are_named(
    law: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["sample", str(run), "--count", "30", "--steps", "1", "--quiet", "--out", "s.npz"]
    assert main([*words, "--law", law]) == 0
    with np.load("s.npz") as found:
        assert set(found["arr_1"].tolist()) == {0, 1, 2}
    if law == "balanced":
        assert main([*words, "--labels", "6", "2"]) == 0
        with np.load("s.npz") as found:
            assert found["arr_1"].tolist() == [6, 2] * 15


def test_what_looks_at_a_run_looks_at_its_trained_classes(run: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"count": 12, "progress": False, "device": "cpu"}
    found = analyze(run, out=tmp_path / "analysis", **options).findings.classes
    assert found is not None and found.images.tolist() == [4, 4, 4, 0, 0, 0, 0, 0]
    with pytest.raises(ConfigError, match=r"class 3 has no map: classes 0\.\.2 are drawn"):
        analyze(run, classes=[3], out=tmp_path / "none", **options)


@pytest.mark.parametrize(
    ("verb", "place"),
    [
        (report, "diffmoe.experiments.draw.Drawing.prepare"),
        (sweep, "diffmoe.experiments.pareto.run.check_request"),
    ],
    ids=["report", "sweep"],
)
def test_reports_and_sweeps_draw_trained_classes(
    verb: Any, place: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[int]] = []

    def prepared(_: Any, labels: list[int], *__: Any, **___: Any) -> None:
        asked.append(list(labels))
        raise InterruptedError

    monkeypatch.setattr(place, prepared)
    with pytest.raises(InterruptedError):
        verb(run, count=7, device="cpu", progress=False)
    assert asked == [[0, 1, 2, 0, 1, 2, 0]]


def test_an_evaluation_draws_trained_classes(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []

    def drawn(_: Path, labels: list[int], *__: Any, **___: Any) -> Path:
        asked.append(list(labels))
        raise InterruptedError

    monkeypatch.setattr("diffmoe.experiments.evaluation.subject.sample", drawn)
    room = "diffmoe.experiments.evaluation.run"
    monkeypatch.setattr(f"{room}.load_network", lambda *_: None)
    monkeypatch.setattr(f"{room}._fitting", lambda reference, _: reference)
    with pytest.raises(InterruptedError):
        evaluate(run, run.parent / "images", network="small", device="cpu", progress=False)
    assert asked == [[0, 1, 2] * 6]  # as many as the reference has, in equal parts


def test_a_calibration_samples_trained_classes_only(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffmoe.sampling import thresholds

    seen: set[int] = set()
    honest = thresholds.generate

    def watched(model: Any, config: Any, labels: Any, *given: Any, **more: Any) -> Any:
        seen.update(labels)
        return honest(model, config, labels, *given, **more)

    monkeypatch.setattr(thresholds, "generate", watched)
    calibrate(load(run), replace(SamplingConfig(steps=1, batch=64), policy="target", capacity=1.0))
    assert seen == {0, 1, 2}


# --- an autoencoder that moved -------------------------------------------------------------------


def test_a_moved_autoencoder_is_noted_by_training_a_finished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    autoencoder().save_pretrained(tmp_path / "old place")
    config = run_config(
        data=FolderData(path=images(tmp_path / "images", 16)),
        codec=codec_config("old place"),
        model__num_classes=3,
        model__channels=5,
        model__out_channels=5,
        loop__steps=1,
    )
    train(config, "a run", progress=False)
    Path("old place").rename("new")
    sampling = ["sample", "a run", "--labels", "1", "--quiet"]
    capsys.readouterr()
    assert main(sampling) == 2
    said = capsys.readouterr().err
    assert "note with `diffmoe train 'a run' --codec.path NEW` where it is: the folder" in said
    assert "set --" not in said and len(said.splitlines()) == 1
    assert main(["train", "a run", "--codec.path", "new", "--quiet"]) == 0
    assert read_config(Path("a run/config.yaml")).codec == codec_config("new")
    assert main(sampling) == 0
