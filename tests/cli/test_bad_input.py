"""Every mistake is one sentence and an exit code, and leaves nothing behind."""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from checkpoint.released_model import ReleasedModel, randomized
from diffmoe import errors
from diffmoe.arguments import TrainCommand, parse
from diffmoe.cli import main
from diffmoe.config import FolderData, RunConfig, to_yaml
from diffmoe.errors import ConfigError, DiffMoEError, ExitCode
from diffmoe.training import train
from hostile import files
from runs import changed, run_config
from slips import flag_slips


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained run."""
    home = tmp_path_factory.mktemp("trained")
    train(run_config(), home / "run", progress=False)
    return home


@pytest.fixture
def home(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a run and a file; nothing else."""
    shutil.copytree(trained / "run", tmp_path / "run")
    (tmp_path / "file").write_text("kept")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(words: str | list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code of a command and its one sentence."""
    capsys.readouterr()
    code = main(words.split() if isinstance(words, str) else words)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("diffmoe: error: ") and err.endswith("\n")
    assert len(err.splitlines()) == 1, err
    assert "Traceback" not in err
    return code, err.removeprefix("diffmoe: error: ").rstrip("\n")


# ---- what a user types

TYPED: list[tuple[str, int, str]] = [
    # verbs and names
    ("trian digits-diffmoe", 2, "unknown verb 'trian' — did you mean train?"),
    ("compare", 2, "diffmoe compare needs two files, none was given — see diffmoe compare --help"),
    ("compare file", 2, "diffmoe compare needs two files, 1 was given"),
    ("compare file file file", 2, "diffmoe compare needs two files, 3 were given"),
    ("compare file --all file", 2, "unknown flag --all — see diffmoe compare --help"),
    ("zzz", 2, "unknown verb 'zzz' — see diffmoe --help"),
    ("train", 2, "diffmoe train needs PRESET|RUN — see diffmoe train --help"),
    ("train --loop.steps 3", 2, "diffmoe train needs PRESET|RUN as its first word, before any flag"
        " — see diffmoe train --help"),
    ("sample --labels 3 run", 2, "diffmoe sample needs RUN as its first word, before any flag"),
    ("sample", 2, "diffmoe sample needs RUN"),
    ("report", 2, "diffmoe report needs RUN"),
    ("convert", 2, "diffmoe convert needs FILE|RUN TARGET"),
    ("convert run", 2, "diffmoe convert run needs TARGET"),
    ("train digits-difmoe", 2, "unknown preset 'digits-difmoe' — did you mean digits-diffmoe?"),
    ("train diffmoe-l-e61-flow", 2, "did you mean diffmoe-l-e16-flow?"),
    ("train zzz", 2, "there is neither a preset nor a run of the name 'zzz' — see diffmoe presets"),
    ("train runs/nonexist", 2, "neither a preset nor a run of the name 'runs/nonexist'"),
    ("train runs/digits-diffmoe", 2, "neither a preset nor a run of the name 'runs/digits"),
    ("train file", 2, "there is neither a preset nor a run of the name 'file'"),
    ("presets digits-difmoe", 2, "did you mean digits-diffmoe?"),
    ("presets --all", 2, "unexpected word '--all'"),
    ("presets digits-tc digits-ec", 2, "unexpected word 'digits-ec'"),
    # flags
    ("train digits-diffmoe --model.widht 3", 2, "unknown flag --model.widht — did you mean"
        " --model.width?"),
    ("train digits-diffmoe --model.widht=3", 2, "unknown flag --model.widht — did you mean"
        " --model.width?"),
    ("train digits-diffmoe --width 3", 2, "unknown flag --width — did you mean --model.width?"),
    ("train digits-diffmoe --model.seed 3", 2, "did you mean --training.seed?"),
    ("train digits-diffmoe --machine.no-complie", 2, "did you mean --machine.no-compile?"),
    ("train digits-diffmoe --zzzzqq 3", 2, "unknown flag --zzzzqq — see diffmoe train"),
    ("train digits-diffmoe stray", 2, "unexpected word 'stray'"),
    ("train digits-diffmoe --dry-run yes", 2, "unexpected word 'yes'"),
    ("train digits-diffmoe --model.width abc", 2, "--model.width takes INT, not 'abc'"),
    ("train digits-diffmoe --model.width 6.5", 2, "--model.width takes INT, not '6.5'"),
    ("train digits-diffmoe --model.width", 2, "Missing value for argument '--model.width'"),
    ("train digits-diffmoe --training.learning-rate fast", 2, "--training.learning-rate takes"
        " FLOAT, not 'fast'"),
    ("train digits-diffmoe --machine.micro-batch many", 2, "--machine.micro-batch takes"
        " INT or None, not 'many'"),
    ("train digits-diffmoe --training.betas 0.9 x", 2, "--training.betas takes FLOAT FLOAT, not"
        " '0.9', 'x' — see"),
    ("train digits-diffmoe --data.path photos", 2, "unknown flag --data.path: data is of kind"
        " digits, which has no path — digits are built in: for images of your own start from a"
        " preset whose data are a folder, such as diffmoe-s-e16-flow; in pixels: see the guide,"
        " Train on your own images"),
    ("train digits-diffmoe --data.no-flip", 2, "--data.no-flip: data is of kind digits"),
    ("train digits-diffmoe --data.kind folder", 2, "data is of kind digits, which is part of the"
        " preset — digits are built in"),
    ("train digits-diffmoe --model.router.top-k=2", 2, "unknown flag --model.router.top-k:"
        " model.router is of kind batch_pool, which has no top_k — see diffmoe train"),
    ("train digits-diffmoe --objective.time-sampling even", 2, "--objective.time-sampling takes"
        " uniform or logit_normal, not 'even' — see diffmoe train"),
    ("sample run --labels three", 2, "no class is called 'three' — the run's classes are numbers,"
        " 0..9"),
    ("sample run --labels 3 --seeds 1e3", 2, "--seeds takes INT, not '1e3' — see"),
    ("sample run --seeds 0 1e3", 2, "--seeds takes INT, not '0', '1e3' — see"),
    ("sample run --count 1e3", 2, "--count takes INT or None, not '1e3'"),
    ("sample run --pool-images few", 2, "--pool-images takes INT or None, not 'few'"),
    ("sample run --sampling.batch 3", 2, "did you mean --batch?"),
    ("demo --steps 1 --run here --cuont 3", 2, "unknown flag --cuont — did you mean --count?"),
    # configs that cannot be
    ("train digits-diffmoe --model.patch-size 3", 2, "model.input_size 8 is not a multiple of"
        " model.patch_size 3 — use 6 or 9"),
    ("train digits-diffmoe --model.heads 7", 2, "model.width 64 is not a multiple of model.heads 7"
        " — use 8 heads"),
    ("train digits-diffmoe --model.router.num-experts 1025 --model.router.capacity 1", 2, "K would"
        " be 0 — use a pool of at least 65 images"),
    ("train digits-diffmoe --training.global-batch 100", 2, "training.global_batch 100 is not a"
        " multiple of model.pool_images 64 — use 64 or 128"),
    ("train digits-diffmoe --machine.micro-batch 48", 2, "machine.micro_batch 48 must divide"),
    ("train digits-diffmoe --training.learning-rate nan", 2, "training.learning_rate nan"),
    ("train digits-diffmoe --sampling.sampler ddim", 2, "sampling.sampler ddim does not solve"),
    ("train digits-diffmoe --machine.device gpu", 2, "machine.device gpu cannot be used here"),
    ("train digits-diffmoe --model.num-classes 9", 2, "model.num_classes 9 is less than the 10"),
    ("train dit-s-flow", 2, "data.path is not set — set --data.path"),
    ("train dit-s-flow --data.path nowhere", 2, "data.path does not exist — "),
    ("train dit-s-flow --data.path file", 2, "data.path is a file and no archive — "),
    # samples that cannot be
    ("sample run --labels 3 --labels 7", 2, "--labels is given 2 times — give it once, with all"),
    ("selftest --only order --only=flock", 2, "--only is given 2 times — give it once, with all"),
    ("selftest --only ?", 2, "there is no drill '?' — there are renames, "),
    ("selftest --out nowhere/at/all.json", 2, "there is no folder to write the figures in"),
    ("selftest --out run", 2, "the figures cannot be written over what is no file — run — name"),
    ("selftest --out /dev/null", 2, "the figures cannot be written over what is no file"),
    ("selftest --out /proc/figures.json", 5, "nothing can be written here"),
    ("sample run --labels 10", 2, "label 10 is the null class of guidance, not a class — use"),
    ("sample run --labels 3 11", 2, "label 11 is out of range — the model has classes 0..9"),
    ("sample run --labels -1", 2, "label -1 is out of range"),
    ("sample run --labels 3 --seeds -1", 2, "seed -1 is out of range — use 0..2^63 - 1"),
    (f"sample run --labels 3 --seeds {2**63}", 2, f"seed {2**63} is out of range"),
    ("sample run --labels 3 4 --seeds 0", 2, "2 labels and 1 seed do not pair up"),
    ("sample run --labels 3 4 --count 1", 2, "count 1 does not go with 2 labels — leave one"),
    ("sample run --labels 3 --count 0", 2, "count 0 does not go with 1 label — leave one"),
    ("sample run --labels 3 4 --count 3 --seeds 1 2", 2, "count 3 does not go with 2 seeds"),
    ("analyze run --classes three", 2, "no class is called 'three'"),
    ("sample run --seeds 3 4 --count 3", 2, "count 3 does not go with 2 seeds — leave one"),
    ("sample run --count 0", 2, "count 0 is not in [1, 1000000] — draw at least one"),
    ("sample run --count 1000000000000", 2, "count 1000000000000 is not in [1, 1000000] — draw"),
    ("sample run --steps 1000000000000", 2, "sampling.steps 1000000000000 is not in [1, 1000000]"),
    ("sample run --batch 1000000000000", 2, "sampling.batch 1000000000000 is not in [1, 1000000]"),
    ("sample run --guided-channels 2", 2, "sampling.guided_channels 2 is more than model.channels"),
    ("sample run --labels 3 --device meta", 2, "machine.device meta cannot be used here"),
    ("sample run --labels 3 --device xla", 2, "machine.device xla cannot be used here"),
    ("sample run --labels 3 --device hpu", 2, "machine.device hpu cannot be used here"),
    ("sample run --labels 3 --device opengl", 2, "machine.device opengl cannot be used here"),
    ("train digits-diffmoe --machine.device meta", 2, "machine.device meta cannot be used here"),
    ("train digits-dense --sampling.selection pool", 2, "sampling.selection pool would change"
        " nothing: the router is dense — leave it at token"),
    ("sample run --steps 0", 2, "sampling.steps 0"),
    ("sample run --guidance nan", 2, "sampling.guidance nan"),
    ("sample run --sampler ancestral", 2, "sampling.sampler ancestral does not solve"),
    ("sample run --selection gate --policy static", 2, "sampling.policy static does not go"),
    ("sample run --labels 3 --device gpu", 2, "machine.device gpu cannot be used here"),
    ("report run --count 0", 2, "count 0 is not in [1, 1000000]"),
    ("report run --count 1", 2, "count 1 is too few for a report — use 2 or more"),
    ("demo --run here --count 1", 2, "count 1 is too few for a report — use 2 or more"),
    ("report run --seed -4 --count 4", 2, "seed -4 is out of range"),
    ("report run --sampler ddim --count 4", 2, "sampling.sampler ddim does not solve"),
    ("demo --count 0", 2, "count 0 is not in [1, 1000000]"),
    ("demo --steps 0", 2, "loop.steps 0"),
    # runs that are not there, or not this one
    ("sample nowhere", 2, "this folder is no run: it has no config.yaml — nowhere — "),
    ("report file", 2, "this folder is no run"),
    ("train run/checkpoints", 2, "this folder is no run: it has no config.yaml — run/checkpoints"),
    ("convert nowhere made", 2, "there is no such checkpoint file or run — nowhere"),
    ("convert run made", 2, "the name of a checkpoint file needs a suffix — made — call it made.p"),
    ("convert run .pt", 2, "the name of a checkpoint file needs a suffix — .pt"),
    ("convert run file", 5, "the target exists — file"),
    ("convert file run", 5, "the target exists — run"),
    ("convert file made --preset digits-difmoe", 2, "unknown preset 'digits-difmoe'"),
    ("convert run made --preset digits-diffmoe", 2, "preset cannot be chosen for a run"),
    ("convert run made --heads 2 --objective flow", 2, "heads and objective cannot be chosen for a"
        " run, which knows its own — run — leave out"),
    ("convert run file/made", 5, "nothing can be written here (Not a directory) — file/made"),
    ("convert . made.pt", 2, "this folder is no run: it has no config.yaml — . — give"),
    ("train run --training.seed 5", 2, "the run folder holds another config: training.seed 0 -> 5"
        " — run — choose another --run"),
    ("train digits-dense --run run", 2, "the run folder holds another config: "),
    ("demo --run run", 2, "the run folder holds another config: "),
    # places that cannot be written
    ("train digits-diffmoe --run .", 5, "the folder is no run and holds other things, file for one"
        " — . — choose another --run"),
    ("train digits-diffmoe --run run/checkpoints/step-00000004", 5, "no run and holds other"),
    ("train digits-diffmoe --run=", 2, "--run is empty — name a folder"),
    ("demo --run=", 2, "--run is empty — name a folder"),
    ("demo --run . --quiet", 5, "the folder is no run and holds other things, file for one"),
    ("train digits-diffmoe --run file", 5, "cannot write to the run folder"),
    ("train digits-diffmoe --run file/below", 5, "cannot write to the run folder (Not a directory)"
        " — file/below — check"),
    ("demo --run file/below", 5, "cannot write to the run folder (Not a directory)"),
    ("sample run --labels 3 --quiet --out file", 5, "file was not written by a sampling and would"
        " be lost — file — choose another folder"),
    ("sample run --labels 3 --quiet --out file/below", 5, "nothing can be written here (Not a"
        " directory) — file/below — choose another place"),
    ("sample run --labels 3 --quiet --out run", 5, ".lock was not written by a sampling"),
    ("sample run --labels 3 --quiet --out .", 5, "file was not written by a sampling"),
    ("sample run --labels 3 --quiet --out run/checkpoints", 5, "was not written by a sampling"),
    ("sample run --labels 3 --quiet --out /proc/here", 5, "nothing can be written here"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "code", "said"), TYPED, ids=[words for words, *_ in TYPED])
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    words: str, code: int, said: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(home)
    found, sentence = refused(words, capsys)
    assert said in sentence
    assert found == code
    assert files(home) == before


def test_the_values_of_a_sentence_are_whole_at_any_width(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        "train digits-diffmoe --model.width abc",
        "train digits-diffmoe --machine.activation-chekpointing",
        "train digits-diffmoe --machine.micro-batch 48",
    ]
    said = []
    for width in ("20", "80", "300"):
        monkeypatch.setenv("COLUMNS", width)
        said.append([refused(word, capsys) for word in words])
    assert said[0] == said[1] == said[2]


def lines(words: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines in which a command refuses."""
    capsys.readouterr()
    assert main(words.split()) == ExitCode.BAD_INPUT
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


SEVERAL: list[tuple[str, list[str]]] = [
    (
        "--a.widht 3 --model.hedas 2",
        [
            "unknown flag --a.widht — did you mean --model.width?",
            "unknown flag --model.hedas — did you mean --model.heads?",
        ],
    ),
    (
        "--model.width abc --model.heads x --sampling.sampler eular --zzz 4 --model.depth -1"
        " --training.global-batch 0 --training.label-dropout 2 --data.path x --loop.steps",
        [
            "--sampling.sampler takes euler, heun, dopri5, ancestral or ddim, not 'eular'"
            " — did you mean euler?",
            "Missing value for argument '--loop.steps'. Expected 1 values",
            "--model.width takes INT, not 'abc'",
            "--model.heads takes INT, not 'x'",
            "unknown flag --data.path: data is of kind digits, which has no path",
            "unknown flag --zzz",
            "model.depth -1 is not positive — use 1 or more",
            "training.label_dropout 2.0 is not in [0, 1]",
            "training.global_batch 0 is not in [1, 1000000]",
        ],
    ),
    (
        "--model.patch-size 3 --model.heads 7 --training.seed x --model.router.capacity 0",
        [
            "--training.seed takes INT, not 'x'",
            "model.router.capacity 0.0 is not in (0, 4]",
            "model.input_size 8 is not a multiple of model.patch_size 3 — use 6 or 9",
            "model.width 64 is not a multiple of model.heads 7 — use 8 heads",
        ],
    ),
    (
        "--sampling.sampler ddim --training.global-batch 100 --sampling.guided-channels 3",
        [
            "training.global_batch 100 is not a multiple of model.pool_images 64 — use 64 or 128",
            "sampling.sampler ddim does not solve objective flow",
            "sampling.guided_channels 3 is more than model.channels 1",
        ],
    ),
    (
        "--max-time 90 --training.global-batch 0 --zzz 3",
        [
            "unknown flag --zzz",
            "training.global_batch 0 is not in [1, 1000000]",
            "--max-time 90 is no time — say 90m",
        ],
    ),
    (
        "--sampling.sampler eular --sampling.rtol 0.1 --sampling.steps 0",
        ["--sampling.sampler takes euler", "sampling.steps 0 is not in [1, 1000000]"],
    ),
]


@pytest.mark.parametrize(("flags", "told"), SEVERAL, ids=[flags for flags, _ in SEVERAL])
def test_all_mistakes_of_a_command_are_told_at_once(
    flags: str, told: list[str], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(home)
    head, *rest = lines(f"train digits-diffmoe {flags}", capsys)
    see = "see diffmoe train digits-diffmoe --help"
    assert head == f"diffmoe: error: {len(told)} mistakes — {see}"
    assert len(rest) == len(told)
    for line, start in zip(rest, told, strict=True):
        assert line.startswith(f"  {start}")
    assert files(home) == before


def test_all_mistakes_of_a_file_are_told_at_once(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = home / "run" / "config.yaml"
    path.write_text(
        path.read_text().replace("width: 16", "widht: 16").replace("depth: 2", "depth: x")
    )
    head, *rest = lines("train run --quiet", capsys)
    assert head.startswith(
        "diffmoe: error: the config cannot be read, 2 mistakes — run/config.yaml — correct it, or"
    )
    assert rest == [
        "  unknown key model.widht, did you mean model.width?",
        "  'x' is not a whole number @ $.model.depth",
    ]


def test_every_misspelt_flag_is_refused_and_nearly_every_one_is_named_right() -> None:
    """All are refused and at least 95 % named right; slips.py says which slips are made."""
    right, wrong = 0, []
    for default, slips in flag_slips():
        known = [word for spelt, _ in slips for word in (spelt, "3")]
        with pytest.raises(ConfigError) as caught:
            parse(TrainCommand, default, known, "diffmoe train x")
        told = {each.split()[2].rstrip(":"): each for each in caught.value.mistakes}
        assert set(told) == {spelt for spelt, _ in slips}  # each of them is caught
        for spelt, flag in slips:
            named = told[spelt].partition("did you mean ")[2].rstrip("?").split(" or ")
            right += flag in named
            wrong += [] if flag in named else [told[spelt]]
    share = right / (right + len(wrong))
    print(f"{right} of {right + len(wrong)} misspelt flags named right, {share:.1%}")
    assert share >= 0.95, wrong[:20]


# ---- files that are damaged, hostile or another's


def newest(home: Path) -> Path:
    return max((home / "run" / "checkpoints").iterdir())


def truncate(home: Path) -> str:
    for path in (home / "run" / "checkpoints").iterdir():
        victim = path / "ema.safetensors"
        victim.write_bytes(victim.read_bytes()[:100])
    return "sample run --labels 3"


def unsign(home: Path) -> str:
    for path in (home / "run" / "checkpoints").iterdir():
        (path / "manifest.json").unlink()
    return "report run --count 4"


def robbed_run(home: Path) -> str:
    shutil.rmtree(home / "run" / "checkpoints")
    return "sample run --labels 3"


def empty_run(home: Path) -> str:
    (home / "run" / "saved.json").unlink()
    return robbed_run(home)


def deeper(home: Path) -> str:
    other = changed(run_config(), {"model.depth": 4})
    (home / "run" / "config.yaml").write_text(to_yaml(other))
    return "sample run --labels 3"


def misspell(home: Path) -> str:
    path = home / "run" / "config.yaml"
    path.write_text(path.read_text().replace("width:", "widht:"))
    return "sample run --labels 3"


def garble(home: Path) -> str:
    (home / "run" / "config.yaml").write_text("model: [")
    return "train run"


def cut_off(home: Path) -> str:
    torch.save(released(), home / "whole.pt")
    (home / "cut.pt").write_bytes((home / "whole.pt").read_bytes()[:-500])
    (home / "whole.pt").unlink()
    return "convert cut.pt made --heads 3 --objective flow"


def released() -> dict[str, object]:
    model = dict(randomized(ReleasedModel("batch_pool", heads=3), 0).state_dict())
    return {"model": model, "ema": model, "opt": {}, "args": argparse.Namespace(a=1)}


def of_another_preset(home: Path) -> str:
    torch.save(released(), home / "foreign.pt")
    return "convert foreign.pt made --preset diffmoe-s-e16-flow"


def without_heads(home: Path) -> str:
    torch.save(released(), home / "foreign.pt")
    return "convert foreign.pt made --objective flow"


def without_objective(home: Path) -> str:
    torch.save(released(), home / "foreign.pt")
    return "convert foreign.pt made --heads 3"


def no_tensors(home: Path) -> str:
    torch.save({"weights": {}}, home / "other.pt")
    return "convert other.pt made --heads 3 --objective flow"


def images_run(home: Path, config: RunConfig) -> str:
    (home / "pictures").mkdir()
    (home / "new").mkdir()
    (home / "new" / "config.yaml").write_text(to_yaml(config))
    return "train new --quiet"


def no_images(home: Path) -> str:
    return images_run(home, run_config(data=FolderData(path=Path("pictures"))))


def loose_images(home: Path) -> str:
    words = images_run(home, run_config(data=FolderData(path=Path("pictures"))))
    Image.new("L", (8, 8)).save(home / "pictures" / "loose.png")
    return words


def empty_class(home: Path) -> str:
    words = images_run(home, run_config(data=FolderData(path=Path("pictures"))))
    for name in ("cat", "dog"):
        (home / "pictures" / name).mkdir()
    Image.new("L", (8, 8)).save(home / "pictures" / "cat" / "one.png")
    return words


def far_too_many_classes(home: Path) -> str:
    words = images_run(home, run_config(data=FolderData(path=Path("pictures"))))
    for name in range(11):
        (home / "pictures" / str(name)).mkdir()
        Image.new("L", (8, 8)).save(home / "pictures" / str(name) / "one.png")
    return words


DAMAGED: list[tuple[Callable[[Path], str], int, str]] = [
    (truncate, 5, "none of the 2 checkpoints can be read — run/checkpoints"),
    (unsign, 5, "none of the 2 checkpoints can be read"),
    (empty_run, 5, "the run has no checkpoint yet — run — diffmoe train run"),
    (robbed_run, 5, "the run saved a checkpoint of step 4 and has none now — run — restore its"),
    (deeper, 5, "belongs to another model: model.depth is 2 there and 4"),
    (misspell, 2, "unknown key model.widht, did you mean model.width? — run/config.yaml"),
    (garble, 2, "in line 1) — run/config.yaml — correct it"),
    (cut_off, 5, "cut.pt"),
    (of_another_preset, 2, "diffmoe-s-e16-flow|width|preset"),
    (without_heads, 2, "heads"),
    (without_objective, 2, "objective"),
    (no_tensors, 5, "other.pt"),
    (no_images, 3, "data.path holds no images (png, jpg, jpeg, webp, bmp) — pictures"),
    (loose_images, 3, "data.path holds 1 images but no class sub-folder of images — pictures"),
    (empty_class, 3, "class 'dog' holds no images — pictures/dog"),
    (far_too_many_classes, 2, "model.num_classes 10 is less than the 11 classes of the data"),
]


@pytest.mark.parametrize(
    ("damage", "code", "said"), DAMAGED, ids=[damage.__name__ for damage, *_ in DAMAGED]
)
def test_a_damaged_or_hostile_file_is_one_sentence_and_leaves_nothing(
    damage: Callable[[Path], str],
    code: int,
    said: str,
    home: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = damage(home)
    before = files(home)
    found, sentence = refused(words, capsys)
    assert said in sentence or re.search(said, sentence), sentence
    assert found == code
    assert files(home) == before


@pytest.mark.parametrize("bad", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_an_unreadable_image_is_named_with_its_index(
    bad: bytes, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = images_run(home, run_config(data=FolderData(path=Path("pictures"))))
    (home / "pictures" / "cat").mkdir()
    for index in range(40):
        Image.new("L", (8, 8), color=index).save(home / "pictures" / "cat" / f"{index:02}.png")
    (home / "pictures" / "cat" / "07.png").write_bytes(bad)
    code, sentence = refused(words, capsys)
    assert code == ExitCode.BAD_DATA == 3
    assert "image 7 cannot be read" in sentence and "pictures/cat/07.png" in sentence
    assert not list((home / "new").glob("checkpoints/*"))


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ("2", "WORLD_SIZE is 2 and RANK, MASTER_ADDR, MASTER_PORT are not set — start several"),
        ("several", "RANK 0 and WORLD_SIZE several are no numbers — start it with torchrun"),
    ],
)
def test_processes_that_no_launcher_has_started_are_refused(
    size: str,
    said: str,
    home: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    code, sentence = refused("train digits-diffmoe", capsys)
    assert code == 2 and said in sentence
    assert not (home / "runs").exists()


def test_an_empty_word_names_no_folder(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(home)
    for words, said in (
        (["train", "digits-diffmoe", "--run", ""], "--run is empty"),
        (["demo", "--run", ""], "--run is empty"),
        (["train", ""], "diffmoe train needs PRESET|RUN"),
    ):
        code, sentence = refused(words, capsys)
        assert code == 2 and sentence.startswith(said)
    with pytest.raises(ConfigError, match="the run folder has an empty name"):
        train(run_config(), "", progress=False)
    assert files(home) == before


def test_checkpoints_that_may_not_be_read_are_not_called_absent(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Path.iterdir

    def closed(path: Path) -> Iterator[Path]:
        if path.name == "checkpoints":
            raise PermissionError(13, "Permission denied", str(path))
        return honest(path)

    monkeypatch.setattr(Path, "iterdir", closed)
    for words in ("sample run --labels 3", "train run --quiet", "convert run made.pt"):
        code, sentence = refused(words, capsys)
        assert code == ExitCode.STORAGE
        assert sentence.startswith(
            "the folder cannot be read (Permission denied) — run/checkpoints"
        )


def test_debug_shows_the_traceback(home: Path) -> None:
    with pytest.raises(ConfigError, match="unknown preset"):
        main(["train", "digits-difmoe", "--debug"])


def test_an_error_of_the_system_is_one_sentence_too(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> RunConfig:
        raise OSError(5, "Input/output error\nof two lines", "disk")

    monkeypatch.setattr("diffmoe.cli.training.preset", broken)
    code, sentence = refused("train digits-diffmoe", capsys)
    assert code == ExitCode.STORAGE
    assert sentence == "a file cannot be read or written (Input/output error of two lines) — disk"


def test_places_are_refused_before_anything_is_drawn(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(*_: object, **__: object) -> None:
        raise AssertionError("minutes of work")

    monkeypatch.setattr("diffmoe.experiments.draw.Prepared.of", drawn)
    (home / "out").mkdir()
    (home / "out" / "mine.txt").write_text("kept")
    for place in ("file", "file/below", "run", ".", "out", "/proc/here"):
        code, _ = refused(f"sample run --labels 3 --quiet --out {place}", capsys)
        assert code == ExitCode.STORAGE
    (home / "run" / "samples").write_text("in the way")
    assert refused("sample run --labels 3 --quiet", capsys)[0] == ExitCode.STORAGE
    with pytest.raises(AssertionError, match="minutes"):
        main(["sample", "run", "--labels", "3", "--quiet", "--out", "new"])


def test_tolerances_too_fine_for_dopri5_are_one_sentence(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "sample run --labels 3 --quiet --sampler dopri5 --rtol 1e-30 --atol 1e-30"
    code, sentence = refused(words, capsys)
    assert code == 2 and "sampling.rtol 1e-30 and sampling.atol 1e-30 are finer than" in sentence


def test_a_reader_that_leaves_ends_the_command_quietly(home: Path) -> None:
    """As `diffmoe presets | head -1`: the rest is written into a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "diffmoe", "presets", "digits-diffmoe"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (ExitCode.STORAGE, "")


# ---- the table of exit codes


def test_the_exit_codes_are_the_pinned_ones() -> None:
    assert {code.name: code.value for code in ExitCode} == {
        "DONE": 0,
        "BAD_INPUT": 2,
        "BAD_DATA": 3,
        "NON_FINITE": 4,
        "STORAGE": 5,
        "DISTRIBUTED": 6,
        "RESUMABLE": 75,
    }


def test_every_error_has_its_exit_code() -> None:
    kinds = [getattr(errors, name) for name in errors.__all__]
    found = {k.__name__: int(k.exit_code) for k in kinds if issubclass(k, DiffMoEError)}
    assert found == {
        "DiffMoEError": 2,
        "ConfigError": 2,
        "DataError": 3,
        "NoRunError": 2,
        "NonFiniteError": 4,
        "PeerError": 6,
        "StorageError": 5,
        "StoppedError": 75,
    }


def test_a_sentence_is_what_where_and_what_to_do() -> None:
    assert str(DiffMoEError("this", where="there", remedy="do that")) == "this — there — do that"
    assert str(DiffMoEError("this")) == "this"
    assert str(DiffMoEError("this", remedy="do that")) == "this — do that"
