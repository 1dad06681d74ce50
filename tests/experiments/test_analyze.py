"""Where compute goes, for every router: whole, in its place, and told as it is."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from diffmoe.analysis import CapacityTrace, read_trace
from diffmoe.checkpoint import load
from diffmoe.cli import main
from diffmoe.config import SamplingConfig
from diffmoe.errors import ConfigError, StorageError
from diffmoe.experiments import analyze
from diffmoe.experiments.analysis.run import Analysis
from diffmoe.sampling import balanced_labels, generate
from diffmoe.training import train
from runs import OBJECTIVES, ROUTER_KINDS, run_config

COUNT = 20


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Tiny runs of every kind, each trained once."""
    home, made = tmp_path_factory.mktemp("runs"), {}

    def run(router: str = "batch_pool", objective: str = "flow") -> Path:
        key = f"{router}-{objective}"
        if key not in made:
            train(run_config(router, objective), home / key, progress=False)
            made[key] = home / key
        return made[key]

    return run


def analyzed(run: Path, out: Path, **more: Any) -> Analysis:
    given = {"count": COUNT, "maps": 2, "frames": 2, "out": out, "progress": False, **more}
    return analyze(run, **given)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without figures, which take most of the time."""
    monkeypatch.setattr("diffmoe.experiments.analysis.run.sections_of", lambda *_: [])


def settings(**changes: Any) -> SamplingConfig:
    return replace(run_config().sampling.undecided(), **{"policy": None, **changes})


def stems(folder: Path, kind: str) -> set[str]:
    return {path.stem for path in folder.glob(f"*.{kind}")}


def table(out: Path, name: str) -> list[dict[str, str]]:
    with (out / "data" / f"{name}.csv").open() as stream:
        return list(csv.DictReader(stream))


# --- what there is ------------------------------------------------------------------------------

ALWAYS = {"cost", "cost_numbers"}
ROUTED = {"experts", "expert_overlap", "expert_information", "capacity_by_class", "map_frames"}
PREDICTED = {"predictor", "predictor_thresholds", "predictor_by_level", "batch_of_one"}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("router", ROUTER_KINDS)
def test_every_router_has_what_applies_to_it(
    router: str, objective: str, runs: Any, tmp_path: Path
) -> None:
    out = tmp_path / "analysis"
    found = analyzed(runs(router, objective), out)
    tables = stems(out / "data", "csv")
    assert tables >= ALWAYS and stems(out / "data", "json") == tables
    assert (router != "dense") == (tables >= ROUTED)
    assert (router == "batch_pool") == (tables >= PREDICTED)
    assert not (PREDICTED & tables) or router == "batch_pool"
    figures = out / "figures"
    assert stems(figures, "png") == stems(figures, "svg")
    assert (router != "dense") == (figures / "token_experts_0.png").is_file()
    assert (router == "batch_pool") == (figures / "predictor_reliability.png").is_file()
    assert (out / "trace.safetensors").exists() == (router != "dense")
    page = found.page.read_text()
    assert 'src="http' not in page and "Cost" in page
    assert (router == "batch_pool") == ("The capacity predictor" in page)
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_fixed_capacity_has_no_curve(runs: Any, tmp_path: Path) -> None:
    """Expert choice gives every image the same: figures of what varies alone are drawn."""
    out = tmp_path / "analysis"
    analyzed(runs("expert_choice"), out)
    figures = stems(out / "figures", "png")
    assert not {"capacity_by_step", "capacity_by_class", "class_samples"} & figures
    assert {"expert_overlap", "token_overview"} <= figures


@pytest.mark.parametrize(
    "given",
    [
        {"selection": "pool"},
        {"selection": "pool", "policy": "static"},
        {"selection": "gate"},
        {"selection": "image"},
        {"gamma": 0.4},
        {"max_capacity": 0.8},
        {"sampler": "heun"},
        {"sampler": "dopri5", "rtol": 0.1, "atol": 0.1},
        {"guidance": 1.0},
        {"precision": "bfloat16"},
        {"capacity": 2.5, "batch": 64},
    ],
    ids=str,
)
@pytest.mark.usefixtures("plain")
def test_every_setting_can_be_analyzed(given: dict[str, Any], runs: Any, tmp_path: Path) -> None:
    out = tmp_path / "analysis"
    found = analyzed(runs(), out, settings=settings(**given))
    record = json.loads((out / "analysis.json").read_text())
    for name, value in given.items():
        assert record["stamp"]["sampling"][name] == value
    assert any(line.startswith("capacity:") for line in found.lines)


def test_the_numbers_are_those_of_a_sampling(runs: Any, tmp_path: Path) -> None:
    """C_avg, capacity by step and class against a trace of the same images drawn at once."""
    out = tmp_path / "analysis"
    analyzed(runs(), out)
    run = load(runs())
    trace = CapacityTrace.empty(run.config, run.config.sampling.steps)
    labels = balanced_labels(COUNT, run.config.model.num_classes)
    generate(run.model, run.config, labels, range(COUNT), callback=trace)
    steps = table(out, "capacity_by_step")
    np.testing.assert_allclose([float(line["mean"]) for line in steps], trace.per_step, rtol=1e-5)
    classes = table(out, "capacity_by_class")
    found = [float(line["selected"]) for line in classes]
    np.testing.assert_allclose(found, trace.per_class, rtol=1e-5)
    numbers = json.loads((out / "analysis.json").read_text())["numbers"]
    assert numbers["capacity"] == f"{trace.average:.3f}"


@pytest.mark.usefixtures("plain")
def test_the_trace_is_arrays_with_their_meaning(runs: Any, tmp_path: Path) -> None:
    out = tmp_path / "analysis"
    analyzed(runs(), out)
    arrays, schema = read_trace(out)
    assert arrays.keys() == load_file(out / "trace.safetensors").keys() == schema["arrays"].keys()
    assert all(one["meaning"] and one["axes"] for one in schema["arrays"].values())


@pytest.mark.usefixtures("plain")
def test_images_are_held_in_bounded_number(
    runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many are drawn, no more is kept, and no call draws more than a batch."""
    drawn: list[int] = []

    def watched(model: Any, config: Any, labels: Any, seeds: Any, **more: Any) -> torch.Tensor:
        drawn.append(len(labels))
        return generate(model, config, labels, seeds, **more)

    home = "diffmoe.experiments.analysis.draw"
    monkeypatch.setattr(f"{home}.generate", watched)
    monkeypatch.setattr(f"{home}._LEAST_KEPT", 4)
    monkeypatch.setattr(f"{home}._ROUNDS", 1)
    sizes = []
    for count in (20, 60):
        found = analyzed(runs(), tmp_path / str(count), count=count)
        sizes.append((tmp_path / str(count) / "trace.safetensors").stat().st_size)
        assert found.findings.predictor is not None
        assert found.findings.predictor.images <= 16
    assert sizes[0] == sizes[1] and max(drawn) == run_config().sampling.batch


