"""The text form of a config: nothing lost, nothing misread, every slip named."""

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from diffmoe.config import (
    SD_VAE,
    DDPMConfig,
    DigitsData,
    FlowConfig,
    FolderData,
    PixelCodec,
    RunConfig,
    from_dict,
    nearest,
    read_config,
    to_dict,
    to_yaml,
)
from diffmoe.errors import ConfigError, StorageError
from diffmoe.presets import PRESETS, preset
from runs import changed, run_config
from tiny import ROUTERS

Place = tuple[str, ...]


def refusal(content: Any) -> str:
    """The one sentence that refuses a content."""
    with pytest.raises(ConfigError) as caught:
        from_dict(content, where="config.yaml")
    sentence = str(caught.value)
    assert len(sentence.splitlines()) == 1
    return sentence


def places(content: dict[str, Any], above: Place = ()) -> Iterator[Place]:
    """Every key of nested dictionaries."""
    for key, value in content.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from places(value, (*above, key))


def group_of(content: dict[str, Any], place: Place) -> dict[str, Any]:
    for key in place[:-1]:
        content = content[key]
    return content


def with_value(content: dict[str, Any], place: Place, value: Any) -> dict[str, Any]:
    content = copy.deepcopy(content)
    group_of(content, place)[place[-1]] = value
    return content


def renamed(content: dict[str, Any], place: Place, name: str) -> dict[str, Any]:
    content = copy.deepcopy(content)
    group = group_of(content, place)
    group[name] = group.pop(place[-1])
    return content


def misspelt(word: str, seed: int) -> str:
    """The word with two neighbours swapped, a letter dropped, doubled or replaced."""
    rng = random.Random(f"{word}/{seed}")
    at = rng.randrange(len(word) - 1)
    return [
        word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        word[:at] + word[at + 1 :],
        word[:at] + word[at] + word[at:],
        word[:at] + "x" + word[at + 1 :],
    ][seed % 4]


# ---- round trip


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_comes_back_from_its_yaml(name: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(preset(name)))
    assert read_config(path) == preset(name)


@pytest.mark.parametrize(
    "changes",
    [{"model.router": router} for router in ROUTERS.values()]
    + [
        {"objective": FlowConfig(time_sampling="logit_normal", convention="released")},
        {
            "objective": DDPMConfig(timesteps=9),
            "model.out_channels": 2,
            "sampling.sampler": "ddim",
            "sampling.steps": 9,
        },
        {"data": DigitsData()},
        {"data": FolderData(path=Path("a b/ü"), flip=False)},
        {"data": FolderData()},
        {"codec": PixelCodec()},
        {"codec": SD_VAE},
        {"training.betas": (0.5, 0.25), "training.learning_rate": 1e-7},
        {"training.clip_norm": None, "training.decay_steps": None, "machine.micro_batch": 8},
    ],
    ids=str,
)
def test_a_union_keeps_its_kind_and_a_field_its_type(changes: dict[str, Any]) -> None:
    config = changed(run_config(), changes)
    back = from_dict(yaml.safe_load(to_yaml(config)), where="")
    assert back == config
    for group in ("objective", "data", "codec"):
        assert type(getattr(back, group)) is type(getattr(config, group))
    assert type(back.model.router) is type(config.model.router)
    assert type(back.training.betas) is tuple


def test_fields_that_merely_run_a_model_may_be_left_out() -> None:
    content = to_dict(run_config())
    for group in ("training", "loop", "sampling", "machine"):
        del content[group]
    content["model"]["pool_images"] = 64
    assert from_dict(content, where="") == RunConfig(
        model=changed(run_config().model, {"pool_images": 64}),
        objective=run_config().objective,
        data=run_config().data,
        codec=run_config().codec,
    )


# ---- misspelt, misplaced, missing


def configs() -> list[dict[str, Any]]:
    """Contents that together hold every field there is."""
    ddpm = {"objective": DDPMConfig(), "model.out_channels": 2, "sampling.sampler": "ddim"}
    routed = [to_dict(run_config(router)) for router in ROUTERS]
    other = changed(run_config(), ddpm | {"data": FolderData(path=Path("x")), "codec": SD_VAE})
    return [*routed, to_dict(other)]


