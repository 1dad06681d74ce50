"""Prompts as conditions of sampling: what an image depends on, and what guidance steers from."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffmoe.checkpoint import LoadedRun, load
from diffmoe.config import SamplingConfig
from diffmoe.errors import ConfigError
from diffmoe.sampling import (
    PromptConditions,
    calibrate,
    encode_prompts,
    generate,
    run_encoder,
    usual_conditions,
)
from diffmoe.training import train
from runs import run_config
from texts import text_run

PROMPTS = ["a red circle", "two stars", "", "a blue ring above a green square"]
SEEDS = [5, 6, 7, 8]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    """A run whose weights are stirred: what captions say is felt."""
    path = tmp_path_factory.mktemp("prompts") / "run"
    train(text_run(sampling__guidance=2.0), path, progress=False)
    found = load(path, weights="raw")
    generator = torch.Generator().manual_seed(0)
    for parameter in found.model.parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return found


def draw(
    run: LoadedRun,
    prompts: Sequence[str] = PROMPTS,
    labels: Sequence[int] = (0, 1, 2, 3),
    seeds: Sequence[int] = SEEDS,
    **changes: object,
) -> Tensor:
    config = replace(run.config, sampling=replace(run.config.sampling, **changes))
    told = encode_prompts(replace(run, config=config), prompts)
    return generate(run.model, config, labels, seeds, conditions=told)


def test_an_image_depends_on_its_prompt_and_seed_alone(run: LoadedRun) -> None:
    together = draw(run)
    for image, (prompt, seed) in enumerate(zip(PROMPTS, SEEDS, strict=True)):
        alone = draw(run, [prompt], [0], [seed], batch=1)
        assert torch.allclose(alone[0], together[image], atol=1e-5)
    turned = draw(run, PROMPTS[::-1], [3, 2, 1, 0])
    assert torch.allclose(turned, together, atol=1e-5)
    assert not torch.allclose(draw(run, ["a blue circle"], [0], [5])[0], together[0], atol=1e-2)


def test_strict_sampling_keeps_every_bit(run: LoadedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFMOE_STRICT", "1")
    together = draw(run)
    for image, (prompt, seed) in enumerate(zip(PROMPTS, SEEDS, strict=True)):
        assert torch.equal(draw(run, [prompt], [0], [seed], batch=1)[0], together[image])


def test_joint_and_separate_pools_are_the_same_to_token_selection(run: LoadedRun) -> None:
    assert torch.allclose(draw(run), draw(run, guidance_pool="joint"), atol=1e-5)


def test_an_empty_prompt_is_no_condition_and_said_so(
    run: LoadedRun, caplog: pytest.LogCaptureFixture
) -> None:
    guided = draw(run, ["", " \n"], [0, 1], [5, 5])
    assert torch.equal(guided[0], guided[1])
    assert "prompt 0 is empty: it is drawn without condition" in caplog.text
    assert torch.allclose(guided[0], draw(run, [""], [0], [5], guidance=1.0)[0], atol=1e-5)


def test_a_negative_prompt_stands_in_the_place_of_none(run: LoadedRun) -> None:
    """At guidance 2: 2 v(prompt) - v(negative), so a prompt against itself is not guided."""
    same = draw(run, ["two stars"], [0], [5], negative="two stars")
    plain = draw(run, ["two stars"], [0], [5], guidance=1.0)
    assert torch.allclose(same, plain, atol=1e-4)
    none = draw(run, ["two stars"], [0], [5])
    other = draw(run, ["two stars"], [0], [5], negative="a red circle")
    assert not torch.allclose(none, other, atol=1e-2)


def test_one_step_of_guidance_is_the_formula(run: LoadedRun) -> None:
    one = {"steps": 1}
    prompt = draw(run, ["two stars"], [0], [5], guidance=1.0, **one)
    away = draw(run, ["a ring"], [0], [5], guidance=1.0, **one)
    guided = draw(run, ["two stars"], [0], [5], guidance=3.0, negative="a ring", **one)
    assert torch.allclose(guided, away + 3 * (prompt - away), atol=1e-4)


def test_prompts_are_needed_and_classes_refused(run: LoadedRun, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reads captions, and no prompts are given"):
        generate(run.model, run.config, [0], [0])
    with pytest.raises(ConfigError, match=r"there is no prompt 4 — 4 are given"):
        draw(run, PROMPTS, [4], [0])
    path = tmp_path / "classes"
    train(run_config(), path, progress=False)
    with pytest.raises(ConfigError, match="reads no prompts: its condition is a class"):
        run_encoder(load(path))


def test_another_encoder_than_that_of_the_training_is_refused(run: LoadedRun) -> None:
    other = replace(run, trained_on=run.trained_on | {"text": "words sha256:0"})
    with pytest.raises(ConfigError, match="not that of the training: words sha256:"):
        encode_prompts(other, PROMPTS)


def test_a_prompt_too_long_is_cut_and_quoted_or_refused(
    run: LoadedRun, caplog: pytest.LogCaptureFixture
) -> None:
    long = "a red circle " * 7
    cut = draw(run, [long], [0], [5])
    assert "prompt 0 is longer than the 20 tokens that the model reads" in caplog.text
    assert "'circle'" in caplog.text
    words = long.split()
    assert torch.equal(cut, draw(run, [" ".join(words[:20])], [0], [5]))
    refusing = replace(
        run, config=replace(run.config, text=replace(run.config.text, too_long="refuse"))
    )
    with pytest.raises(ConfigError, match="longer than the 20 tokens"):
        encode_prompts(refusing, [long])


def test_the_dial_is_set_on_captions_of_the_training(run: LoadedRun) -> None:
    settings: SamplingConfig = run.config.sampling.at(capacity=0.5)
    found = calibrate(run, settings)
    assert found.realised == pytest.approx(0.5, rel=0.05)
    assert list(run.folder.calibrations.iterdir())
    told = usual_conditions(run, settings)
    assert isinstance(told, PromptConditions) and told.count == len(run.folder.captions)
    assert told.negative is None
    away = usual_conditions(run, replace(settings, negative="a red circle"))
    assert isinstance(away, PromptConditions) and away.negative is not None


def test_a_run_without_its_captions_cannot_be_calibrated(run: LoadedRun, tmp_path: Path) -> None:
    bare = replace(run, folder=replace(run.folder, path=tmp_path))
    (tmp_path / "words.txt").write_bytes((run.folder.path / "words.txt").read_bytes())
    with pytest.raises(ConfigError, match="keeps no captions of its training"):
        calibrate(bare, run.config.sampling.at(capacity=0.5))


def test_words_that_no_caption_had_are_named(
    run: LoadedRun, caplog: pytest.LogCaptureFixture
) -> None:
    encode_prompts(run, ["a red circle", "a purple elephant on the moon, elephant"])
    assert "prompt 1 has words that the model never met: elephant, moon" in caplog.text
    assert "prompt 0" not in caplog.text
