"""The demo: one command from nothing to a page that tells what was learned."""

import json
import re
import shlex
import time
from pathlib import Path

import pytest
from PIL import Image

from diffmoe.checkpoint import RunFolder, load
from diffmoe.cli import main
from diffmoe.config import SamplingConfig, read_config
from diffmoe.errors import ConfigError
from diffmoe.experiments import demo, report, sample
from diffmoe.presets import preset
from diffmoe.training import train
from long_record import hold
from runs import changed, run_config

FIGURES = {
    "samples.png",
    "loss.png",
    "capacity_per_step.png",
    "capacity_per_class.png",
    "tokens_per_expert.png",
}


def opened(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        picture.load()
        return picture.size


def whole(page: str) -> bool:
    """Whether a page shows everything without asking a network."""
    return not re.search(r"""(src|href)\s*=\s*["']?(?!data:)[^"'\s]*:?//""", page)


def test_the_demo_trains_samples_scores_and_names_the_next_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "demo"
    words = ["demo", "--run", str(run), "--steps", "6", "--count", "20", "--quiet"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert re.match(r"[\d.]+% of 20 samples are read as the class asked for", lines[0])
    assert f"report: {run / 'report.html'}" in lines
    assert lines[-1] == f"next: diffmoe sample {run} --labels 3 3 7 --seeds 0 1 2"
    page = (run / "report.html").read_text()
    assert whole(page) and page.count("data:image/png;base64,") == len(FIGURES)
    assert {path.name for path in (run / "figures").iterdir()} == FIGURES
    assert all(min(opened(run / "figures" / name)) >= 100 for name in FIGURES)
    content = json.loads((run / "report.json").read_text())
    assert content["command"] == shlex.join(["diffmoe", *words])
    assert content["unscored"] == ""
    assert content["scores"]["samples"] == 20 and 0 <= content["scores"]["agreement"] <= 1
    assert content["scores"]["held_out_accuracy"] >= 0.97
    assert content["stamp"]["seeds"] == [0, 19]
    assert content["stamp"]["sampling"]["selection"] == "token"
    assert main([*lines[-1].split()[2:], "--quiet"]) == 0  # the command it names works


def test_the_demo_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    for steps in (2, 4):
        found = demo(tmp_path, steps=steps, count=10, progress=False)
    told = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in told] == [4]  # that of the stop gave way to it
    assert load(tmp_path).step == 4
    assert found.scores is not None and found.scores.samples == 10
    wanted = preset("digits-diffmoe")
    assert read_config(RunFolder(tmp_path).config) == changed(wanted, {"loop.steps": 4})


def test_the_demo_goes_on_from_a_longer_run_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = changed(preset("digits-diffmoe"), {"loop.steps": 2})
    monkeypatch.setitem(demo.__globals__, "preset", lambda name: short)
    train(changed(short, {"loop.steps": 3}), tmp_path, progress=False)
    demo(tmp_path, count=10, progress=False)
    assert read_config(RunFolder(tmp_path).config).loop.steps == 3
    with pytest.raises(ConfigError, match=r"loop\.steps 2 is less than the 3 steps"):
        demo(tmp_path, steps=2, count=10, progress=False)


def test_a_whole_page_is_told_from_one_that_asks_a_network() -> None:
    assert whole('<img src="data:image/png;base64,AA//BB">')
    assert not whole('<img src="https://example.org/a.png">')
    assert not whole("<link href=//example.org/a.css>")


@pytest.mark.parametrize("router", ["dense", "token_choice", "expert_choice"])
def test_a_report_of_any_router_shows_what_there_is(router: str, tmp_path: Path) -> None:
    train(run_config(router), tmp_path, progress=False)
    found = report(tmp_path, count=10, progress=False)
    shown = {path.name for path in found.figures.values()}
    routed = {"tokens_per_expert.png"} if router != "dense" else set()
    assert shown == {"samples.png", "loss.png"} | routed  # their capacity is the same everywhere
    if router != "dense":
        assert found.capacity == pytest.approx(1.0)


def test_a_report_of_a_ddpm_run(tmp_path: Path) -> None:
    train(run_config("batch_pool", "ddpm"), tmp_path, progress=False)
    found = report(tmp_path, count=10, progress=False)
    assert found.scores is not None and found.page.exists()


def test_a_report_is_made_beside_a_job_that_trains(tmp_path: Path) -> None:
    train(run_config(), tmp_path, progress=False)
    with RunFolder(tmp_path).locked():
        assert report(tmp_path, count=4, progress=False).page.exists()
        settings = SamplingConfig(steps=2)
        assert sample(tmp_path, [1], [0], settings=settings, progress=False).is_dir()


def test_settings_that_do_not_fit_the_run_are_refused(tmp_path: Path) -> None:
    train(run_config("batch_pool", "ddpm"), tmp_path, progress=False)
    many = SamplingConfig(sampler="ancestral", steps=51)
    with pytest.raises(ConfigError, match=r"sampling\.steps 51 is more than"):
        sample(tmp_path, [1], [0], settings=many, progress=False)
    with pytest.raises(ConfigError, match=r"sampling\.steps 51 is more than"):
        report(tmp_path, count=4, settings=many, progress=False)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_full_demo_draws_digits_that_a_classifier_reads(tmp_path: Path) -> None:
    def measure() -> dict[str, float]:
        began = time.perf_counter()
        found = demo(tmp_path, progress=False)
        assert found.scores is not None
        assert found.scores.agreement >= 0.97, found.scores
        assert found.scores.held_out_accuracy >= 0.97, found.scores
        assert found.scores.copies <= 0.05, found.scores
        seconds = {"seconds": round(time.perf_counter() - began, 1)}
        return {**found.scores.as_dict(), "capacity": found.capacity, **seconds}

    hold(
        "demo",
        "a classifier that reads 97 % of held-out scans reads 97 % of 1,000 samples of the demo as"
        " the class asked for, and at most 5 % of them lie nearer to a training scan than 99 % of"
        " scans lie to each other",
        1000,
        measure,
    )
