"""The verbs do what they say, from a config to images and converted files."""

import json
import logging
import os
import re
import signal
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from PIL import Image

from checkpoint.released_model import KINDS, ReleasedModel, randomized
from diffmoe.arguments.times import duration
from diffmoe.checkpoint import load
from diffmoe.cli import main
from diffmoe.cli.verbs import VERBS
from diffmoe.config import DDPMConfig, FlowConfig, read_config, to_yaml
from diffmoe.console import program
from diffmoe.errors import ConfigError
from diffmoe.presets import PRESETS, preset
from diffmoe.training import train
from runs import run_config

WORDS = """--model.width 16 --model.depth 2 --model.heads 2 --model.pool-images 8
    --training.global-batch 16 --loop.steps 4 --loop.checkpoint-every 2 --loop.log-every 2
    --sampling.steps 3 --quiet"""
QUICK = WORDS.split()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("verbs") / "run"
    train(run_config(loop__steps=20, sampling__batch=125), path, progress=False)
    return path


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 0, capsys.readouterr()
    return capsys.readouterr().out


# ---- train


def test_train_makes_a_run_and_names_the_next_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = said(capsys, "train", "digits-diffmoe", *QUICK)
    assert out == (
        "trained 4 steps: runs/digits-diffmoe\nnext: diffmoe report runs/digits-diffmoe\n"
    )
    found = read_config(Path("runs/digits-diffmoe/config.yaml"))
    assert (found.model.width, found.loop.steps) == (16, 4)
    assert load("runs/digits-diffmoe").step == 4


def test_a_run_goes_on_under_its_own_name(capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "train", "digits-tc", *QUICK, "--run", "mine")
    out = said(capsys, "train", "mine", "--loop.steps", "6", "--quiet")
    assert out.startswith("trained 6 steps: mine\n")
    assert load("mine").step == 6
    assert load("mine").config.loop.steps == 6


