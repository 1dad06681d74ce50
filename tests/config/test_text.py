"""The text form of a config: nothing lost, nothing misread, every slip named."""

import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis.strategies import floats

from diffmoe.config import (
    SD_VAE,
    DDPMConfig,
    DigitsData,
    FlowConfig,
    FolderData,
    PixelCodec,
    RunConfig,
    field_names,
    from_dict,
    nearest,
    read_config,
    to_dict,
    to_yaml,
)
from diffmoe.errors import ConfigError, StorageError
from diffmoe.experiments.hostile.payloads import settings
from diffmoe.presets import PRESETS, preset
from runs import changed, run_config
from slips import SECTIONS, configs, key_slips
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


def key_mistakes() -> Iterator[tuple[Place, str, dict[str, Any]]]:
    """Each key there is, every slip of it, and a content that has the slip instead."""
    tried: set[Place] = set()
    for content in map(to_dict, configs()):
        for place in [place for place in places(content) if place not in tried]:
            tried.add(place)
            siblings = group_of(content, place).keys()
            for slip in (slip for slip in key_slips(place[-1]) if slip not in siblings):
                yield place, slip, renamed(content, place, slip)


def test_every_misspelt_field_is_refused_and_nearly_every_one_is_named_right() -> None:
    """All are refused and at least 95 % named right; slips.py says which slips are made."""
    right, wrong = 0, []
    for place, slip, content in key_mistakes():
        sentence = refusal(content)  # each of them is caught
        is_right = f"{slip}, did you mean {'.'.join(place)}?" in sentence
        right += is_right
        wrong += [] if is_right else [(slip, sentence)]
    share = right / (right + len(wrong))
    print(f"{right} of {right + len(wrong)} misspelt keys named right, {share:.1%}")
    assert right > 1000 and share >= 0.95, wrong[:5]


def is_leaf(content: dict[str, Any], place: Place) -> bool:
    group = isinstance(group_of(content, place)[place[-1]], dict)
    return len(place) > 1 and not group and place[-1] != "kind"


def moved(content: dict[str, Any], place: Place, section: str) -> dict[str, Any]:
    """The content with a field in another section."""
    content = copy.deepcopy(content)
    value = group_of(content, place).pop(place[-1])
    group_of(content, (*section.split("."), ""))[place[-1]] = value
    return content


def test_every_field_in_a_wrong_section_is_refused_and_sent_to_its_own() -> None:
    right, wrong, tried, known = 0, [], set[Place](), field_names(RunConfig)
    for content in map(to_dict, configs()):
        for place in [place for place in places(content) if is_leaf(content, place)]:
            others = [each for each in SECTIONS if f"{each}.{place[-1]}" not in known]
            for section in () if place in tried else others:
                sentence = refusal(moved(content, place, section))
                said = f"unknown key {section}.{place[-1]}, did you mean {'.'.join(place)}?"
                right += said in sentence
                wrong += [] if said in sentence else [sentence]
            tried.add(place)
    share = right / (right + len(wrong))
    print(f"{right} of {right + len(wrong)} misplaced keys sent to their section, {share:.1%}")
    assert right > 300 and share >= 0.95, wrong[:5]


def test_a_field_in_the_wrong_group_is_sent_to_its_own() -> None:
    content = to_dict(run_config())
    content["model"]["learning_rate"] = content["training"].pop("learning_rate")
    assert "unknown key model.learning_rate, did you mean training.learning_rate?" in refusal(
        content
    )


def told(content: Any) -> tuple[str, ...]:
    """The mistakes in which a content is refused, each a sentence."""
    with pytest.raises(ConfigError) as caught:
        from_dict(content, where="config.yaml")
    assert caught.value.head.startswith(
        f"the config cannot be read, {len(caught.value.mistakes)} mistakes — config.yaml — "
    )
    assert str(caught.value).count("; ") >= len(caught.value.mistakes) - 1
    return caught.value.mistakes


