"""Words that mean nothing, or were meant otherwise, are refused with what to do instead."""

import pytest

from diffmoe.arguments import SampleCommand, parse
from diffmoe.config import SamplingConfig
from diffmoe.errors import ConfigError

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
    assert parsed("--labels", "0").labels == (0,)


def test_the_name_of_a_class_is_answered_with_what_a_label_is() -> None:
    with pytest.raises(ConfigError) as caught:
        parsed("--labels", "circle")
    sentence = str(caught.value)
    assert sentence.startswith("--labels takes INT, not 'circle' — see diffmoe sample run --help:")
    assert "the number of a class, from 0 in the order of the sub-folders' names" in sentence
