"""A sweep draws, times and scores every setting of the dial, and its search obeys the budget."""

import csv
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from diffmoe.analysis import CapacityTrace
from diffmoe.checkpoint import load
from diffmoe.codec import Pixels
from diffmoe.config import FolderData, SamplingConfig
from diffmoe.errors import ConfigError, StorageError
from diffmoe.experiments import loss as loss_module
from diffmoe.experiments.loss import DenoisingLoss, denoising_loss
from diffmoe.experiments.pareto import CAPACITIES, Sweep, rounds, sweep
from diffmoe.experiments.pareto import run as run_module
from diffmoe.experiments.pareto.interval import Found, search_gamma
from diffmoe.experiments.pareto.points import asked_points
from diffmoe.experiments.pareto.rounds import Taken, draw_in_rounds
from diffmoe.experiments.scoring import Reference
from diffmoe.sampling import generate
from diffmoe.training import train
from runs import changed, run_config
from texts import text_run

FEW = {"capacities": [0.5, 1.5], "gammas": [0.7, 0.3], "count": 12, "progress": False}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps; whoever writes into it writes elsewhere."""
    run = tmp_path_factory.mktemp("sweep") / "run"
    train(run_config(sampling__batch=32), run, progress=False)
    return run


@pytest.fixture(scope="module", autouse=True)
def few_images() -> Iterator[None]:
    """Capacities are found from fewer images than usual."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "_SEARCHED", 32)
        patch.setattr("diffmoe.sampling.thresholds._MOST_IMAGES", 256)
        yield


@pytest.fixture(scope="module")
def found(trained: Path) -> Sweep:
    return sweep(trained, **FEW)


def record_of(found: Sweep) -> Any:
    return json.loads((found.page.parent / "sweep.json").read_text())


def test_every_setting_is_a_point(found: Sweep) -> None:
    names = [point.name for point in found.points]
    assert names[:5] == ["tracked", "capacity 0.5", "capacity 1.5", "gamma 0.7", "gamma 0.3"]
    assert [point.kind for point in found.points[5:]] == ["search"]
    assert found.points[5].setting == found.found
    for point in found.points:
        assert point.seconds > 0 and math.isnan(point.spread)  # of one batch
        assert point.loss is not None and point.frechet is not None
        assert point.agreement is not None


def test_capacities_are_realised_and_thresholds_are_monotone(found: Sweep) -> None:
    by_name = {point.name: point for point in found.points}
    for capacity in (0.5, 1.5):
        assert by_name[f"capacity {capacity:g}"].capacity == pytest.approx(capacity, rel=0.05)
    assert by_name["gamma 0.7"].capacity <= by_name["gamma 0.3"].capacity


def test_page_table_and_record_agree(found: Sweep) -> None:
    folder = found.page.parent
    record = record_of(found)
    with (folder / "sweep.csv").open() as stream:
        table = list(csv.DictReader(stream))
    page = found.page.read_text()
    for point, line, kept in zip(found.points, table, record["points"], strict=True):
        assert line["name"] == kept["name"] == point.name
        assert kept["capacity"] == point.capacity and kept["loss"] == point.loss
        assert float(line["capacity"]) == pytest.approx(point.capacity, rel=1e-8)
        assert float(line["loss"]) == pytest.approx(point.loss, rel=1e-8)
        assert line["spread"] == "" and kept["spread"] is None
        assert f"<td>{point.capacity:.3f}</td>" in page
        assert any(point.name in said and f"{point.loss:.5f}" in said for said in found.lines())
    assert record["search"]["gamma"] == found.found and record["search"]["steps"]
    assert record["stamp"]["sampling"]["policy"] == "ema" and record["stamp"]["seeds"] == [0, 11]
    assert set(record["thresholds"]) == {"capacity 0.5", "capacity 1.5"}
    written = ["figures/sweep.png", "figures/sweep.svg", "report.html", "sweep.csv"]
    assert record["files"] == written
    assert found.lines()[-1] == f"sweep: {found.page}"