def test_all_mistakes_are_told_at_once() -> None:
    """Of every kind: unknown, missing, of another type, no choice, out of range, of two fields."""
    content = to_dict(run_config())
    content["model"]["widht"] = content["model"].pop("width")
    content["model"]["depth"] = "deep"
    content["model"]["heads"] = 0
    del content["model"]["mlp_ratio"]
    content["model"]["router"] |= {"num_experts": 0, "capacity": "much"}
    content["objective"]["kind"] = "flwo"
    content["training"] |= {"sede": 1, "global_batch": 0, "label_dropout": 2.0, "precision": "half"}
    content["loop"] |= {"steps": 0, "rewinds": -1}
    content["sampling"] |= {"sampler": "eular", "steps": 0}
    content["machine"]["workers"] = 0.5
    assert sorted(told(content)) == sorted(
        [
            "unknown key model.widht, did you mean model.width?",
            "unknown key training.sede, did you mean training.seed?",
            "'deep' is not a whole number @ $.model.depth",
            "model.heads 0 is not positive — use 1 or more",
            "required field missing @ $.model.mlp_ratio",
            "model.router.num_experts 0 is not in 1..4096 — use the dense router for a network"
            " without experts",
            "'much' is not a number @ $.model.router.capacity",
            "there is no kind 'flwo', did you mean flow? @ $.objective",
            "training.global_batch 0 is not in [1, 1000000] — choose a value inside of it",
            "training.label_dropout 2.0 is not in [0, 1] — choose a value inside of it",
            "half is not one of 'float32', 'bfloat16' @ $.training.precision",
            "loop.steps 0 is not in [1, 1000000000] — choose a value inside of it",
            "loop.rewinds -1 is not in [0, 1000000] — choose a value inside of it",
            "eular is not one of 'euler', 'heun', 'dopri5', 'ancestral', 'ddim'"
            " @ $.sampling.sampler",
            "sampling.steps 0 is not in [1, 1000000] — choose a value inside of it",
            "0.5 is not a whole number @ $.machine.workers",
        ]
    )


def test_all_that_does_not_go_together_is_told_at_once() -> None:
    content = to_dict(run_config())
    content["model"] |= {"patch_size": 3, "heads": 3, "out_channels": 3}
    content["model"]["router"]["capacity"] = 9.0
    content["training"] |= {"warmup_steps": 5, "decay_steps": 5}
    content["sampling"] |= {"eta": 0.5, "pool_images": 3}
    starts = [
        "model.input_size 8 is not a multiple of model.patch_size 3",
        "model.width 16 is not a multiple of model.heads 3",
        "model.out_channels 3 fits no objective",
        "model.router.capacity 9.0 is not in (0, 4]",
        "training.decay_steps 5 is not more than training.warmup_steps 5",
        "sampling.eta 0.5 would change nothing: the sampler is euler",
        "sampling.pool_images 3 has no meaning in selection token",
    ]
    found = told(content)
    assert len(found) == len(starts)
    assert all(any(each.startswith(start) for each in found) for start in starts)


def test_all_that_does_not_go_across_records_is_told_at_once() -> None:
    content = to_dict(run_config())
    content["training"]["global_batch"] = 20
    content["sampling"] |= {"sampler": "ddim", "guided_channels": 2, "capacity": 5.0}
    content["sampling"]["policy"] = "target"
    assert [each.split()[0] for each in told(content)] == [
        "training.global_batch",
        "sampling.sampler",
        "sampling.capacity",
        "sampling.guided_channels",
    ]


def test_a_file_of_something_else_is_not_told_at_length() -> None:
    found = told({f"key{n}" * 100: 0 for n in range(5000)})
    assert len(found) < 30 and all(len(each) < 300 for each in found)
    assert "4980 more unknown keys" in found


# What older configs do not have: without it the condition is a class.
DEFINING = {name: value for name, value in to_dict(run_config())["model"].items() if name != "text"}