def test_dry_run_of_the_largest_published_row_needs_neither_data_nor_memory(
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = said(capsys, "train", "diffmoe-l-e16-flow", "--dry-run")
    assert "parameters   1,981,946,064\n" in out
    assert to_yaml(preset("diffmoe-l-e16-flow")) in out
    weights = re.search(r"weights +([\d.]+)\n", out)
    assert weights and float(weights[1]) == pytest.approx(1_981_946_064 * 4 / 2**30, abs=1e-3)
    assert "activations of 256 images" in out
    assert not list(Path().iterdir())


def test_dry_run_shows_the_changed_fields(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--machine.micro-batch", "64", "--machine.activation-checkpointing", "--dry-run"]
    out = said(capsys, "train", "diffmoe-s-e16-ddpm", *words)
    assert "micro_batch: 64" in out and "activations of 64 images" in out


def test_a_finished_run_says_that_nothing_was_left_to_do(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    words = ["train", "digits-tc", *QUICK, "--run", "mine"]
    assert said(capsys, *words).startswith("trained 4 steps: mine\n")
    with caplog.at_level(logging.INFO, logger="diffmoe"):
        out = said(capsys, *words)
    assert out.startswith("trained 4 steps: mine\nnext: ")
    assert f"{out}{caplog.text}".count("left to do") == 1
    assert "nothing is left to do: mine has its 4 steps" in caplog.text
    assert "resuming" not in caplog.text
    newest = Path("mine/checkpoints/step-00000004/model.safetensors")
    newest.write_bytes(newest.read_bytes()[:-1])
    assert said(capsys, *words).startswith("trained 4 steps: mine\n")  # the last two again


def test_a_run_of_a_strange_name_is_quoted(capsys: pytest.CaptureFixture[str]) -> None:
    out = said(capsys, "train", "digits-tc", *QUICK, "--run", "my run")
    assert out.endswith("next: diffmoe report 'my run'\n")


# ---- the program itself


def test_the_program_is_named_as_it_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / ".venv" / "bin" / "diffmoe"
    script.parent.mkdir(parents=True)
    script.touch(mode=0o755)
    monkeypatch.setenv("PATH", "/nowhere")
    for started in (".venv/bin/diffmoe", str(script)):
        monkeypatch.setattr("sys.argv", [started, "demo"])
        assert program() == started
    monkeypatch.setenv("PATH", f"/nowhere:{script.parent}")
    assert program() == "diffmoe"
    other = tmp_path / "diffmoe"
    other.touch(mode=0o755)
    monkeypatch.setattr("sys.argv", ["./diffmoe"])
    assert program() == "./diffmoe"  # another one than a shell would find
    monkeypatch.setattr("sys.argv", ["/site-packages/diffmoe/__main__.py"])
    monkeypatch.setattr("sys.orig_argv", [".venv/bin/python", "-m", "diffmoe"])
    assert program() == ".venv/bin/python -m diffmoe"
    monkeypatch.setattr("sys.argv", ["mine.py"])
    assert program() == "diffmoe"


def test_the_versions_are_those_that_work_here(capsys: pytest.CaptureFixture[str]) -> None:
    found = re.fullmatch(
        r"diffmoe (\S+), torch (\S+), Python ([\d.]+)\n", said(capsys, "--version")
    )
    assert found and found[1] == version("diffmoe")
    assert found[2].split("+")[0] == torch.__version__.split("+")[0]


# ---- sample


def test_a_seed_gives_the_same_picture_whatever_the_batch(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sample", str(trained), "--labels", "3", "3", "7", "--seeds", "0", "1", "2", "--quiet"]
    for batch in ("1", "2", "3"):
        out = said(capsys, *words, "--batch", batch, "--out", f"batch-{batch}")
        assert out.startswith(f"3 images: batch-{batch}\n")
    names = ["000000-class-3-seed-0.png", "000001-class-3-seed-1.png", "000002-class-7-seed-2.png"]
    for name in names:
        alone = Path("batch-1", name).read_bytes()
        assert alone == Path("batch-2", name).read_bytes() == Path("batch-3", name).read_bytes()
    assert len({Path("batch-1", name).read_bytes() for name in names}) == 3
    with Image.open(Path("batch-1", names[0])) as picture:
        assert (picture.size, picture.mode) == ((8, 8), "L")


def test_samples_carry_the_stamp_that_says_how_to_make_them(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "sample", str(trained), "--count", "11", "--quiet", "--out", "made")
    stamp = json.loads(Path("made", "samples.json").read_text())
    assert [record["label"] for record in stamp["images"]] == [*range(10), 0]
    assert [record["seed"] for record in stamp["images"]] == list(range(11))
    assert (stamp["step"], stamp["weights"]) == (20, "ema")
    assert stamp["weights_sha256"] == load(trained).fingerprint
    assert stamp["sampling"]["steps"] == 3


def test_there_are_as_many_images_as_seeds(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sample", str(trained), "--quiet", "--out", "made", "--seeds", "4", "9", "2"]
    for more in ([], ["--count", "3"]):
        assert said(capsys, *words, *more).startswith("3 images: made\n")
        images = json.loads(Path("made", "samples.json").read_text())["images"]
        assert [(one["label"], one["seed"]) for one in images] == [(0, 4), (1, 9), (2, 2)]


def test_without_labels_and_seeds_there_are_sixteen(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(capsys, "sample", str(trained), "--quiet").startswith("16 images: ")


def test_the_stamp_names_codec_data_and_the_images_of_a_pool(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sample", str(trained), "--count", "5", "--quiet", "--out", "made"]
    said(capsys, *words, "--selection", "pool")
    stamp = json.loads(Path("made", "samples.json").read_text())
    assert stamp["trained_on"] == load(trained).trained_on
    assert set(stamp["trained_on"]) == {"codec", "data"} and all(stamp["trained_on"].values())
    assert stamp["decoder"] == "pixels" and stamp["pool_images"] == stamp["count"] == 5
    said(capsys, *words)
    assert json.loads(Path("made", "samples.json").read_text())["pool_images"] is None


def test_the_same_command_writes_the_same_folder_below_the_run(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sample", str(trained), "--labels", "5", "--quiet"]
    first, again = said(capsys, *words), said(capsys, *words)
    other = said(capsys, *words, "--steps", "2")
    assert first == again != other
    assert str(trained / "samples" / "step-00000020-") in first


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_settings_are_flags(
    sampler: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--sampler", sampler, "--guidance", "2", "--selection", "pool", "--weights", "raw"]
    said(capsys, "sample", str(trained), "--labels", "1", "2", "--quiet", "--out", "made", *words)
    stamp = json.loads(Path("made", "samples.json").read_text())
    assert stamp["sampling"]["sampler"] == sampler and stamp["weights"] == "raw"


# ---- convert


@pytest.mark.parametrize("objective", ["flow", "ddpm"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_released_file_becomes_a_run_and_comes_back_bit_for_bit(
    kind: str, objective: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model, average = (
        dict(randomized(ReleasedModel(kind, heads=3), seed).state_dict()) for seed in (1, 2)
    )
    torch.save({"model": model, "ema": average, "opt": {"state": {}}, "args": {}}, "released.pt")
    words = ["--heads", "3", "--objective", objective]
    out = said(capsys, "convert", "released.pt", "run", *words)
    assert out.startswith(f"{2 * len(model)} tensors of model and ema, bit for bit: run")
    assert "left out: opt, args" in out or "left out: args, opt" in out
    assert out.endswith(f"\nread as a model that is no preset: 3 heads, objective {objective}\n")
    loaded = load("run")
    kinds = {"flow": FlowConfig, "ddpm": DDPMConfig}
    assert isinstance(loaded.config.objective, kinds[objective])
    assert (loaded.config.model.heads, loaded.step) == (3, 0)
    said(capsys, "convert", "run", "back.pt")
    back = torch.load("back.pt", weights_only=True)
    for name, wanted in (("model", model), ("ema", average)):
        assert back[name].keys() == wanted.keys()
        for key, tensor in wanted.items():
            assert back[name][key].dtype == tensor.dtype
            assert torch.equal(back[name][key], tensor)


def test_a_run_as_a_released_file_names_what_the_file_cannot_hold(
    capsys: pytest.CaptureFixture[str],
) -> None:
    train(run_config(objective__convention="released", objective__time_scale=1.0), "run",
          progress=False)  # fmt: skip
    out = said(capsys, "convert", "run", "back.pt")
    assert out.endswith("back.pt, left out: optimizer, gate_threshold, threshold_updates\n")
    said(capsys, "convert", "back.pt", "again", "--heads", "2", "--objective", "flow")
    out = said(capsys, "convert", "again", "twice.pt")
    assert out.endswith("twice.pt\n")  # it came from such a file: nothing is lost


@pytest.mark.parametrize("words", [[], ["--preset", "diffmoe-tiny"]], ids=["found", "said"])
def test_what_a_file_was_read_as_is_told(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = dict(randomized(ReleasedModel("batch_pool", heads=3), 1).state_dict())
    torch.save({"model": tensors, "ema": tensors}, "released.pt")
    said(capsys, "convert", "released.pt", "run", "--heads", "3", "--objective", "flow")
    known = read_config(Path("run/config.yaml"))
    monkeypatch.setitem(PRESETS, "diffmoe-tiny", lambda: known)
    out = said(capsys, "convert", "released.pt", "again", "--objective", "flow", *words)
    assert out.endswith("\nread as diffmoe-tiny: 3 heads, objective flow\n")


def test_a_converted_run_cannot_be_trained_on_silently(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = dict(randomized(ReleasedModel("dense", heads=3), 1).state_dict())
    torch.save({"model": model, "ema": model}, "released.pt")
    said(capsys, "convert", "released.pt", "run", "--heads", "3", "--objective", "flow")
    assert main(["train", "run", "--quiet"]) in (2, 5)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_file_of_another_model_is_named_and_odd_thresholds_are_told(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    tensors = dict(randomized(ReleasedModel("batch_pool", heads=3), 1).state_dict())
    words = ["convert", "odd.pt", "run", "--heads", "3", "--objective", "flow"]
    torch.save({"model": tensors, "ema": tensors}, "odd.pt")
    assert main([*words, "--preset", "dit-s-flow"]) == 2
    assert "odd.pt" in capsys.readouterr().err
    name = next(key for key in tensors if key.endswith("expert_threshold"))
    tensors[name] = torch.full_like(tensors[name], torch.nan)
    torch.save({"model": tensors, "ema": tensors}, "odd.pt")
    with caplog.at_level("WARNING"):
        said(capsys, *words)
    assert "odd.pt" in caplog.text and "is not in [0, 1)" in caplog.text


def test_sigterm_ends_a_verb_as_an_interruption_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def told(words: list[str]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setitem(VERBS, "presets", (told, "", ""))
    assert main(["presets"]) == 75
    assert capsys.readouterr().err.startswith("diffmoe: interrupted — ")  # no error: it was asked
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("word", "seconds"),
    [
        ("45s", 45),
        ("90m", 5400),
        ("3.5h", 12600),
        ("1d", 86400),
        ("01:30:05", 5405),
        ("100:00:00", 360000),
        ("1:05:00", 3900),
        ("1-00:00:00", 86400),
        ("2-12:00:05", 216005),
    ],
)
def test_a_time_is_understood(word: str, seconds: float) -> None:
    assert duration(word) == seconds


@pytest.mark.parametrize(
    "word",
    ["", "90", "m", "-3m", "1h30m", "1:30", "00:70:00", "0:0:3", "1-2", "-01:00:00", "nan", "٣m"],
)
def test_a_time_that_is_none_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="is no time — say 90m"):
        duration(word)


def test_a_run_stops_at_the_end_of_its_time_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "digits-diffmoe", *QUICK, "--run", str(tmp_path / "run")]
    assert main([*words, "--max-time", "0s"]) == 75
    said = capsys.readouterr().err
    where = tmp_path / "run"
    assert said.startswith(
        f"diffmoe: stopped at the end of its time after step 1, saved — {where} — go on with: "
    )
    assert main(["train", str(tmp_path / "run"), "--quiet"]) == 0
