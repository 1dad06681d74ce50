"""Scenes against their prompts: the tables, the verdicts, and what is refused."""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from children import fork, read_all
from diffmoe.cli import main
from diffmoe.config import to_yaml
from diffmoe.data import Scene, draw_scene, make_scene
from diffmoe.errors import ConfigError, DataError, DiffMoEError, ExitCode, StorageError
from diffmoe.evaluation import Features
from diffmoe.experiments import compare, evaluate, make_statistics
from diffmoe.training import train
from runs import run_config
from texts import text_run

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COUNT, EACH = 12, 2  # scenes of a gallery, pictures of each


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scenes") / "run"
    train(text_run(loop__steps=2, sampling__steps=2, sampling__batch=24), path, progress=False)
    return path


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def picture(scene: Scene) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(draw_scene(scene).transpose(1, 2, 0)))


def gallery(place: Path, shown: Callable[[int, int], int] = lambda n, k: n) -> Path:
    """A folder as GenEval's scorer reads it: picture k of prompt n shows scene `shown(n, k)`."""
    for number in range(COUNT):
        below = place / f"{number:05d}"
        (below / "samples").mkdir(parents=True)
        line = json.dumps(make_scene(0, "validation", number).metadata)
        (below / "metadata.jsonl").write_text(line + "\n")
        for turn in range(EACH):
            scene = make_scene(0, "validation", shown(number, turn))
            picture(scene).save(below / "samples" / f"{turn:04d}.png")
    return place


class Quick:
    """In the place of Inception."""

    name, side, fingerprint = "inception", None, "6726825d" + "0" * 56

    def features(self, images: Tensor) -> Features:
        means = images.double().flatten(2).unfold(2, 32, 32).mean(dim=3).flatten(1) / 255
        few = means[:, :48].float()
        return Features(few, few[:, :40], (9 * means[:, :10]).softmax(dim=1))


def verdicts(path: Path) -> Iterator[dict[str, Any]]:
    for found in json.loads(path.read_text())["verdicts"].values():
        yield from found


# --- galleries -----------------------------------------------------------------------------------


def test_true_pictures_are_all_right(home: Path) -> None:
    found = evaluate(gallery(home / "g"), network="judge", progress=False)
    assert set(found.values.values()) == {1.0}
    assert set(found.content["deviations"].values()) == {0.0}
    assert found.values.keys() == {
        f"images/{rule}/{of}" for rule in ("geneval", "strict") for of in ("overall", *TASKS)
    }
    assert found.path.parent == home and found.path.name.startswith("g-judge-")