@pytest.mark.usefixtures("plain")
def test_classes_to_map_can_be_named(runs: Any, tmp_path: Path) -> None:
    found = analyzed(runs(), tmp_path / "a", classes=[7, 3, 7])
    assert found.findings.maps is not None
    assert found.findings.maps.labels == [7, 3]


# --- its place ----------------------------------------------------------------------------------


def test_the_verb_writes_into_the_run_and_says_where(
    runs: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs()
    words = [str(run), "--count", "20", "--maps", "1", "--quiet"]
    assert main(["analyze", *words]) == 0
    out = capsys.readouterr().out
    page = run / "analysis" / "report.html"
    assert f"all of it: {page}" in out and "capacity:" in out
    assert "diffmoe analyze" in page.read_text()
    assert main(["analyze", *words]) == 0  # older results are replaced


def test_a_folder_that_holds_other_things_is_refused(runs: Any, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(StorageError, match=r"thesis\.tex was not written here before"):
        analyzed(runs(), out)
    (out / "analysis.json").write_text(json.dumps({"files": "thesis.tex"}))
    with pytest.raises(StorageError, match="was not written here before"):
        analyzed(runs(), out)
    assert (out / "thesis.tex").read_text() == "years of work"


@pytest.mark.usefixtures("plain")
def test_results_with_a_file_of_the_users_among_them_are_kept(runs: Any, tmp_path: Path) -> None:
    out = tmp_path / "analysis"
    analyzed(runs(), out)
    analyzed(runs(), out)
    (out / "figures").mkdir()
    (out / "figures" / "notes.txt").write_text("seen")
    with pytest.raises(StorageError, match="figures was not written here before"):
        analyzed(runs(), out)


@pytest.mark.usefixtures("plain")
def test_a_failure_leaves_the_results_of_before(
    runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "analysis"
    analyzed(runs(), out)
    before = (out / "analysis.json").read_text()

    def broken(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("diffmoe.experiments.analysis.run.write_report", broken)
    with pytest.raises(StorageError):
        analyzed(runs(), out)
    assert (out / "analysis.json").read_text() == before and not list(tmp_path.glob(".tmp-*"))


@pytest.mark.usefixtures("plain")
def test_a_file_that_appears_meanwhile_is_kept(
    runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "analysis"
    analyzed(runs(), out)

    def busy(*_: Any, **__: Any) -> None:
        (out / "notes.txt").write_text("seen")

    monkeypatch.setattr("diffmoe.experiments.analysis.run.write_report", busy)
    with pytest.raises(StorageError, match=r"notes\.txt"):
        analyzed(runs(), out)
    assert (out / "notes.txt").read_text() == "seen" and (out / "report.html").is_file()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"count": 1}, "count 1 is too few"),
        ({"count": 0}, "count 0"),
        ({"maps": 0}, "maps 0 is not in"),
        ({"frames": 1000}, "frames 1000 is not in"),
        ({"classes": [10]}, r"class 10 has no map: classes 0\.\.9"),
        ({"classes": [-1]}, "class -1 has no map"),
        ({"count": 5, "classes": [7]}, r"classes 0\.\.4 are drawn"),
        ({"first_seed": -3}, "seed -3"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_anything_is_drawn(
    given: dict[str, Any], named: str, runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffmoe.experiments.analysis.draw.generate", None)
    with pytest.raises(ConfigError, match=named):
        analyzed(runs(), tmp_path / "analysis", **given)
    assert not (tmp_path / "analysis").exists()


def test_the_dial_turned_by_hand_is_told(
    runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`sample --capacity` says what was asked for and what these images had."""
    out = tmp_path / "samples"
    words = [str(runs()), "--capacity", "2.5", "--count", "200", "--out", str(out), "--quiet"]
    assert main(["sample", *words]) == 0
    record = json.loads((out / "samples.json").read_text())
    assert record["sampling"]["policy"] == "target"
    assert abs(record["capacity"] / 2.5 - 1) < 0.03
    assert abs(record["calibration"]["realised"] / 2.5 - 1) < 0.02
    assert len(record["calibration"]["thresholds"]) == 1
