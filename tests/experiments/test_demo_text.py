"""The demo from captions: one command from nothing to a page of verdicts."""

import json
import shlex
from pathlib import Path

import pytest

from diffmoe.cli import main
from diffmoe.config import RunConfig
from diffmoe.experiments import demo
from diffmoe.experiments.evaluation import judging
from texts import text_run


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A tiny run in the place of the preset; returns the names of presets asked for."""
    asked: list[str] = []

    def preset(name: str) -> RunConfig:
        asked.append(name)
        return text_run(loop__steps=2)

    monkeypatch.setitem(demo.__globals__, "preset", preset)
    return asked


def test_the_demo_prints_the_table_and_a_command_that_works(
    tmp_path: Path,
    small: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--text", "--count", "8", "--quiet"]) == 0
    assert small == ["scenes-diffmoe"]
    lines = capsys.readouterr().out.splitlines()
    run = Path("runs/demo-t2i")
    for task in ("single_object", "color_attr"):
        assert sum(line.startswith(task) for line in lines) == 1 + (task == "color_attr")
    assert f"report: {run / 'report.html'}" in lines and (run / "report.html").is_file()
    content = json.loads((run / "report.json").read_text())
    assert content["command"] == shlex.join(
        ["diffmoe", "demo", "--text", "--count", "8", "--quiet"]
    )
    last = shlex.split(lines[-1].removeprefix("next: "))
    assert main([*last[last.index("sample") :], "--quiet"]) == 0


def test_the_demo_goes_on_and_judges_again(tmp_path: Path) -> None:
    first = demo(tmp_path, text=True, count=8, progress=False)
    again = demo(tmp_path, text=True, steps=4, count=8, progress=False)
    assert first.judged is not None and again.judged is not None
    assert first.judged.path != again.judged.path  # of other weights
    assert len(list((tmp_path / "evaluation").glob("judge-*.json"))) == 2


def test_pictures_that_could_not_be_judged_are_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import builtins

    honest = builtins.__import__

    def refused(name: str, *others: object) -> object:
        if name.startswith("scipy"):
            raise ImportError(name)
        return honest(name, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", refused)
    with pytest.raises(judging.ConfigError, match="the judge of scenes needs the package scipy"):
        demo(tmp_path / "run", text=True, count=8, progress=False)
    assert not (tmp_path / "run").exists()
