"""The compute dial: what is asked for is what is realised, found once and kept."""

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import diffmoe.sampling.demand as demand_module
import tiny
import trained
from diffmoe.checkpoint import LoadedRun, RunFolder
from diffmoe.config import RunConfig, SamplingConfig
from diffmoe.errors import ConfigError, StorageError
from diffmoe.model import DiT
from diffmoe.sampling import Demand, Moment, balanced_labels, calibrate, find_thresholds, generate

histogram = demand_module._histogram
LEVELS = ("global", "layer", "expert")
EXPERTS = 4


def drawn(model: DiT, run: RunConfig, images: int, **given: Any) -> tuple[Tensor, Tensor]:
    """Images, and the share of all rows that each expert of each layer took (L, E)."""
    taken, rows = torch.zeros(2, EXPERTS), 0

    def watch(moment: Moment) -> None:
        nonlocal rows
        for layer, record in enumerate(moment.evaluation.output.routing):
            taken[layer] += record.count
        rows += record.rows

    labels = balanced_labels(images, run.model.num_classes)
    found = generate(model, run, labels, range(images), callback=watch, **given)
    return found, taken / rows


def average(share: Tensor) -> float:
    return float(share.sum(dim=1).mean())


# --- the histogram ------------------------------------------------------------------------------


def demanded(run: RunConfig, model: DiT) -> tuple[Demand, list[Tensor]]:
    """The demand of a small drawing, and the scores it counts, layer by layer."""
    demand = Demand(model, run.sampling.selection)
    scores: list[list[Tensor]] = [[], []]

    def watch(moment: Moment) -> None:
        routing = moment.evaluation.output.routing
        demand.add(routing)
        for layer, record in enumerate(routing):
            scores[layer].append(model.moe_layers[layer].router.scores(record))

    generate(model, run, [1, 2, 3], [0, 1, 2], callback=watch)
    return demand, [torch.cat(own) for own in scores]