@pytest.mark.parametrize("selection", ["pool", "gate"])
def test_every_selection_has_a_dial(selection: str, trained: Path, tmp_path: Path) -> None:
    settings = SamplingConfig(steps=2, batch=8, selection=selection)  # type: ignore[arg-type]
    asked = {"capacities": [1.0], "gammas": [0.2], "search": False, "count": 8}
    made = sweep(trained, settings=settings, out=tmp_path / "out", progress=False, **asked)
    assert made.found is None and record_of(made)["search"] is None
    assert [point.name for point in made.points] == ["tracked", "capacity 1", "gamma 0.2"]
    assert record_of(made)["stamp"]["sampling"]["selection"] == selection


@pytest.mark.parametrize(
    "own",
    [
        {"gamma": 0.4},
        {"capacity": 0.7, "capacity_level": "layer"},
        {"selection": "pool", "policy": "static"},
    ],
    ids=["gamma", "capacity", "static"],
)
def test_the_policy_of_a_run_counts_for_nothing(own: dict[str, Any]) -> None:
    config = run_config()
    settings = SamplingConfig(steps=2, batch=8, **own)
    config = replace(config, sampling=settings)
    points = asked_points(config, settings, [1, 1.0], [0.5, 0.5])
    assert [p.settings.policy for p in points] == ["ema", "target", "constant"]
    assert points[1].settings.capacity_level == own.get("capacity_level", "global")
    assert {p.settings.selection for p in points} == {settings.selection}
    free = SamplingConfig(steps=2, batch=8)
    assert len(asked_points(config, free, [1], [])) == 2  # leaves the dial alone


@pytest.mark.parametrize("level", ["global", "layer", "expert"])
def test_targets_have_the_level_asked_for(level: Any) -> None:
    config = run_config()
    config = replace(config, sampling=config.sampling.at(capacity=0.7, capacity_level="layer"))
    points = asked_points(config, config.sampling, [1], [0.5], level)
    assert [p.settings.capacity_level for p in points] == ["global", level, "global"]
    (target,) = asked_points(config, config.sampling, [1], [])[1:]
    assert target.settings.capacity_level == "layer"


def test_usual_capacities_are_those_the_model_can_have() -> None:
    config = run_config()
    points = asked_points(config, replace(config.sampling, max_capacity=1.0), None, [])
    asked = [point.setting for point in points[1:]]
    assert asked == [capacity for capacity in CAPACITIES if capacity <= 1]


def test_counting_agrees_with_the_trace(trained: Path) -> None:
    run = load(trained)
    settings = replace(run.config.sampling, guidance=2.0)
    taken, trace = Taken(), CapacityTrace.empty(run.config, settings.steps)
    for callback in (taken, trace):
        generate(run.model, run.config, [1, 2], [3, 4], settings=settings, callback=callback)
    assert taken.capacity == pytest.approx(trace.average)


def test_rounds_draw_what_one_call_draws(trained: Path) -> None:
    run = load(trained)
    points = asked_points(run.config, replace(run.config.sampling, batch=4), [], [0.5, 0.2])
    labels, seeds = [1, 2, 3, 4, 5, 6], range(6)
    drawn = draw_in_rounds(run, points, labels, seeds, codec=Pixels(), progress=False)
    for point, one in zip(points, drawn, strict=True):
        whole = generate(run.model, run.config, labels, seeds, settings=point.settings)
        assert one.images is not None and one.images.shape == whole.shape
        shown = ((whole.clamp(-1, 1) + 1) * 127.5).round()
        assert (one.images - shown).abs().max() <= 1
        assert len(one.times.rounds) == 1  # of the whole batch; the last one is smaller
        assert math.isnan(one.spread)


def test_a_page_says_what_one_batch_and_few_samples_do_not_tell(found: Sweep) -> None:
    page = found.page.read_text()
    assert "one batch each: times are not compared; decoding left out" in page
    assert "median over batches" not in page
    assert "below the noise of 12 samples mean little" in page
    assert "(of the model on average)" in page and record_of(found)["level"] == "global"
    threads = torch.get_num_threads()
    machine = record_of(found)["stamp"]["device_name"]
    assert f"{machine}, {threads} thread{'s' * (threads > 1)}<" in page
    table = found.lines()[:-1]
    column = table[0].index("spread")
    assert {line[column : column + 6].strip() for line in table[1:]} == {"-"}


