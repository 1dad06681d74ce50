"""The check of the predictor against loops over every pair of every pool."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
import trained
from diffmoe.analysis.findings import PredictorCheck
from diffmoe.analysis.predictor import check_predictor
from diffmoe.captions import Captions
from diffmoe.config import DDPMConfig
from diffmoe.model import DiT, RoutingPlan, build_model
from diffmoe.sampling import PromptConditions
from texts import WORDS, some_captions, text_model, text_run

LEVELS, BINS = 5, 20
POOL = 8


def config(router: Any = None, ddpm: bool = False, **changes: Any) -> Any:
    """A run of pools of 8 images, two at a time."""
    sampler = {"sampler": "ancestral"} if ddpm else {}
    run = trained.config(router or tiny.batch_pool(4), batch=2 * POOL, **sampler)
    return replace(run, model=replace(run.model, pool_images=POOL, depth=4, width=16, **changes))


def images(number: int) -> tuple[Tensor, Tensor]:
    return tiny.normals(number, 1, 8, 8, dtype=torch.float32), torch.arange(number) % 10


def watched(model: DiT) -> list[tuple[tuple[Any, ...], Any]]:
    """Everything that goes through the model from now on."""
    seen: list[tuple[tuple[Any, ...], Any]] = []
    model.register_forward_hook(lambda _, given, found: seen.append((given, found)))
    return seen


def checked(run: Any, number: int = 40, **more: Any) -> tuple[PredictorCheck, list[Any], DiT]:
    model = trained.network(run)
    seen = watched(model)
    found = check_predictor(model, run, *images(number), **more)
    assert found is not None
    return found, seen, model


def level_of(run: Any, t: float) -> int:
    """The noise level of an image from the time that the network was shown."""
    whole = 1000 if not isinstance(run.objective, DDPMConfig) else run.objective.timesteps - 1
    return min(int(t / whole * LEVELS), LEVELS - 1)


def pairs_of(run: Any, seen: list[Any], layer: int) -> list[tuple[int, int, float, bool]]:
    """Level, expert, prediction and truth of every pair of a row and an expert."""
    found = []
    for (_, t, _, _), prediction in seen:
        record = prediction.routing[layer]
        taken = set(zip(record.token.tolist(), record.expert.tolist(), strict=True))
        for row, logits in enumerate(record.demand.tolist()):
            level = level_of(run, float(t[row // run.model.tokens]))
            for expert, logit in enumerate(logits):
                found.append((level, expert, 1 / (1 + math.exp(-logit)), (row, expert) in taken))
    return found


def quotient(over: float, under: float) -> float:
    return over / under if under else math.nan


@pytest.mark.parametrize("ddpm", [False, True], ids=["flow", "ddpm"])
def test_the_tables_are_those_of_loops(ddpm: bool) -> None:
    run = config(ddpm=ddpm)
    found, seen, model = checked(run)
    for layer, moe in enumerate(model.moe_layers):
        threshold, pairs = moe.router.threshold.tolist(), pairs_of(run, seen, layer)
        assert len(pairs) == found.images * run.model.tokens * 4
        for level in range(LEVELS):
            own = [(p > threshold[e], truth) for q, e, p, truth in pairs if q == level]
            right = sum(above and truth for above, truth in own)
            above, truths = (sum(pair[i] for pair in own) for i in (0, 1))
            near = pytest.approx
            assert found.precision[layer, level] == near(quotient(right, above), nan_ok=True)
            assert found.recall[layer, level] == near(quotient(right, truths), nan_ok=True)
            assert found.realised[layer, level] == near(quotient(above, len(own) / 4))
            error = 0.0
            for b in range(BINS):
                inside = [(p, o) for q, _, p, o in pairs if q == level and int(p * BINS) == b]
                error += abs(sum(p - o for p, o in inside))
            assert found.calibration_error[layer, level] == near(error / len(own), rel=1e-4)
        for b in range(BINS):
            inside = [(p, o) for _, _, p, o in pairs if int(p * BINS) == b]
            mean = [quotient(sum(pair[i] for pair in inside), len(inside)) for i in (0, 1)]
            assert found.predicted[layer, b] == near(mean[0], rel=1e-5, nan_ok=True)
            assert found.observed[layer, b] == near(mean[1], rel=1e-5, nan_ok=True)
            assert found.weight[layer, b] == near(len(inside) / len(pairs))


def test_the_rest_of_the_record() -> None:
    run = config()
    sampling = torch.rand(2, 4)
    found, seen, model = checked(run, sampling_thresholds=sampling)
    assert np.allclose(found.level, [0, 0.2, 0.4, 0.6, 0.8, 1])
    assert found.nominal == 1.0 and found.images == 40
    np.testing.assert_array_equal(found.sampling, sampling.double().numpy())
    for layer, moe in enumerate(model.moe_layers):
        quantiles = torch.cat([prediction.routing[layer].quantile for _, prediction in seen])
        assert len(quantiles) == 5
        assert np.allclose(found.training[layer], quantiles.mean(dim=0))
        assert np.allclose(found.tracked[layer], moe.router.threshold)
    assert np.isnan(checked(run)[0].sampling).all()


def test_every_pool_holds_all_noise_levels_and_is_noised_as_in_training() -> None:
    run = config()
    clean, labels = torch.zeros(40, 1, 8, 8), torch.arange(40) % 10
    model = trained.network(run)
    seen = watched(model)
    check_predictor(model, run, clean, labels)
    t = torch.cat([given[1] for given, _ in seen]) / 1000
    for pool in t.split(POOL):
        assert sorted((pool * POOL).long().tolist()) == list(range(POOL))
    noise = torch.cat([given[0] for given, _ in seen]) / t[:, None, None, None]
    assert noise.std() == pytest.approx(1, abs=0.05)
    assert len({tuple(image.flatten().tolist()) for image in noise}) == 40
    shown = torch.cat([given[2] for given, _ in seen])
    assert set(shown[shown != labels].tolist()) == {run.model.null_class}
    assert 0 < (shown != labels).sum() < 15
    assert all(given[3].selection == "train" for given, _ in seen)
    pools = [given[3].pool_of_image for given, _ in seen]
    assert pools[0] == (0,) * POOL + (1,) * POOL and pools[-1] == (0,) * POOL


def test_captions_are_hidden_as_in_training() -> None:
    """Each image has its prompt's tokens, and those that are dropped none that is real."""
    run = text_run(training__label_dropout=0.25, sampling__batch=2 * POOL)
    run = replace(run, model=text_model(WORDS, pool_images=POOL))
    model = build_model(run.model, 0).requires_grad_(False)
    prompts = some_captions(WORDS, [2, 6, 1, 4, 3])
    seen, labels = watched(model), torch.arange(40) % 5
    found = check_predictor(
        model,
        run,
        images(40)[0],
        labels,
        conditions=PromptConditions(prompts, prompts.rows(slice(1))),
    )
    assert found is not None and found.images == 40
    told = Captions.joined([given[2] for given, _ in seen])
    assert torch.equal(told.tokens, prompts.tokens[labels])
    hidden = ~told.mask.any(dim=1)
    assert 2 < hidden.sum() < 20
    assert torch.equal(told.mask[~hidden], prompts.mask[labels][~hidden])