@pytest.mark.parametrize("selection", ["token", "gate"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("capacity", [0.1, 0.7, 1.0, 2.5, 3.9])
def test_the_offset_is_where_that_many_rows_lie_above(
    selection: str, level: Any, capacity: float
) -> None:
    """Against a count of the scores themselves, above each threshold moved."""
    run = trained.config(selection=selection)
    demand, scores = demanded(run, trained.network(run))
    moved = demand.thresholds(demand.offset(level, capacity)).logit()
    share = torch.stack(
        [(own > moved[layer]).double().mean(dim=0) for layer, own in enumerate(scores)]
    )
    found = {"global": average(share), "layer": share.sum(dim=1), "expert": share * EXPERTS}[level]
    assert torch.as_tensor(found).sub(capacity).abs().max() < 0.03  # rows within one bin


def test_every_row_is_below_no_threshold() -> None:
    run = trained.config()
    demand, _ = demanded(run, trained.network(run))
    everything = demand.offset("global", EXPERTS)
    assert (everything == -math.inf).all()
    assert (demand.thresholds(everything) < 0).all()


def test_no_offset_is_the_tracked_thresholds_to_the_bit() -> None:
    run = trained.config()
    model = trained.network(run)
    demand = Demand(model, "token")
    tracked = torch.stack([layer.router.threshold for layer in model.moe_layers])
    assert torch.equal(demand.thresholds(torch.zeros(2, EXPERTS).double()).float(), tracked)


def test_the_histogram_does_not_grow() -> None:
    run = trained.config()
    model = trained.network(run)
    before = Demand(model, "token").counts.shape
    assert demanded(run, model)[0].counts.shape == before


# --- what is asked for is what is realised ------------------------------------------------------

SETTINGS: dict[str, dict[str, Any]] = {
    "token": {},
    "guided": {"guidance": 2.0},
    "interval": {"guidance": 2.0, "guidance_end": 0.5},
    "pool": {"selection": "pool", "batch": 20},
    "gate": {"selection": "gate"},
    "heun": {"sampler": "heun", "steps": 2},
    "ancestral": {"sampler": "ancestral"},
    "capped": {"max_capacity": 1.0},
}


@pytest.mark.parametrize("given", SETTINGS.values(), ids=SETTINGS.keys())
def test_other_images_have_the_capacity_that_was_asked_for(given: dict[str, Any]) -> None:
    run = trained.config(capacity=0.7, **given)
    model = trained.network(run)
    found = find_thresholds(model, run, run.sampling)
    assert found.asked == 0.7 and abs(found.realised / 0.7 - 1) <= 0.02
    _, share = drawn(model, run, 200, thresholds=found.thresholds)
    assert abs(average(share) / 0.7 - 1) <= 0.02


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("capacity", [0.3, 0.5, 1.3, 3.0])
def test_each_level_has_its_average(level: Any, capacity: float) -> None:
    run = trained.config(capacity=capacity, capacity_level=level)
    model = trained.network(run)
    found = find_thresholds(model, run, run.sampling)
    assert abs(found.realised / capacity - 1) <= 0.02
    _, share = drawn(model, run, 400, thresholds=found.thresholds)
    assert abs(average(share) / capacity - 1) <= 0.035  # these images vary much
    if level != "global":
        assert (share.sum(dim=1) / capacity - 1).abs().max() <= 0.08
    if level == "expert":
        assert (share * EXPERTS / capacity - 1).abs().max() <= 0.15


def test_an_adaptive_solver_has_a_dial_too() -> None:
    given = {"sampler": "dopri5", "rtol": 0.1, "atol": 0.1, "shared_step": True}
    run = trained.config(capacity=0.7, **given)
    model = trained.network(run)
    found = find_thresholds(model, run, run.sampling)
    assert abs(found.realised / 0.7 - 1) <= 0.02


def test_all_there_is_can_be_asked_for() -> None:
    run = trained.config(capacity=float(EXPERTS))
    model = trained.network(run)
    found = find_thresholds(model, run, run.sampling)
    _, share = drawn(model, run, 10, thresholds=found.thresholds)
    assert bool((share == 1).all()) and found.realised == EXPERTS


def test_a_sure_predictor_has_a_dial() -> None:
    """Its probabilities are 0 or 1 in float32, and its demands differ all the same."""
    run = trained.config(capacity=0.2)
    model = trained.network(run)
    for layer in model.moe_layers:
        for parameter in layer.router.predictor.output.parameters():
            parameter.mul_(20)
    _, before = drawn(model, trained.config(), 50)
    found = find_thresholds(model, run, run.sampling)
    _, share = drawn(model, run, 200, thresholds=found.thresholds)
    assert average(before) > 0.4 and abs(average(share) / 0.2 - 1) <= 0.03


def test_what_the_model_does_by_itself_needs_no_offset() -> None:
    """Asked for the capacity of its tracked thresholds, it draws the same images."""
    run = trained.config()
    model = trained.network(run)
    usual, share = drawn(model, run, 130)
    asked = trained.config(capacity=average(share))
    found = find_thresholds(model, asked, asked.sampling)
    tracked = torch.stack([layer.router.threshold for layer in model.moe_layers])
    torch.testing.assert_close(found.thresholds.float(), tracked, atol=0.02, rtol=0)
    images, _ = drawn(model, asked, 130, thresholds=tracked)
    assert torch.equal(images, usual)


def test_an_image_is_its_own_at_any_capacity() -> None:
    run = trained.config(capacity=0.6)
    model = trained.network(run)
    thresholds = find_thresholds(model, run, run.sampling).thresholds
    together, _ = drawn(model, run, 5, thresholds=thresholds)
    for image in range(5):
        alone = generate(model, run, [image], [image], thresholds=thresholds)
        torch.testing.assert_close(alone[0], together[image], atol=1e-5, rtol=1e-5)


def test_what_cannot_be_reached_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """An expert that finds all rows alike takes all of them or none: there is 0, 0.5, 1, ..."""
    run = trained.config(steps=2, capacity=0.3)
    model = trained.network(run)
    for layer in model.moe_layers:
        for parameter in layer.router.predictor.parameters():
            parameter.zero_()
    with caplog.at_level(logging.WARNING, logger="diffmoe"):
        found = find_thresholds(model, run, run.sampling)
    assert found.realised in (0.0, 0.5) and "capacity 0.3 asked for" in caplog.text


def test_infinite_scores_are_counted_at_their_end() -> None:
    """A softmax that is 1, or 0, in float32 has an infinite logit."""
    scores = torch.tensor([[math.inf], [-math.inf], [100.0], [math.nan], [0.0]])
    counts = histogram(scores, torch.tensor([0.5]))[0]
    assert counts[-1] == 2 and counts[0] == 2 and counts.sum() == 5


def test_no_capacity_no_calibration() -> None:
    run = trained.config()
    with pytest.raises(ConfigError, match="no capacity is asked for"):
        find_thresholds(trained.network(run), run, run.sampling)


def test_thresholds_never_measured_have_no_dial() -> None:
    run = trained.config(capacity=0.7)
    with pytest.raises(ConfigError, match="never measured"):
        find_thresholds(trained.network(run, measured=False), run, run.sampling)


@pytest.mark.parametrize("router", ["dense", "token_choice", "expert_choice"])
def test_a_router_without_thresholds_has_no_demand(router: str) -> None:
    run = trained.config(tiny.ROUTERS[router])
    with pytest.raises(ConfigError, match="selects by no thresholds"):
        Demand(trained.network(run), "token")


# --- kept in the run ----------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> LoadedRun:
    config = trained.config(steps=2)
    return LoadedRun(RunFolder(tmp_path), config, trained.network(config), 4, "ema", "a" * 64)


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[SamplingConfig]]:
    """The settings that were searched for, in order."""
    asked: list[SamplingConfig] = []

    def search(model: DiT, config: RunConfig, settings: SamplingConfig, **more: Any) -> Any:
        asked.append(settings)
        return find_thresholds(model, config, settings, **more)

    monkeypatch.setattr("diffmoe.sampling.dial.find_thresholds", search)
    yield asked


def settings(**given: Any) -> SamplingConfig:
    return SamplingConfig(**{"steps": 2, "capacity": 0.7, **given})


def test_what_was_found_is_found_again_to_the_bit(run: LoadedRun, searches: list) -> None:
    first, second = calibrate(run, settings()), calibrate(run, settings())
    assert len(searches) == 1
    assert torch.equal(first.thresholds, second.thresholds)
    assert first.thresholds.dtype == second.thresholds.dtype == torch.float64
    assert (first.asked, first.realised, first.layers) == (
        second.asked,
        second.realised,
        second.layers,
    )


OTHER: dict[str, dict[str, Any]] = {
    "capacity": {"capacity": 0.8},
    "level": {"capacity_level": "layer"},
    "sampler": {"sampler": "heun"},
    "steps": {"steps": 3},
    "guidance": {"guidance": 1.5},
    "selection": {"selection": "pool"},
    "weights": {"weights": "raw"},
}


@pytest.mark.parametrize("other", OTHER.values(), ids=OTHER.keys())
def test_other_settings_are_another_calibration(
    run: LoadedRun, searches: list, other: dict[str, Any]
) -> None:
    calibrate(run, settings())
    calibrate(run, settings(**other))
    assert len(searches) == 2 and len(list(run.folder.calibrations.iterdir())) == 2


def test_other_weights_are_another_calibration(run: LoadedRun, searches: list) -> None:
    calibrate(run, settings())
    later = LoadedRun(run.folder, run.config, run.model, 8, "ema", "b" * 64)
    calibrate(later, settings())
    assert len(searches) == 2


def test_the_batch_matters_to_a_pool_alone(run: LoadedRun, searches: list) -> None:
    calibrate(run, settings())
    calibrate(run, settings(batch=7))
    assert len(searches) == 1
    calibrate(run, settings(selection="pool"))
    calibrate(run, settings(selection="pool", batch=7))
    assert len(searches) == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "[" * 100_000,
        lambda text: text.replace("0.", "NaN, 0.", 1),
        lambda text: json.dumps({**json.loads(text), "version": 99}),
        lambda text: json.dumps({**json.loads(text), "thresholds": [[None] * 4] * 2}),
        lambda text: json.dumps({**json.loads(text), "thresholds": [[0.5]]}),
        lambda text: json.dumps({**json.loads(text), "for": {}}),
    ],
)
def test_a_damaged_file_is_told_and_made_anew(
    run: LoadedRun, searches: list, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    first = calibrate(run, settings())
    file = next(run.folder.calibrations.iterdir())
    sound = file.read_text()
    file.write_text(damage(sound))
    with caplog.at_level(logging.WARNING, logger="diffmoe"):
        again = calibrate(run, settings())
    assert len(searches) == 2 and file.name in caplog.text
    assert torch.equal(first.thresholds, again.thresholds) and file.read_text() == sound


def test_a_run_that_cannot_be_written_to_can_be_calibrated(
    run: LoadedRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, text: str) -> None:
        raise StorageError("the disk is full", where=str(path))

    monkeypatch.setattr("diffmoe.sampling.dial.write_text", full)
    with caplog.at_level(logging.WARNING, logger="diffmoe"):
        found = calibrate(run, settings())
    assert found.thresholds.shape == (2, EXPERTS) and "is not kept: the disk is full" in caplog.text