def test_the_summary_is_in_the_layout_of_geneval(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The second picture of each prompt shows the next scene, which is of another task.
    place = gallery(home / "g", lambda n, k: n + k)
    assert main(["evaluate", "g", "--network", "judge", "--quiet"]) == 0
    (out,) = place.parent.glob("g-judge-*.json")
    found = list(verdicts(out))
    right = {task: [v["lenient"] for v in found if v["task"] == task] for task in TASKS}
    share = {task: sum(of) / len(of) for task, of in right.items()}
    told = "".join(
        f"{task:<16} = {share[task]:.2%} ({sum(of)} / {len(of)})\n" for task, of in right.items()
    )
    total = sum(map(sum, right.values()))
    strict = {t: [v["strict"] for v in found if v["task"] == t] for t in TASKS}
    parts = {t: sum(of) / len(of) for t, of in strict.items()}
    error = math.hypot(*(math.sqrt(p * (1 - p) / 4) for p in parts.values())) / 6
    assert capsys.readouterr().out == (
        "images: g\n\nSummary\n=======\nTotal images: 24\nTotal prompts: 12\n"
        f"% correct images: {total / 24:.2%}\n% correct prompts: 100.00%\n\n"
        f"Task breakdown\n==============\n{told}\n"
        f"Overall score (avg. over tasks): {sum(share.values()) / 6:.5f}\n"
        "strict, with nothing else in the picture:"
        f" {sum(parts.values()) / 6:.5f} ± {error:.5f}\n\n"
        f"verdicts at a glance: {out.with_name(out.stem + '-grid.png')}\nall of it: {out}\n"
    )
    assert 0.5 <= total / 24 < 0.7  # of the pictures of other scenes nearly none is right


def test_each_verdict_names_its_picture_and_what_is_wrong(home: Path) -> None:
    found = evaluate(gallery(home / "g", lambda n, k: n + k), network="judge", progress=False)
    each = list(verdicts(found.path))
    assert [one["file"] for one in each] == [
        f"{n:05d}/samples/{k:04d}.png" for n in range(COUNT) for k in range(EACH)
    ]
    for one in each:
        number = int(one["file"][:5])
        assert one["prompt"] == make_scene(0, "validation", number).caption
        assert one["seed"] is None  # nobody says
        assert one["strict"] == (one["reason"] == "as asked for")
    wrong = [one["reason"] for one in each if not one["lenient"]]
    assert len(wrong) > 8 and all(reason.startswith(("found", "no ")) for reason in wrong)


def test_the_grid_frames_what_is_right_and_what_is_wrong(home: Path) -> None:
    found = evaluate(gallery(home / "g"), network="judge", out=home / "a.json", progress=False)
    assert found.path == home / "a.json"
    shifted = gallery(home / "h", lambda n, k: n + 1)
    evaluate(shifted, network="judge", out=home / "b.json", progress=False)
    frames = []
    for name in ("a-grid.png", "b-grid.png"):
        with Image.open(home / name) as grid:
            values = np.asarray(grid.convert("RGB")).astype(int)
        frames.append(values[10, 10])  # of the first tile
        assert values.shape[1] == 8 + 6 * (128 + 2 * 5 + 8)
    assert frames[0][1] > frames[0][0] and frames[1][0] > frames[1][1]


def test_the_same_evaluation_again_reads_what_stands_there(home: Path) -> None:
    place = gallery(home / "g")
    one, other = (make_scene(0, "validation", number) for number in (0, 7))
    file = place / "00000/samples/0001.png"
    picture(one).save(file, compress_level=0)  # so that another is as large
    first = evaluate(place, network="judge", progress=False)
    files = sorted(path for path in home.iterdir() if path.is_file())
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
    assert len(before) == 2
    again = evaluate(place, network="judge", progress=False)
    assert again.content == first.content and again.summary == first.summary
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files} == before
    picture(other).save(file, compress_level=0)
    assert evaluate(place, network="judge", progress=False).path != first.path


def test_a_lost_grid_is_drawn_again(home: Path) -> None:
    found = evaluate(gallery(home / "g"), network="judge", progress=False)
    grid = found.path.with_name(f"{found.path.stem}-grid.png")
    before = grid.read_bytes()
    grid.unlink()
    evaluate(home / "g", network="judge", progress=False)
    assert grid.read_bytes() == before


def test_two_galleries_are_compared(home: Path) -> None:
    one = evaluate(gallery(home / "g"), network="judge", progress=False).path
    other = gallery(home / "h", lambda n, k: n + k)
    two = evaluate(other, network="judge", progress=False).path
    found = compare(one, two)
    assert found.is_fair and found.values["images/geneval/overall"][0] == 1
    line = (other / "00000/metadata.jsonl").read_text()
    (other / "00001/metadata.jsonl").write_text(line)
    assert not compare(one, evaluate(other, network="judge", progress=False).path).is_fair


def test_what_is_called_by_no_number_is_passed_over(home: Path) -> None:
    place = gallery(home / "g")
    (place / "sheet.png").touch()
    (place / "notes").mkdir()
    (place / "00000/samples/notes.txt").touch()
    assert sum(1 for _ in verdicts(evaluate(place, network="judge", progress=False).path)) == 24


def save(mode: str, size: tuple[int, int] = (32, 32)) -> Callable[[Path], object]:
    return lambda g: Image.new(mode, size).save(g / "00003/samples/0001.png")