def test_every_misspelt_field_is_refused_and_nearly_every_one_is_named_right() -> None:
    right, wrong = 0, []
    for content in configs():
        for place in places(content):
            siblings = group_of(content, place).keys()
            for seed in range(4):
                name = misspelt(place[-1], seed)
                if name in siblings:
                    continue
                sentence = refusal(renamed(content, place, name))
                wanted = ".".join(place)
                is_right = f"did you mean {wanted}?" in sentence or (
                    place[-1] == "kind" and "kind is missing" in sentence
                )
                right += is_right
                if not is_right:
                    wrong.append((name, sentence))
    share = right / (right + len(wrong))
    print(f"{right} of {right + len(wrong)} misspelt keys named right, {share:.1%}")
    assert share >= 0.95, wrong[:5]


def test_a_field_in_the_wrong_group_is_sent_to_its_own() -> None:
    content = to_dict(run_config())
    content["model"]["learning_rate"] = content["training"].pop("learning_rate")
    assert "unknown key model.learning_rate, did you mean training.learning_rate?" in refusal(
        content
    )


def test_all_slips_are_told_at_once() -> None:
    content = to_dict(run_config())
    content["model"]["widht"] = content["model"].pop("width")
    content["training"]["sede"] = 1
    sentence = refusal(content)
    assert "model.widht, did you mean model.width?" in sentence
    assert "training.sede, did you mean training.seed?" in sentence
    assert "missing" not in sentence


@pytest.mark.parametrize("place", list(places(to_dict(run_config())["model"], ("model",))))
def test_what_defines_a_model_has_no_default(place: Place) -> None:
    content = to_dict(run_config())
    del group_of(content, place)[place[-1]]
    assert "missing" in refusal(content)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("model.width", 64.0, "64.0 is not a whole number"),
        ("model.width", "64", "'64' is not a whole number"),
        ("model.width", True, "True is not a whole number"),
        ("model.width", None, "None is not a whole number"),
        ("training.learning_rate", "1e-4", "'1e-4' is not a number"),
        ("training.learning_rate", True, "True is not a number"),
        ("training.betas", [0.9], "training.betas"),
        ("training.betas", [0.9, "x"], "'x' is not a number"),
        ("training.clip_norm", "none", "'none' is not a number"),
        ("machine.compile", "no", "'no' is not true or false"),
        ("machine.compile", 0, "0 is not true or false"),
        ("machine.device", 3, "3 is not text"),
        ("sampling.sampler", "eular", "eular is not one of 'euler'"),
        ("model.router.kind", "batchpool", "did you mean batch_pool?"),
        ("model.router", "dense", "a group of fields is expected @ $.model.router"),
        ("model", None, "a group of fields is expected @ $.model"),
        ("training", [1], "a group of fields is expected @ $.training"),
        ("objective.kind", None, "use flow or ddpm"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_its_place(
    place: str, value: Any, said: str
) -> None:
    sentence = refusal(with_value(to_dict(run_config()), tuple(place.split(".")), value))
    assert said in sentence
    assert place.removesuffix(".kind") in sentence


@pytest.mark.parametrize("content", [None, [], "text", 3, {}, {1: 2}, {"model": {1: 2}}], ids=str)
def test_a_text_that_is_no_config_is_refused(content: Any) -> None:
    assert "the config cannot be read" in refusal(content)


@pytest.mark.parametrize(
    "text", ["a: [", "\0", "!!python/object/apply:os.system ['true']", "a: &x [*x]\nb: c: d"]
)
def test_a_file_that_is_no_yaml_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="no YAML"):
        read_config(path)


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    text = to_yaml(run_config())
    path.write_text(text.replace("  depth: 2", "  depth: 2\n  depth: 4"))
    with pytest.raises(ConfigError, match="key 'depth' stands twice"):
        read_config(path)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="no YAML"):
        read_config(path)


def test_a_missing_file_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        read_config(tmp_path / "config.yaml")


def test_nothing_near_is_nobody() -> None:
    assert nearest("zzzzzz", ["width", "depth"]) is None
    assert nearest("widht", ["width", "depth"]) == "width"


FLAGS = ["--training.clip-norm", "--training.learning-rate", "--training.seed", "--model.width"]


@pytest.mark.parametrize(
    ("word", "known", "found"),
    [
        ("--training.lr", FLAGS, "--training.learning-rate"),
        ("--lr", FLAGS, "--training.learning-rate"),
        ("lr", ["clip_norm", "learning_rate"], "learning_rate"),
        ("--training.sede", FLAGS, "--training.seed"),
        ("--widht", FLAGS, "--model.width"),
        ("--training.zzz", FLAGS, None),
        ("nonsense", list(PRESETS), None),
        ("diffmoe-l-e61-flow", list(PRESETS), "diffmoe-l-e16-flow"),
    ],
)
def test_a_name_is_known_by_its_letters_or_its_initials(
    word: str, known: list[str], found: str | None
) -> None:
    assert nearest(word, known) == found