@pytest.mark.parametrize("place", list(places(DEFINING, ("model",))))
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
        ("training.learning_rate", "fast", "'fast' is not a number"),
        ("training.seed", 2**70, "a number of 71 bits is too large"),
        ("training.seed", "x" * 10**6, "'xxxxxxxxxx"),
        ("machine.device", False, "put text in quotes"),
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


TRAPS = [
    ("a: [", "expected the node content, but found '<stream end>' in line 1"),
    ("b: 1\na: b: 2", "mapping values are not allowed here in line 2"),
    ("b: 1\n\ta: 2", "found character '\\t' that cannot start any token in line 2"),
    ("\0", "no YAML (a character that no text has)"),
    ("b: 1\na: 2001-99-99", "a value that cannot be in line 2"),
    (f"b:\n  a: {'9' * 5000}", "a value that cannot be in line 2"),
    ("b: 1\n? [a]\n: b", "found unhashable key in line 2"),
    ("a: &x [*x]\nb: c: d", "alias *x in line 1: write the value out"),
    ("a: &x 1\nb: *x", "alias *x in line 2"),
    ("!!python/object/apply:os.system ['true']", "tag tag:yaml.org,2002:python/object/apply"),
    ("a: !!binary aGk=", "tag tag:yaml.org,2002:binary in line 1: write the plain value"),
    ("[" * 100, "more than 16 levels in line 1"),
    ("a: 1\na: 2", "key 'a' stands twice in line 2"),
    (f"a: {'x' * 2**18}", "it has more than 262144 bytes"),
]


@pytest.mark.parametrize(("text", "said"), TRAPS, ids=[said for _, said in TRAPS])
def test_a_file_that_is_no_plain_yaml_is_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="the config is no YAML") as caught:
        read_config(path)
    assert said in str(caught.value) and str(caught.value).endswith(f" — {path} — correct it")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("bomb", ["yaml-list-bomb", "yaml-group-bomb", "yaml-endless-alias"])
def test_nothing_is_built_of_a_bomb(
    bomb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(*_: object, **__: object) -> None:
        raise yaml.YAMLError("an object was built")  # to be told as another mistake

    monkeypatch.setattr(yaml.constructor.BaseConstructor, "construct_object", built)
    path = tmp_path / "config.yaml"
    path.write_text(settings("true")[bomb])
    with pytest.raises(ConfigError, match="write the value out"):
        read_config(path)


@pytest.mark.parametrize(
    ("written", "value"),
    [("1e-4", 1e-4), ("1E5", 1e5), ("2e+3", 2e3), ("1.5e-3", 1.5e-3), (".5e1", 5.0), ("3", 3.0)],
)
def test_a_number_with_an_exponent_needs_no_point(
    written: str, value: float, tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    text = to_yaml(run_config())
    line = next(line for line in text.splitlines() if "learning_rate" in line)
    path.write_text(text.replace(line, f"  learning_rate: {written}"))
    assert read_config(path).training.learning_rate == value


@pytest.mark.parametrize(
    "text", ["1e-4", "1E5", "on", "no", "3", "null", "~", "a b/ü", "*x", "!!int 3", "2001-01-01"]
)
def test_a_text_that_looks_like_something_else_comes_back(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    config = changed(run_config(), {"machine.device": text, "data": FolderData(path=Path(text))})
    path.write_text(to_yaml(config))
    assert read_config(path) == config


@given(value=floats(min_value=1e-300, max_value=1e300))
@hypothesis_settings(max_examples=50, deadline=None)
def test_a_number_comes_back_to_the_last_bit(value: float) -> None:
    config = changed(run_config(), {"training.learning_rate": value})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(to_yaml(config))
        assert read_config(path).training.learning_rate == value


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("\ufeff" + to_yaml(run_config()), encoding="utf-8")
    assert read_config(path) == run_config()


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"a: 1\nb: \xff\xfe\x00")
    with pytest.raises(
        ConfigError, match=r"no YAML \(what is no text in line 2\) — .* — correct it"
    ):
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