def test_times_of_several_batches_are_compared(trained: Path, tmp_path: Path) -> None:
    few = {"capacities": [0.5], "gammas": [], "search": False, "count": 4, "progress": False}
    settings = SamplingConfig(steps=2, batch=2)
    made = sweep(trained, settings=settings, level="layer", out=tmp_path / "out", **few)
    assert all(point.spread >= 0 for point in made.points)
    page = made.page.read_text()
    assert "median over batches; decoding left out" in page and "(of each layer)" in page
    assert record_of(made)["level"] == "layer"


def test_a_threshold_that_was_asked_for_and_found_is_drawn_once(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [{"gamma": 0.3, "capacity": 0.9}, {"gamma": 0.3, "loss": 1.0}]
    chosen = Found(0.3, "least loss of 1 threshold, at the budget", steps)
    monkeypatch.setattr(run_module, "search_gamma", lambda *_: chosen)
    drawn: list[str] = []

    def watched(run: Any, points: Any, *asked: Any, **more: Any) -> Any:
        drawn.extend(point.name for point in points)
        return draw_in_rounds(run, points, *asked, **more)

    monkeypatch.setattr(run_module, "draw_in_rounds", watched)
    few = {"capacities": [], "gammas": [0.3], "count": 4, "progress": False}
    made = sweep(trained, out=tmp_path / "out", **few)
    assert drawn == ["tracked", "gamma 0.3"]
    assert [point.kind for point in made.points] == ["ema", "constant", "search"]
    own, marked = (vars(point) for point in made.points[1:])
    assert {n: v for n, v in marked.items() if n not in ("kind", "spread")} == {
        n: v for n, v in own.items() if n not in ("kind", "spread")
    }
    page = made.page.read_text()
    assert "2 settings of the compute dial" in page and "measured at 1 threshold," in page
    assert "at the budget&#34; is the smallest of them" in page
    assert sum("gamma 0.3" in line for line in made.lines()) == 2


# --- the loss ------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["flow", "ddpm"])
@pytest.mark.parametrize("selection", ["token", "pool", "gate"])
def test_the_loss_is_the_same_on_every_call(
    objective: str, selection: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_module, "_MOST_IMAGES", 24)
    config = run_config(objective=objective, sampling__selection=selection)
    train(changed(config, {"loop.steps": 2}), tmp_path, progress=False)
    run = load(tmp_path)
    source = Reference.of(config).source
    assert source is not None
    point = asked_points(config, config.sampling, [], [])[0]
    first, second = (DenoisingLoss.of(run, source).under(point.settings) for _ in range(2))
    assert first == second > 0
    bare = DenoisingLoss.of(run, source)
    assert sorted(bare.draws.t.tolist()) != bare.draws.t.tolist()  # batches have mixed levels
    low = replace(point.settings, precision="bfloat16")
    assert bare.under(low) == pytest.approx(first, rel=0.05)


class Shaken:
    """A codec that adds its noise."""

    channels, identity = 1, "shaken"

    def encode(self, pixels: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return pixels + noise


def test_images_of_a_codec_are_encoded(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, built = load(trained), []
    source = Reference.of(run.config).source
    assert source is not None
    plain = DenoisingLoss.of(run, source)
    monkeypatch.setattr(
        loss_module,
        "source_codec",
        lambda *asked: built.append(asked) or Shaken(),
    )
    noise = DenoisingLoss.of(run, source).x - plain.x
    assert len(built) == 1 and noise.std() == pytest.approx(1, abs=0.02)
    assert len(noise.flatten(1).unique(dim=0)) == len(plain.x) == 512


def test_data_that_cannot_be_read_have_no_loss(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise ConfigError("the autoencoder is lost")

    monkeypatch.setattr(loss_module, "source_codec", lost)
    run = load(trained)
    assert denoising_loss(run, Reference.of(run.config)) == (None, "the autoencoder is lost")


def test_a_run_from_captions_is_swept_by_its_loss(tmp_path: Path) -> None:
    """Nothing scores its pictures, but what it was trained to do is known of each setting."""
    train(text_run(loop__steps=2), tmp_path / "run", progress=False)
    made = sweep(tmp_path / "run", capacities=[], gammas=[0.5], count=4, progress=False)
    assert all(p.loss is not None and p.frechet is None for p in made.points)
    page = made.page.read_text()
    assert "conditions kept" in page and "captions of the training in turn" in page
    assert "not scored: the images are drawn from captions" in page


def test_without_its_data_a_run_is_swept_all_the_same(tmp_path: Path) -> None:
    data = tmp_path / "pictures"
    for label in range(2):
        (data / str(label)).mkdir(parents=True)
        for shade in range(8):
            picture = torch.full((8, 8), 30 * shade + 9 * label, dtype=torch.uint8)
            Image.fromarray(picture.numpy()).save(data / str(label) / f"{shade}.png")
    config = run_config(data=FolderData(path=data), model__num_classes=2)
    train(config, tmp_path / "run", progress=False)
    data.rename(tmp_path / "elsewhere")
    made = sweep(tmp_path / "run", capacities=[], gammas=[0.5], count=4, progress=False)
    assert all(p.loss is p.frechet is p.agreement is None for p in made.points)
    page = made.page.read_text()
    assert "not known: data.path does not exist" in page
    assert "not scored: data.path does not exist" in page
    assert "the loss is not known" in page
    assert not list(made.page.parent.glob("figures/*"))


# --- the search ----------------------------------------------------------------------------------

Curve = Callable[[float], float]


def falling(gamma: float) -> float:
    return 2.4 * (1 - gamma) ** 0.7


CURVES: list[tuple[str, Curve, Curve]] = [
    ("more is better", falling, lambda gamma: 1 + gamma**2),
    ("best inside", falling, lambda gamma: (gamma - 0.83) ** 2),
    ("less is better", falling, lambda gamma: 2 - gamma),
    ("a cliff", lambda gamma: 4.0 if gamma < 0.612 else 0.2, lambda gamma: gamma),
    ("always within", lambda gamma: 0.9 - 0.5 * gamma, lambda gamma: (gamma - 0.3) ** 2),
]


@pytest.mark.parametrize(("name", "capacity", "loss"), CURVES, ids=[c[0] for c in CURVES])
def test_the_search_finds_what_a_grid_finds(name: str, capacity: Curve, loss: Curve) -> None:
    asked: list[float] = []

    def counted(gamma: float) -> float:
        asked.append(gamma)
        return capacity(gamma)

    found = search_gamma(counted, loss)
    assert capacity(found.gamma) <= 1 and len(asked) <= 24
    grid = [gamma / 2000 for gamma in range(1, 1901) if capacity(gamma / 2000) <= 1]
    best = min(grid, key=loss)
    assert loss(found.gamma) <= loss(best) + 0.02 * (max(map(loss, grid)) - loss(best))
    assert {step["gamma"] for step in found.steps if "capacity" in step} == set(asked)


def test_a_search_without_a_feasible_threshold_says_so() -> None:
    found = search_gamma(lambda gamma: 1.5, lambda gamma: gamma)
    assert found.gamma == 0.9999 and found.reason.startswith("no threshold has C_avg <= 1")


def test_a_search_without_a_loss_takes_the_smallest() -> None:
    found = search_gamma(falling, None)
    assert 0.995 <= falling(found.gamma) <= 1
    late = search_gamma(lambda gamma: 50 * (1 - gamma), lambda gamma: gamma)
    assert late.gamma > 0.95 and late.reason.endswith("least loss of 1 threshold, at the budget")
    assert "the loss is not known" in found.reason


def test_a_search_passes_over_what_is_no_number_or_beyond_the_budget() -> None:
    def odd(gamma: float) -> float:  # noise breaks the order: one place within is beyond
        return 1.2 if 0.8 < gamma < 0.9 else falling(gamma)

    found = search_gamma(odd, lambda gamma: math.nan if gamma > 0.9 else 1 - gamma)
    assert odd(found.gamma) <= 1 and found.gamma <= 0.8


# --- what is refused before anything is drawn ----------------------------------------------------


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(*_: object, **__: object) -> None:
        raise AssertionError("minutes of work")

    for module in (run_module, rounds, sys.modules["diffmoe.sampling.thresholds"]):
        monkeypatch.setattr(module, "generate", drawn)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"capacities": [1, 0]}, r"sampling\.capacity 0\.0 is not in \(0, number of experts\]"),
        ({"capacities": [-1.0]}, r"sampling\.capacity -1\.0 is not in"),
        ({"capacities": [math.nan]}, r"sampling\.capacity nan is not in"),
        ({"capacities": [4.5]}, r"sampling\.capacity 4\.5 is not in \(0, 4\]"),
        ({"gammas": [1.0]}, r"sampling\.gamma 1\.0 is not in \[0, 1\)"),
        ({"gammas": [-0.1]}, r"sampling\.gamma -0\.1 is not in \[0, 1\)"),
        ({"capacities": [], "level": "layer"}, "level layer would change nothing: no capacity"),
        ({"count": 1}, "count 1 is too few"),
        ({"first_seed": -1}, "seed -1 is out of range"),
    ],
)
def test_settings_that_there_are_not_are_refused(
    asked: dict[str, Any], named: str, trained: Path, tmp_path: Path, undrawn: None
) -> None:
    with pytest.raises(ConfigError, match=named):
        sweep(trained, out=tmp_path / "out", progress=False, **asked)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("own", "told"),
    [
        (
            {"capacity": 0.5},
            r"sampling\.capacity 0\.5 would change nothing: a sweep sets capacities itself — use"
            r" --capacities 0\.5",
        ),
        ({"gamma": 0.5}, r"sampling\.gamma 0\.5 .* sets gammas itself — use --gammas 0\.5"),
        ({"selection": "pool", "policy": "static"}, r"policy static .* itself — leave it out"),
    ],
    ids=["capacity", "gamma", "policy"],
)
def test_a_place_on_the_dial_is_refused(
    own: dict[str, Any], told: str, trained: Path, tmp_path: Path, undrawn: None
) -> None:
    with pytest.raises(ConfigError, match=told):
        sweep(trained, settings=SamplingConfig(**own), out=tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_pictures_beyond_memory_are_refused_where_they_are_scored(
    trained: Path, tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "_MOST_BYTES", 4 * 64 * 10)  # 4 settings, 8 x 8 pixels
    asked = {"capacities": [1.0], "gammas": [0.5], "out": tmp_path / "out", "progress": False}
    with pytest.raises(ConfigError, match=r"count 11 is too many: .* 4 settings.* use 10 or fewer"):
        sweep(trained, count=11, **asked)
    for count, unscored in ((10, ""), (11, "no pictures")):
        reference = replace(Reference.of(run_config()), unscored=unscored)
        monkeypatch.setattr(run_module, "_reference", lambda *_, r=reference: r)
        with pytest.raises(AssertionError, match="minutes of work"):
            sweep(trained, count=count, **asked)


def test_a_selection_of_fixed_capacity_is_refused(trained: Path, undrawn: None) -> None:
    settings = SamplingConfig(selection="image")
    with pytest.raises(ConfigError, match=r"selection image has .* use one of token, pool, gate"):
        sweep(trained, settings=settings, progress=False)


@pytest.mark.parametrize("router", ["dense", "token_choice", "expert_choice"])
def test_a_router_without_a_dial_is_refused(router: str) -> None:
    config = run_config(router)
    with pytest.raises(ConfigError, match=f"router {router} selects by no thresholds"):
        asked_points(config, config.sampling, None, [])


def test_thresholds_that_were_never_measured_are_refused(
    trained: Path, tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load(trained)
    for layer in run.model.moe_layers:
        layer.router.threshold_updates.zero_()
    monkeypatch.setattr(run_module, "load", lambda *_, **__: run)
    with pytest.raises(ConfigError, match="were never measured"):
        sweep(trained, out=tmp_path / "out", progress=False)


def test_nothing_but_a_sweep_is_replaced(found: Sweep, trained: Path, tmp_path: Path) -> None:
    few = {"capacities": [], "gammas": [], "search": False, "count": 4, "progress": False}
    out = tmp_path / "out"
    for first in (0, 5):  # nothing is there, then a sweep
        made = sweep(trained, out=out, first_seed=first, **few)
        assert record_of(made)["stamp"]["seeds"][0] == first
    (out / "figures" / "thesis.txt").write_text("years of work")
    with pytest.raises(StorageError, match=r"^figures/thesis\.txt .* would be lost"):
        sweep(trained, out=out, **few)
    with pytest.raises(StorageError, match="would be lost"):
        sweep(trained, out=trained, **few)
    assert (out / "figures" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_package_is_named(
    package: str, trained: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"{package} — pip install \"diffmoe\[plots\]\""):
        sweep(trained, progress=False)
