"""Words that mean nothing, or were meant otherwise, are refused with what to do instead."""

from pathlib import Path
from typing import Any

import pytest

from diffmoe.arguments import (
    EvaluateCommand,
    SampleCommand,
    SweepCommand,
    TrainCommand,
    parse,
)
from diffmoe.config import SamplingConfig
from diffmoe.errors import ConfigError
from runs import run_config

DEFAULT = SampleCommand(settings=SamplingConfig())


def parsed(*words: str) -> SampleCommand:
    return parse(SampleCommand, DEFAULT, words, "diffmoe sample run")


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["--labels"], "--labels"),
        (["--labels", "--seeds", "3"], "--labels"),
        (["--labels", "3", "--seeds"], "--seeds"),
    ],
    ids=" ".join,
)
def test_a_flag_of_several_values_needs_one(words: list[str], flag: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{flag} was given no value — give one or more, or"):
        parsed(*words)


def test_a_flag_of_several_values_may_be_left_out() -> None:
    assert parsed() == DEFAULT
    assert parsed("--labels", "0").labels == ("0",)


def test_a_class_may_be_named_or_numbered() -> None:
    assert parsed("--labels", "circle", "-1", "3", "--count", "4").labels == ("circle", "-1", "3")


TRAIN = TrainCommand(config=run_config(), run=Path("run"))
SWEEP = SweepCommand(settings=SamplingConfig())


@pytest.mark.parametrize("width", ["20", "80", "300"])
@pytest.mark.parametrize(
    ("default", "words", "said"),
    [
        (
            EvaluateCommand(),
            "--network smal",
            "--network takes inception, dinov2, small, clip, judge or None, not 'smal'"
            " — did you mean small?",
        ),
        (
            DEFAULT,
            "--format webdatset",
            "--format takes png, npz, webdataset or None, not 'webdatset'"
            " — did you mean webdataset?",
        ),
        (DEFAULT, "--law=x", "--law takes balanced or random, not 'x' — see diffmoe verb --help"),
        (
            DEFAULT,
            "--selection tokn",
            "--selection takes token, pool, gate or image, not 'tokn' — did you mean token?",
        ),
        (
            SWEEP,
            "--level layr",
            "--level takes global, layer, expert or None, not 'layr' — did you mean layer?",
        ),
        (
            TRAIN,
            "--objective.time-sampling even",
            "--objective.time-sampling takes uniform or logit_normal, not 'even'"
            " — see diffmoe verb --help",
        ),
    ],
    ids=["network", "format", "law", "selection", "level", "nested"],
)
def test_a_choice_is_told_in_the_order_it_is_written_in(
    default: Any, words: str, said: str, width: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    with pytest.raises(ConfigError) as caught:
        parse(type(default), default, words.split(), "diffmoe verb")
    assert str(caught.value) == said


def test_a_prompt_that_is_called_as_a_field_decides_nothing() -> None:
    """`--prompts capacity` is a prompt: the run's own place on the dial stays."""
    default = SampleCommand(settings=SamplingConfig(gamma=0.5))
    kept = parse(SampleCommand, default, ["--prompts", "capacity", "policy"], "diffmoe sample RUN")
    assert (kept.settings.policy, kept.settings.gamma) == ("constant", 0.5)
    moved = parse(SampleCommand, default, ["--capacity", "0.7"], "diffmoe sample RUN")
    assert (moved.settings.policy, moved.settings.capacity) == ("target", 0.7)
