"""Reports of runs from captions: samples with prompts, and what a judge makes of scenes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffmoe.config import FolderData
from diffmoe.data import make_prompts
from diffmoe.experiments import report
from diffmoe.training import train
from texts import text_run


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scenes") / "run"
    train(text_run(), path, progress=False)
    return path


def test_a_report_of_scenes_has_the_table_of_six_tasks(scenes: Path) -> None:
    found = report(scenes, count=12, progress=False)
    assert found.scores is None and found.judged is not None
    lines = "\n".join(found.findings)
    assert lines.count("Overall score (avg. over tasks)") == 2
    assert "single_object" in lines and "average capacity" in lines
    page = found.page.read_text()
    for task in {prompt.task for prompt in make_prompts(1)}:
        assert f"<td>{task}</td>" in page
    assert "true to the prompt, held-out pairs" in page and "not scored" not in page
    shown = found.figures
    assert {"samples", "loss", "verdicts", "tokens_per_expert"} <= shown.keys()
    assert page.count("data:image/png;base64,") == len(shown)
    with Image.open(shown["verdicts"]) as picture:
        assert min(picture.size) > 100
    content = json.loads((scenes / "report.json").read_text())
    assert list(content["prompts"].values()) == [prompt.caption for prompt in make_prompts(1)]
    assert "classes" not in content
    assert (
        content["scores"]["held_out/geneval/overall"]
        == found.judged.values["held_out/geneval/overall"]
    )
    assert set(found.judged.content["tables"]) == {"validation", "held_out"}


def test_a_table_tells_each_task_of_each_split(scenes: Path) -> None:
    found = report(scenes, count=12, progress=False)
    assert found.judged is not None
    page = found.page.read_text()
    for split in found.judged.content["tables"].values():
        for rule in split.values():
            for task in rule["tasks"]:
                cell = (
                    f"{task['score']:.0%} ± {task['error']:.0%} ({task['right']} / {task['total']})"
                )
                assert f"<td>{cell}</td>" in page


def test_captions_of_no_scenes_have_samples_loss_and_capacity(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(20):
        Image.fromarray(np.full((32, 32, 3), number, np.uint8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"shade {number} <of> grey")
    train(
        replace(text_run(), data=FolderData(path=folder, flip=False)),
        tmp_path / "run",
        progress=False,
    )
    found = report(tmp_path / "run", count=10, progress=False)
    assert found.scores is None and found.judged is None
    assert "they are of captions" in found.unscored
    assert {"samples", "loss", "tokens_per_expert"} <= found.figures.keys()
    assert "verdicts" not in found.figures
    page = found.page.read_text()
    assert "True to the prompt" not in page and "<of>" not in page
