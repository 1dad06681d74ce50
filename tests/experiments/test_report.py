"""A report says why it lacks what it lacks, and what cannot be made is refused before drawing."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffmoe.checkpoint import Content, write
from diffmoe.cli import main
from diffmoe.config import (
    SD_VAE,
    CodecConfig,
    FolderData,
    PixelCodec,
    RunConfig,
    SamplingConfig,
    to_dict,
    to_yaml,
)
from diffmoe.errors import ConfigError, NoRunError, StorageError
from diffmoe.experiments import demo, report, sample
from diffmoe.experiments.report import RunReport
from diffmoe.experiments.scoring import Reference, score_samples
from diffmoe.model import build_model
from diffmoe.training import train
from runs import ROUTER_KINDS, run_config


def pictures(folder: Path, each: int, classes: int = 2) -> Path:
    """`each` small images of every class."""
    for label in range(classes):
        (folder / str(label)).mkdir(parents=True)
        for index in range(each):
            shade = 20 * label + index
            Image.new("L", (8, 8), color=shade).save(folder / str(label) / f"{index}.png")
    return folder


def run_of_pictures(home: Path, each: int = 8) -> Path:
    data = FolderData(path=pictures(home / "pictures", each))
    train(run_config(data=data, model__num_classes=2), home / "run", progress=False)
    return home / "run"


def told(run: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, str, Any]:
    """What a report prints, its page and its record."""
    capsys.readouterr()
    assert main(["report", str(run), "--count", "4", "--quiet", *words]) == 0
    out = capsys.readouterr().out
    page = (run / "report.html").read_text()
    return out, page, json.loads((run / "report.json").read_text())


def gone(pictures: Path) -> None:
    shutil.rmtree(pictures)


def damaged(pictures: Path) -> None:
    (pictures / "0" / "3.png").write_bytes(b"no image")


REASONS: list[tuple[Callable[[Path], None], str]] = [
    (gone, "data.path does not exist — "),
    (damaged, "the data are not those of the training any more: 16 images "),
]


@pytest.mark.parametrize(("harm", "reason"), REASONS, ids=["gone", "damaged"])
def test_a_report_says_why_there_are_no_scores(
    harm: Callable[[Path], None], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of_pictures(tmp_path)
    harm(tmp_path / "pictures")
    out, page, record = told(run, capsys)
    assert out.startswith(f"the samples are not scored: {reason}")
    assert "\naverage capacity " in out
    assert f"not scored: {reason}" in page
    assert record["unscored"].startswith(reason)
    assert list(record["scores"]) == ["capacity", "capacity_conditional"]
    found = report(run, count=4, progress=False)
    assert found.scores is None and found.unscored == record["unscored"]


def test_an_image_that_goes_bad_while_it_is_read_is_a_reason(tmp_path: Path) -> None:
    data = FolderData(path=pictures(tmp_path / "pictures", 8))
    reference = Reference.of(run_config(data=data, model__num_classes=2))
    damaged(tmp_path / "pictures")
    scores, why = score_samples(reference, torch.zeros(4, 1, 8, 8).byte(), torch.arange(4) % 2)
    assert scores is None and why.startswith("image 3 cannot be read")


def test_damaged_images_that_training_went_past_are_left_out_of_the_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = pictures(tmp_path / "sound", 7)
    (sound / "0" / "3.png").unlink()
    folder = pictures(tmp_path / "pictures", 7)
    damaged(folder)
    lenient = FolderData(path=folder, on_bad_sample="replace", max_bad_share=0.2)
    train(run_config(data=lenient, model__num_classes=2), tmp_path / "run", progress=False)
    _, page, record = told(tmp_path / "run", capsys)
    assert record["unscored"] == "" and record["scores"]["left_out"] == 1
    assert "training images left out" in page
    listed = len((tmp_path / "run" / "bad_samples.jsonl").read_text().splitlines())
    assert listed == 1 and "damaged samples" in page and "bad_samples.jsonl" in page
    images, labels = torch.zeros(4, 1, 8, 8).byte(), torch.arange(4) % 2
    found = []
    for data in (lenient, FolderData(path=sound)):
        scores, _ = score_samples(
            Reference.of(run_config(data=data, model__num_classes=2)), images, labels
        )
        assert scores is not None
        found.append(scores)
    assert found[0] == replace(found[1], left_out=1)  # of the sound ones alone, with their classes


def test_data_that_changed_since_the_training_score_nothing_and_name_no_class(
    tmp_path: Path,
) -> None:
    data = FolderData(path=pictures(tmp_path / "pictures", 8))
    config = run_config(data=data, model__num_classes=2)
    known = Reference.of(config)
    assert known.source is not None and not known.unscored
    then = known.source.fingerprint
    assert Reference.of(config, then).unscored == Reference.of(config, None).unscored == ""
    (tmp_path / "pictures" / "0").rename(tmp_path / "pictures" / "circle")
    assert Reference.of(config).names(2) == ["1", "circle"]
    changed = Reference.of(config, then)
    assert changed.source is None and changed.names(2) == ["0", "1"]
    assert "the data are not those of the training any more" in changed.unscored
    assert then in changed.unscored


def test_the_record_says_what_the_classes_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pictures(tmp_path / "pictures", 8)
    (folder / "0").rename(folder / "square")
    (folder / "1").rename(folder / "circle")
    config = run_config(data=FolderData(path=folder), model__num_classes=3)
    train(config, tmp_path / "run", progress=False)
    record = told(tmp_path / "run", capsys)[2]
    assert record["classes"] == {"0": "circle", "1": "square", "2": "2"}


def test_a_run_knows_its_classes_when_the_data_are_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pictures(tmp_path / "pictures", 8, classes=3)
    names = ['a, "b" & <script>', "é\nline", "plain"]
    for label, name in enumerate(names):
        (folder / str(label)).rename(folder / name)
    config = run_config(data=FolderData(path=folder), model__num_classes=4)
    train(config, tmp_path / "run", progress=False)
    gone(folder)
    _, page, record = told(tmp_path / "run", capsys)
    assert record["classes"] == {"0": names[0], "1": names[2], "2": names[1], "3": "3"}
    assert names[0] not in page


def test_data_at_hand_name_the_classes_before_the_run_does(tmp_path: Path) -> None:
    config = run_config(data=FolderData(path=pictures(tmp_path / "pictures", 8)))
    config = replace(config, model=replace(config.model, num_classes=3))
    assert Reference.of(config, None, ("a", "b", "c")).names(3) == ["0", "1", "2"]
    changed = Reference.of(config, "another set", ("a", "b"))
    assert changed.source is None and changed.names(3) == ["a", "b", "2"]
    gone(tmp_path / "pictures")
    assert Reference.of(config, None, ("a",)).names(3) == ["a", "1", "2"]


def test_a_distance_of_few_samples_comes_with_a_caution(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(run_config(), tmp_path, progress=False)
    out, page, _ = told(tmp_path, capsys)
    assert "(biased: use 1,000 or more samples), average capacity" in out
    assert "; biased: use 1,000 or more samples" in page


@pytest.mark.parametrize("router", ROUTER_KINDS)
def test_both_capacities_stand_on_the_page(
    router: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(run_config(router), tmp_path, progress=False)
    out, page, _ = told(tmp_path, capsys, "--guidance", "1.5")
    assert "<th>capacity</th>" in page
    assert ("<th>capacity, conditional branch</th>" in page) == (router != "dense")
    assert ("so no figure shows it" in page) == (router in ("token_choice", "expert_choice"))
    assert ("capacity_per_step.png" in out) == (router == "batch_pool")


def test_the_findings_name_the_conditional_branch_where_it_differs() -> None:
    for conditional, said in ((1.0, ""), (0.992, " (conditional branch 0.992)")):
        found = RunReport(Path(), {}, None, "no data", 1.0, conditional)
        assert found.findings[-1] == f"average capacity 1.000{said}"


def latents(home: Path) -> RunConfig:
    folder = home / "latents"
    folder.mkdir()
    np.save(folder / "latents.npy", np.zeros((8, 4, 8, 8), dtype=np.float32))
    np.save(folder / "labels.npy", np.arange(8) % 2)
    shape = {"model__channels": 4, "model__out_channels": 4, "model__num_classes": 2}
    return run_config(data=FolderData(path=folder, flip=False), codec=SD_VAE, **shape)


def test_latents_are_not_scored(tmp_path: Path) -> None:
    found = Reference.of(latents(tmp_path))
    assert found.source is not None
    assert found.unscored == "the model draws latents, and scores are of pixels"


@pytest.mark.parametrize("limit", ["_MOST_IMAGES", "_MOST_VALUES"])
def test_more_images_than_the_judge_can_hold_are_not_scored(
    limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Reference.of(run_config()).unscored == ""
    monkeypatch.setattr(f"diffmoe.experiments.scoring.{limit}", 1796)
    assert Reference.of(run_config()).unscored == (
        "1797 training images of 1 x 8 x 8 are more than the judge can hold"
    )


def test_few_images_of_a_class_leave_the_judge_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page, record = told(run_of_pictures(tmp_path, each=3), capsys)
    assert "(the judge reads an unknown share of held-out real images right)" in out
    assert "an unknown share" in page
    assert record["scores"]["held_out_accuracy"] is None


def test_one_training_image_is_a_reason_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = FolderData(path=pictures(tmp_path / "one", 1, classes=1))
    train(run_config(data=data, model__num_classes=1), tmp_path / "run", progress=False)
    assert "not scored: 1 images are too few" in told(tmp_path / "run", capsys)[0]


def test_the_command_on_the_page_can_be_typed_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(run_config(), tmp_path / "my run", progress=False)
    record = told(tmp_path / "my run", capsys)[2]
    assert record["command"] == f"diffmoe report '{tmp_path}/my run' --count 4 --quiet"
    report(tmp_path / "my run", count=3, first_seed=5, progress=False)
    record = json.loads((tmp_path / "my run" / "report.json").read_text())
    assert record["command"] == f"diffmoe.report('{tmp_path}/my run', count=3, first_seed=5)"


# --- what is refused before anything is drawn ----------------------------------------------------


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(*_: object, **__: object) -> None:
        raise AssertionError("minutes of work")

    monkeypatch.setattr("diffmoe.experiments.draw.Prepared.of", drawn)
    monkeypatch.setattr(sys.modules["diffmoe.experiments.demo"], "train", drawn)


@pytest.mark.parametrize(("count", "named"), [(1, "too few for a report"), (0, "is not in")])
def test_too_few_images_are_refused(count: int, named: str, tmp_path: Path, undrawn: None) -> None:
    train(run_config(), tmp_path, progress=False)
    with pytest.raises(ConfigError, match=f"count {count} {named}|count {count} is {named}"):
        report(tmp_path, count=count, progress=False)
    with pytest.raises(ConfigError, match=f"count {count}"):
        demo(tmp_path / "demo", count=count, progress=False)
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_package_is_named(
    package: str, tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(run_config(), tmp_path, progress=False)
    monkeypatch.setitem(sys.modules, package, None)
    for make in (report, demo):
        with pytest.raises(ConfigError, match=rf"{package} — pip install \"diffmoe\[plots\]\""):
            make(tmp_path, count=4, progress=False)


def test_a_folder_that_is_no_run_is_named(tmp_path: Path, undrawn: None) -> None:
    with pytest.raises(NoRunError, match=r"this folder is no run: it has no config\.yaml"):
        report(tmp_path, count=4, progress=False)
    with pytest.raises(NoRunError, match=r"this folder is no run: it has no config\.yaml"):
        sample(tmp_path, [1], [0], settings=SamplingConfig(), progress=False)


def untrained(config: RunConfig, run: Path) -> Path:
    weights = build_model(config.model, 0).state_dict()
    write(run / "checkpoints", Content(0, 0, {"model": weights, "ema": weights}, to_dict(config)))
    (run / "config.yaml").write_text(to_yaml(config))
    return run


@pytest.mark.parametrize(
    ("codec", "named"),
    [
        (PixelCodec(), r"model\.channels 4 make no picture with codec pixels"),
        (replace(SD_VAE, path="/nowhere/lost"), "lost"),
    ],
    ids=["pixels", "lost"],
)
def test_a_codec_that_makes_no_pictures_is_refused(
    codec: CodecConfig, named: str, tmp_path: Path, undrawn: None
) -> None:
    config = replace(latents(tmp_path), codec=codec)
    run = untrained(config, tmp_path / "run")
    with pytest.raises(ConfigError, match=named):
        sample(run, [1], [0], settings=config.sampling, progress=False)
    with pytest.raises(ConfigError, match=named):
        report(run, count=4, progress=False)


# --- samples -------------------------------------------------------------------------------------


def test_labels_and_seeds_of_arrays_are_written(tmp_path: Path) -> None:
    train(run_config(), tmp_path / "run", progress=False)
    out = tmp_path / "out"
    labels, seeds = np.array([3, 1]), np.array([2, 5])
    sample(
        tmp_path / "run", labels, seeds, settings=SamplingConfig(steps=2), out=out, progress=False
    )  # type: ignore[arg-type]
    images = json.loads((out / "samples.json").read_text())["images"]
    assert [(one["label"], one["seed"]) for one in images] == [(3, 2), (1, 5)]


def test_samples_replace_samples_and_nothing_else(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    train(run_config(), run, progress=False)
    settings = SamplingConfig(steps=2)
    out.mkdir()
    for seeds in ([0], [1]):  # an empty folder, then samples
        assert sample(run, [1], seeds, settings=settings, out=out, progress=False) == out
    assert [p.name for p in out.glob("*seed*")] == ["000000-class-1-seed-1.png"]
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(StorageError, match=r"^thesis\.txt was not written by a sampling"):
        sample(run, [1], [2], settings=settings, out=out, progress=False)
    assert (out / "thesis.txt").read_text() == "years of work"
    assert [p.name for p in out.glob("*seed*")] == ["000000-class-1-seed-1.png"]