def tell(**changes: Any) -> Callable[[Path], object]:
    told = {**make_scene(0, "validation", 3).metadata, **changes}
    return lambda g: (g / "00003/metadata.jsonl").write_text(json.dumps(told))


BAD: dict[str, tuple[Callable[[Path], object], type[DiffMoEError], str]] = {
    "grey": (save("L"), DataError, "an image is no RGB picture"),
    "alpha": (save("RGBA"), DataError, "an image is no RGB picture"),
    "palette": (save("P"), DataError, "an image is no RGB picture"),
    "not square": (save("RGB", (32, 40)), DataError, "is 40 x 32 pixels, not a square"),
    "small": (save("RGB", (16, 16)), DataError, "is 16 x 16 pixels"),
    "cut": (
        lambda g: (g / "00003/samples/0001.png").write_bytes(b"\x89PNG"),
        DataError,
        "cannot be read",
    ),
    "no images": (
        lambda g: shutil.rmtree(g / "00003/samples"),
        DataError,
        "there is no image of a prompt",
    ),
    "no metadata": (
        lambda g: (g / "00003/metadata.jsonl").unlink(),
        DataError,
        "metadata of a prompt cannot be read",
    ),
    "no JSON": (
        lambda g: (g / "00003/metadata.jsonl").write_bytes(b"\xff"),
        DataError,
        "metadata of a prompt cannot be read",
    ),
    "no prompt": (tell(prompt=None), DataError, "the metadata has no text as prompt"),
    "other things": (
        tell(include=[{"class": "zebra", "count": 1}]),
        ConfigError,
        "the judge knows no class 'zebra'",
    ),
    "several things": (
        tell(include=[{"class": "circles", "count": 2}]),
        ConfigError,
        "the judge knows no class 'circles'",
    ),
    "other colours": (
        tell(include=[{"class": "ring", "count": 1, "color": "pink"}]),
        ConfigError,
        "the judge knows no color 'pink'",
    ),
    "other places": (
        tell(
            include=[
                {"class": "ring", "count": 1},
                {"class": "star", "count": 1, "position": ["inside", 0]},
            ]
        ),
        ConfigError,
        "the judge knows no position 'inside'",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_judged_is_refused_with_its_place(what: str, home: Path) -> None:
    change, kind, told = BAD[what]
    change(gallery(home / "g"))
    with pytest.raises(kind, match=told) as caught:
        evaluate(home / "g", network="judge", progress=False)
    assert "00003" in str(caught.value)
    assert [path.name for path in home.iterdir()] == ["g"]  # nothing half-written


def test_other_arguments_are_refused(home: Path) -> None:
    place = gallery(home / "g")
    for wrong in ({"reference": place}, {"crop": True}, {"weights": "w"}, {"count": 4}):
        with pytest.raises(ConfigError):
            evaluate(place, network="judge", progress=False, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="statistics of the judge network"):
        make_statistics(place, home / "s.npz", network="judge", progress=False)
    (home / "empty").mkdir()
    with pytest.raises(ConfigError, match="no prompts in the layout of GenEval"):
        evaluate(home / "empty", network="judge", progress=False)


@pytest.mark.parametrize("name", ["mine.json", "mine-grid.png"])
def test_no_other_file_is_replaced(name: str, home: Path) -> None:
    gallery(home / "g")
    (home / name).write_text("mine")
    with pytest.raises(StorageError, match=f"{name} was not written by an evaluation"):
        evaluate(home / "g", network="judge", out=home / "mine.json", progress=False)
    assert (home / name).read_text() == "mine" and len(list(home.iterdir())) == 2


# --- runs ----------------------------------------------------------------------------------------


def test_a_run_of_scenes_is_judged_on_both_splits(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(run), "--count", "30", "--quiet"]
    assert main(words) == 0
    said = capsys.readouterr().out
    (out,) = (run / "evaluation").glob("judge-*.json")
    content = json.loads(out.read_text())
    assert list(content["tables"]) == ["validation", "held_out"]
    assert said.count("Task breakdown") == 2
    for split, tasks, images in (("validation", TASKS, 24), ("held_out", TASKS[2:], 16)):
        found = content["verdicts"][split]
        assert len(found) == images == content["protocol"]["samples"]["count"][split]
        assert [one["task"] for one in found] == [task for task in tasks for _ in range(4)]
        assert len({one["seed"] for one in found}) == images
        made = content["protocol"]["samples"]["made"][split]
        assert made["step"] == 2 and made["labels"] == f"prompts of {split}"
        place = Path(content["protocol"]["samples"]["place"][split])
        assert (place / "00000" / "metadata.jsonl").is_file() and f"{split}: {place}\n" in said
    assert content["values"].keys() == content["deviations"].keys()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    assert main(words) == 0
    assert capsys.readouterr().out == said
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()} == before
    drawn = evaluate(place, network="judge", out=run / "again.json", progress=False)
    own = [one["reason"] for one in content["verdicts"]["held_out"]]
    assert [one["reason"] for one in verdicts(drawn.path)] == own


def test_processes_share_the_drawing_and_agree(run: Path, home: Path) -> None:
    own = home / "run"
    shutil.copytree(run, own, ignore=shutil.ignore_patterns("samples", "evaluation"))

    def work(pipe: int) -> None:
        found = evaluate(own, count=24, progress=False)
        os.write(pipe, json.dumps(found.content["verdicts"]).encode())

    jobs = [fork(work) for _ in range(2)]
    told = [read_all(pipe) for _, pipe in jobs]
    assert [os.waitpid(child, 0)[1] for child, _ in jobs] == [0, 0]
    assert told[0] == told[1] and len(json.loads(told[0])["held_out"]) == 16
    assert len(list((own / "evaluation").iterdir())) == 2
    assert len(list((own / "samples").iterdir())) == 2


def test_too_few_images_of_a_run_are_refused(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"count 23 is not in \[24, 1000000\]"):
        evaluate(run, count=23, progress=False)


def test_a_place_that_is_taken_is_refused_before_anything_is_drawn(run: Path, home: Path) -> None:
    (home / "mine.json").write_text("mine")
    before = sorted(run.rglob("*"))
    with pytest.raises(StorageError, match=r"mine.json was not written by an evaluation"):
        evaluate(run, count=24, first_seed=9, out=home / "mine.json", progress=False)
    assert sorted(run.rglob("*")) == before


def test_the_missing_package_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "scipy":
            raise PackageNotFoundError(name)
        return "1"

    gallery(home / "g")
    monkeypatch.setattr("diffmoe.experiments.evaluation.judging.version", version)
    with pytest.raises(ConfigError, match="the judge of scenes needs the package scipy"):
        evaluate(home / "g", network="judge", progress=False)


def test_a_run_of_classes_is_not_judged(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "classes").mkdir()
    (home / "classes" / "config.yaml").write_text(to_yaml(run_config()))
    assert main(["evaluate", "classes", "--network", "judge"]) == ExitCode.BAD_INPUT
    assert "the judge reads pictures of scenes only" in capsys.readouterr().err
    assert not (home / "classes" / "samples").exists()


def test_a_run_of_scenes_is_compared_with_a_reference_too(
    run: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its samples are of captions that the run keeps: which class they are of nobody asks."""
    loader = "diffmoe.experiments.evaluation.subject.load_inception_network"
    monkeypatch.setattr(loader, lambda *_, **__: Quick())
    monkeypatch.setenv("DIFFMOE_CACHE", str(home / "cache"))
    reference = home / "reference"
    for number in range(20):
        below = reference / TASKS[number % 6]
        below.mkdir(parents=True, exist_ok=True)
        picture(make_scene(0, "train", number)).save(below / f"{number}.png")
    found = evaluate(run, reference, count=20, progress=False)
    assert found.content["protocol"]["network"]["name"] == "inception"
    assert "fd_inception@20" in found.values and "agreement" not in found.values
    assert not [said for said in found.cautions if "class" in said]
