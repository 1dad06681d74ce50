"""Where compute goes in runs from captions: prompts in the place of classes, words, regions."""

import csv
import json
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffmoe.analysis import CapacityTrace
from diffmoe.analysis.words import words_of
from diffmoe.checkpoint import RunFolder, load
from diffmoe.cli import main
from diffmoe.config import FolderData
from diffmoe.data import make_prompts, word_class
from diffmoe.errors import ConfigError
from diffmoe.evaluation import object_pixels
from diffmoe.experiments import analyze
from diffmoe.experiments.analysis.run import Analysis
from diffmoe.experiments.turns import Turns
from diffmoe.model import Routing
from diffmoe.sampling import Moment, balanced_labels, decode, encode_prompts, generate
from diffmoe.training import train
from runs import run_config
from texts import text_run

COUNT = 26
WORDS = {"capacity_by_word", "capacity_by_word_kind"}
REGIONS = {
    "capacity_by_region",
    "capacity_by_region_and_level",
    "capacity_by_objects",
    "capacity_by_objects_and_region",
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on scenes, so little trained that its pictures are noise."""
    path = tmp_path_factory.mktemp("scenes") / "run"
    train(text_run(sampling__guidance=2.0), path, progress=False)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a folder of pictures with captions beside them."""
    home = tmp_path_factory.mktemp("pictures")
    folder = home / "data"
    folder.mkdir()
    for number in range(24):
        pixels = np.full((32, 32, 3), 10 * number, np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(f"a plain picture number {number}, in grey")
    config = replace(text_run(), data=FolderData(path=folder, flip=False))
    train(config, home / "run", progress=False)
    return home / "run"


def analyzed(run: Path, out: Path, **more: Any) -> Analysis:
    given = {"count": COUNT, "maps": 2, "frames": 2, "out": out, "progress": False, **more}
    return analyze(run, **given)


@pytest.fixture(scope="module")
def whole(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "analysis"
    analyzed(scenes, out)
    return out


def table(out: Path, name: str) -> list[dict[str, str]]:
    with (out / "data" / f"{name}.csv").open() as stream:
        return list(csv.DictReader(stream))


def stems(folder: Path, kind: str) -> set[str]:
    return {path.stem for path in folder.glob(f"*.{kind}")}


def test_all_that_applies_to_scenes_is_there(whole: Path) -> None:
    tables = stems(whole / "data", "csv")
    assert tables >= WORDS | REGIONS | {"capacity_by_prompt", "experts", "predictor"}
    assert tables >= {"batch_of_one", "cost", "map_images", "capacity_by_step"}
    assert "capacity_by_class" not in tables
    assert "prompt_bits" in table(whole, "expert_information")[0]
    figures = stems(whole / "figures", "png")
    assert figures >= {"capacity_by_word", "capacity_by_region", "region_pictures"}
    page = (whole / "report.html").read_text()
    for title in ("By prompt", "By word", "By what patches show", "Examples"):
        assert title in page
    told = page.split("</style>")[1].split("How it was made</h2>")[0]
    told = re.sub(r'class="|base64,[^"]*', "", told)
    assert "class" not in told and "promptes" not in told


def test_prompts_are_validation_scenes_task_after_task(whole: Path) -> None:
    names = [line["name"] for line in table(whole, "capacity_by_prompt")]
    assert names == [prompt.caption for prompt in make_prompts(1)]
    assert [line["name"] for line in table(whole, "map_images")] == [names[0], names[5]]
    turns = Turns.of_scenes(3, "validation")
    assert [prompt.task for prompt in turns.scenes[:6]] == [p.task for p in make_prompts(1)]
    assert sorted(turns.prompts) == sorted(prompt.caption for prompt in make_prompts(3))


def test_prompts_are_as_many_as_images_make_several_draws_of(scenes: Path) -> None:
    config = RunFolder(scenes).read_config()
    for images, prompts in ((2, 6), (47, 6), (48, 12), (1000, 240), (10**6, 240)):
        assert Turns.of(scenes, config, images).count == prompts


def redrawn(run: Path) -> tuple[CapacityTrace, list[Moment], np.ndarray, list[str]]:
    """The images of the analysis, drawn at once by hand, and what was seen."""
    loaded = load(run)
    names = [prompt.caption for prompt in make_prompts(1)]
    trace = CapacityTrace.empty(loaded.config, loaded.config.sampling.steps, classes=6)
    moments: list[Moment] = []

    def watch(moment: Moment) -> None:
        trace(moment)
        moments.append(moment)

    latents = generate(
        loaded.model,
        loaded.config,
        balanced_labels(COUNT, 6),
        range(COUNT),
        conditions=encode_prompts(loaded, names),
        callback=watch,
    )
    from diffmoe.codec import build_codec

    codec = build_codec(loaded.config.codec, torch.device("cpu"))
    images = torch.cat(list(decode(codec, latents.half().float(), torch.device("cpu")))).numpy()
    return trace, moments, images, names


def pairs_of(record: Routing, tokens: int, images: int) -> np.ndarray:
    """Experts of each token of each image."""
    found = np.zeros((images, tokens))
    for row in record.token.tolist():
        if row < images * tokens:
            found[row // tokens, row % tokens] += 1
    return found


def test_the_numbers_are_those_of_a_slow_count(scenes: Path, whole: Path) -> None:
    """By prompt, word and region, from pairs counted one by one."""
    trace, moments, images, names = redrawn(scenes)
    prompts = table(whole, "capacity_by_prompt")
    own = [float(line["selected"]) for line in prompts]
    np.testing.assert_allclose(own, trace.per_class, rtol=1e-6)
    tokens, layers = 16, len(moments[0].evaluation.output.routing)
    taken, times = np.zeros((COUNT, tokens)), np.zeros(COUNT)
    for moment in moments:
        here = list(moment.images)
        times[here] += 1
        for record in moment.evaluation.output.routing:
            taken[here] += pairs_of(record, tokens, len(here))
    capacity = taken / (layers * times[:, None])
    words = defaultdict(list)
    for image, values in enumerate(capacity):
        for word in set(words_of(names[image % 6])):
            words[word].append(values.mean())
    told = {line["word"]: line for line in table(whole, "capacity_by_word")}
    assert told.keys() == words.keys()
    for word, values in words.items():
        assert float(told[word]["capacity"]) == pytest.approx(np.mean(values), rel=1e-6)
        assert told[word]["kind"] == word_class(word)
    patches = defaultdict(list)
    for picture, values in zip(images, capacity, strict=True):
        shown = object_pixels(picture) > 0
        for token, value in enumerate(values):
            row, column = 8 * (token // 4), 8 * (token % 4)
            share = shown[row : row + 8, column : column + 8].mean()
            name = "background" if share == 0 else "inside" if share == 1 else "edge"
            patches[name].append(value)
    regions = table(whole, "capacity_by_region")
    assert sum(int(line["patches"]) for line in regions) == COUNT * tokens
    for line in regions:
        values = patches[line["region"].split(" ")[0]]
        assert int(line["patches"]) == len(values)
        if values:
            assert float(line["capacity"]) == pytest.approx(np.mean(values), rel=1e-6)


def test_captions_that_are_no_scenes_have_words_alone(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "analysis"
    analyzed(pictures, out)
    tables = stems(out / "data", "csv")
    assert "capacity_by_word" in tables and not tables & (REGIONS | {"capacity_by_word_kind"})
    names = {line["name"] for line in table(out, "capacity_by_prompt")}
    assert names == set(RunFolder(pictures).captions[:6])
    assert {"a", "plain", "grey"} <= {line["word"] for line in table(out, "capacity_by_word")}
    arrays = json.loads((out / "trace.json").read_text())["arrays"]
    assert "token_pairs" not in arrays


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without figures, which take most of the time."""
    monkeypatch.setattr("diffmoe.experiments.analysis.run.sections_of", lambda *_: [])


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("router", ["dense", "expert_choice"])
def test_every_router_from_captions(router: str, tmp_path: Path) -> None:
    train(text_run(router), tmp_path / "run", progress=False)
    found = analyzed(tmp_path / "run", tmp_path / "analysis", count=12).findings
    assert (found.words is None) == (found.regions is None) == (router == "dense")
    assert found.cost.rows


@pytest.mark.usefixtures("plain")
def test_pools_from_captions(scenes: Path, tmp_path: Path) -> None:
    settings = replace(load(scenes).config.sampling, selection="pool")
    found = analyzed(scenes, tmp_path / "analysis", count=12, settings=settings).findings
    assert found.regions is not None and found.words is not None


def test_a_run_without_captions_is_refused(pictures: Path, tmp_path: Path) -> None:
    kept = pictures / "captions.txt"
    content = kept.read_bytes()
    kept.unlink()
    try:
        with pytest.raises(ConfigError, match="keeps no captions of its training"):
            analyzed(pictures, tmp_path / "analysis")
    finally:
        kept.write_bytes(content)


def test_prompts_are_mapped_by_their_numbers(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=r"prompt 6 has no map: prompts 0\.\.5"):
        analyzed(scenes, tmp_path / "analysis", classes=[6])
    words = ["analyze", str(scenes), "--count", "12", "--quiet", "--classes", "counting"]
    assert main(words) == 2
    assert "prompts are mapped by their numbers" in capsys.readouterr().err


@pytest.mark.usefixtures("plain")
def test_runs_of_classes_have_neither_words_nor_regions(tmp_path: Path) -> None:
    train(run_config(), tmp_path / "run", progress=False)
    found = analyzed(tmp_path / "run", tmp_path / "analysis", count=10)
    assert found.findings.words is None and found.findings.regions is None
    assert found.findings.classes is not None and found.findings.classes.nouns == "classes"
    assert not any("prompt" in line for line in found.lines)