@pytest.mark.parametrize(("number", "drawn"), [(3, 8), (8, 8), (23, 16), (64, 64)])
def test_whole_pools_and_few_at_a_time(number: int, drawn: int) -> None:
    found, seen, _ = checked(config(), number)
    assert found.images == drawn
    sizes = [len(given[0]) for given, _ in seen]
    assert sum(sizes) == drawn and max(sizes) <= 2 * POOL
    x = torch.cat([given[0] for given, _ in seen])
    assert len({tuple(image.flatten().tolist()) for image in x}) == drawn


def test_a_pool_larger_than_a_batch_stays_whole() -> None:
    run = config()
    run = replace(run, sampling=replace(run.sampling, batch=3))
    _, seen, _ = checked(run)
    assert [len(given[0]) for given, _ in seen] == [POOL] * 5


def knowing(model: DiT, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each predictor say what its experts took."""
    for layer in model.moe_layers:
        original = layer.router.route

        def route(rows: Tensor, plan: RoutingPlan, original: Any = original) -> Any:
            record = original(rows, plan)
            sure = torch.where(record.chosen, 60.0, -60.0)
            return replace(record, demand=sure)

        monkeypatch.setattr(layer.router, "route", route)
        layer.router.threshold.fill_(0.5)


def test_a_predictor_that_knows_is_perfect(monkeypatch: pytest.MonkeyPatch) -> None:
    run = config()
    model = trained.network(run)
    knowing(model, monkeypatch)
    found = check_predictor(model, run, *images(16))
    assert found is not None
    assert (found.precision == 1).all() and (found.recall == 1).all()
    assert np.abs(found.calibration_error).max() < 1e-12
    assert found.weight[:, 0] == pytest.approx(0.75) and found.weight[:, -1] == pytest.approx(0.25)
    assert np.isnan(found.predicted[:, 1:-1]).all() and np.isnan(found.observed[:, 1:-1]).all()
    assert (found.observed[:, 0] == 0).all() and (found.observed[:, -1] == 1).all()


def test_without_thresholds_there_is_calibration_only() -> None:
    run = config()
    found = check_predictor(trained.network(run, measured=False), run, *images(16))
    assert found is not None
    for values in (found.precision, found.recall, found.realised, found.tracked):
        assert np.isnan(values).all()
    for values in (found.calibration_error, found.training, found.weight):
        assert np.isfinite(values).all()


@pytest.mark.parametrize("name", ["dense", "token_choice", "expert_choice"])
def test_routers_without_a_predictor_have_nothing_to_check(name: str) -> None:
    run = config(tiny.ROUTERS[name])
    model = trained.network(run, measured=False)
    assert check_predictor(model, run, *images(8)) is None


def test_it_repeats_itself_and_leaves_the_global_generator_alone() -> None:
    run = config()
    before = torch.get_rng_state()
    one, two = (checked(run)[0] for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    for name, value in vars(one).items():
        np.testing.assert_array_equal(value, getattr(two, name))
    other = replace(run, training=replace(run.training, seed=1))
    assert not np.array_equal(checked(other)[0].calibration_error, one.calibration_error)
