"""Prompts of GenEval into the folders that its scorer reads."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from children import fork
from diffmoe.cli import main
from diffmoe.data import SampledPictures, make_prompts
from diffmoe.errors import ConfigError, DataError, ExitCode, StorageError
from diffmoe.experiments import asked_of_metadata, draw_samples, read_metadata
from diffmoe.experiments.metadata import geneval_seed
from diffmoe.sampling import GenEvalFolder, is_as_recorded, refuse_place
from diffmoe.training import train
from texts import text_run

PROMPTS = [
    {"tag": "single_object", "include": [{"class": "ring", "count": 1}], "prompt": "a ring"},
    {
        "tag": "counting",
        "include": [{"class": "star", "count": 3}],
        "exclude": [{"class": "star", "count": 4}],
        "prompt": "a photo of three stars",
    },
    {
        "tag": "position",
        "include": [
            {"class": "cross", "count": 1},
            {"class": "circle", "count": 1, "color": "red", "position": ["left of", 0]},
        ],
        "prompt": "a red circle left of a cross",
    },
]
LINES = [json.dumps(each) for each in PROMPTS]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("geneval") / "run"
    train(text_run(loop__steps=2), path, progress=False)
    return path


@pytest.fixture(scope="module")
def pattern(run: Path) -> Path:
    """Samples as they are drawn, to be copied."""
    (run.parent / "g.jsonl").write_text("\n".join(LINES) + "\n")
    place = run.parent / "pattern"
    words = ["--geneval", str(run.parent / "g.jsonl"), "--quiet", "--out", str(place)]
    assert main(["sample", str(run), *words]) == 0
    return place


@pytest.fixture
def copied(pattern: Path, home: Path) -> Path:
    return Path(shutil.copytree(pattern, home / "s"))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("diffmoe.experiments.samples._PART", 4)
    (tmp_path / "g.jsonl").write_text("\n".join(LINES) + "\n")
    return tmp_path


def drawn(run: Path, *words: str, out: str = "s") -> Path:
    assert main(["sample", str(run), "--geneval", "g.jsonl", "--quiet", "--out", out, *words]) == 0
    return Path(out)


def tree(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def scored(folder: Path) -> dict[str, list[str]]:
    """What a scorer finds that goes by GenEval's layout: each prompt and its images."""
    found = {}
    for below in sorted(folder.iterdir()):
        if not (below.is_dir() and below.name.isdigit()):
            continue
        metadata = json.loads((below / "metadata.jsonl").read_text())
        images = sorted(path.name for path in (below / "samples").iterdir())
        assert all(re.match(r"\d+\.png", image) for image in images)
        found[metadata["prompt"]] = images
    return found


def test_the_folder_is_what_the_scorer_reads(pattern: Path) -> None:
    place = pattern
    numbered = [f"000{n}.png" for n in ("0", "1", "2", "3")]
    assert scored(place) == dict.fromkeys([each["prompt"] for each in PROMPTS], numbered)
    expected = {"samples.json", "sheet.png"}
    for number, line in enumerate(LINES):
        below = place / f"{number:05d}"
        assert (below / "metadata.jsonl").read_text() == f"{line}\n"
        with Image.open(below / "grid.png") as grid:
            assert grid.size == (4 * 34 + 2, 34 + 2)
        expected |= {f"{below.name}/{name}" for name in ("metadata.jsonl", "grid.png")}
        expected |= {f"{below.name}/samples/{name}" for name in numbered}
    assert tree(place).keys() == expected


def test_images_are_of_their_prompt_and_seed(run: Path) -> None:
    place = drawn(run, "--count-each", "2", "--seed", "5")
    images = json.loads((place / "samples.json").read_text())["images"]
    assert [(one["file"], one["caption"]) for one in images] == [
        (f"{n:05d}/samples/{k:04d}.png", PROMPTS[n]["prompt"]) for n in range(3) for k in range(2)
    ]
    assert len({one["seed"] for one in images}) == 6
    seeds = [str(one["seed"]) for one in images[2:4]]
    prompt = str(PROMPTS[1]["prompt"])
    words = ["--prompts", prompt, "--seeds", *seeds, "--out", "alone", "--quiet"]
    assert main(["sample", str(run), *words]) == 0
    alone = json.loads(Path("alone/samples.json").read_text())["images"]
    assert [one["sha256"] for one in alone] == [one["sha256"] for one in images[2:4]]


def test_more_images_of_each_prompt_leave_the_first_as_they_are(run: Path, pattern: Path) -> None:
    few, many = tree(drawn(run, "--count-each", "2")), tree(pattern)
    for name, content in few.items():
        if "/samples/" in name:
            assert many[name] == content


def test_seeds_differ_whatever_the_first_is() -> None:
    found = [geneval_seed(f, n, k) for f in (0, 1, 7) for n in (0, 1, 999) for k in (0, 1, 4095)]
    assert len(set(found)) == len(found) and min(found) >= 0 and max(found) < 2**63
    assert geneval_seed(2**31 - 1, 2**20 - 1, 2**12 - 1) == 2**63 - 1
    with pytest.raises(ConfigError, match="seed 2147483648 is out of range"):
        geneval_seed(2**31, 0, 0)


def test_processes_together_write_what_one_does(run: Path, home: Path, pattern: Path) -> None:

    def work(pipe: int) -> None:
        drawn(run, out="s")
        os.write(pipe, b"1")

    jobs = [fork(work) for _ in range(2)]
    assert [os.waitpid(child, 0)[1] for child, _ in jobs] == [0, 0]
    assert tree(home / "s") == tree(pattern)


def test_what_is_drawn_is_gone_on_with(
    run: Path, pattern: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, calls = GenEvalFolder.write_part, []

    def once(self: Any, *arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        honest(self, *arguments)

    monkeypatch.setattr(GenEvalFolder, "write_part", once)
    words = ["sample", str(run), "--geneval", "g.jsonl", "--quiet", "--out", "s"]
    assert main(words) == ExitCode.RESUMABLE
    assert not Path("s").exists() and len(list(Path("s.parts").glob("part-*"))) == 2
    drawn(run)
    assert len(calls) == 4  # the third part alone was drawn again
    assert tree(Path("s")) == tree(pattern) and not Path("s.parts").exists()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "an image is gone": lambda s: (s / "00001/samples/0002.png").unlink(),
    "an image is cut": lambda s: os.truncate(s / "00001/samples/0002.png", 9),
    "a grid is gone": lambda s: (s / "00002/grid.png").unlink(),
    "metadata are gone": lambda s: (s / "00000/metadata.jsonl").unlink(),
    "metadata are others": lambda s: (s / "00000/metadata.jsonl").write_text(LINES[1] + "\n"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_same_command_mends_what_was_damaged(
    damage: str, run: Path, copied: Path, pattern: Path
) -> None:
    DAMAGES[damage](copied)
    assert tree(drawn(run)) == tree(pattern)


def test_the_same_command_does_nothing_where_all_is_there(run: Path, copied: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    drawn(run, out=str(copied))
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before


@pytest.mark.usefixtures("copied")
def test_other_metadata_of_the_same_prompts_are_written(run: Path, home: Path) -> None:
    (home / "g.jsonl").write_text("\n".join([LINES[0].replace('"ring"', '"cross"'), *LINES[1:]]))
    assert '"cross"' in (drawn(run) / "00000/metadata.jsonl").read_text()


FOREIGN: dict[str, tuple[str, Callable[[Path], object]]] = {
    "file": ("00001/mine", lambda s: (s / "00001/mine").touch()),
    "sample": ("00001/samples/0009.png", lambda s: (s / "00001/samples/0009.png").touch()),
    "folder": ("00003", lambda s: (s / "00003").mkdir()),
    "folder of a sample": (
        "00001/samples/0001.png",
        lambda s: ((s / "00001/samples/0001.png").unlink(), (s / "00001/samples/0001.png").mkdir()),
    ),
    "grid above": ("grid.png", lambda s: (s / "grid.png").touch()),
    "link": (
        "00001/samples",
        lambda s: (
            (s / "00001/samples").rename("away"),
            (s / "00001/samples").symlink_to(Path("away").absolute()),
        ),
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_nothing_else_is_replaced(kind: str, run: Path, copied: Path) -> None:
    (name, change), place = FOREIGN[kind], copied
    change(place)
    before = sorted(place.rglob("*"))
    with pytest.raises(StorageError, match=f"^{name} was not written by a sampling"):
        refuse_place(place)
    words = ["sample", str(run), "--geneval", "g.jsonl", "--seed", "1", "--out", "s"]
    assert main(words) == ExitCode.STORAGE
    assert sorted(place.rglob("*")) == before


def test_the_record_tells_whether_images_are_its_own(copied: Path) -> None:
    place = copied
    assert is_as_recorded(place) is True
    assert len(SampledPictures(place, labelled=False)) == 12
    (place / "00001/samples/0004.png").write_bytes(b"")
    assert is_as_recorded(place) is False
    (place / "00001/samples/0004.png").unlink()
    changed = np.zeros((32, 32, 3), np.uint8)
    Image.fromarray(changed).save(place / "00001/samples/0003.png")
    assert is_as_recorded(place) is False


# --- metadata ------------------------------------------------------------------------------------

GOOD = PROMPTS[2]
BAD = [
    ("{", "is no JSON"),
    ("[" * 100_000, "is no JSON"),
    ("[]", "is no object"),
    (json.dumps({**GOOD, "tag": 3}), "has no text as tag"),
    (json.dumps({**GOOD, "prompt": " "}), "has no text as prompt"),
    (json.dumps({**GOOD, "prompt": "\ud800"}), "has a prompt that holds bytes that are no text"),
    (json.dumps({**GOOD, "prompt": "a" * 10_001}), "has a prompt that has 10,001 characters"),
    (json.dumps({"tag": "a", "prompt": "b"}), "includes nothing"),
    (json.dumps({**GOOD, "include": "ring"}), "has no list as include"),
    (json.dumps({**GOOD, "exclude": {}}), "has no list as exclude"),
    (json.dumps({**GOOD, "include": [{"count": 1}]}), "includes something that has no class"),
    (json.dumps({**GOOD, "include": [{"class": "a", "count": True}]}), "has no count of 1 or more"),
    (json.dumps({**GOOD, "exclude": [{"class": "a", "count": 0}]}), "excludes something that has"),
    (json.dumps({**GOOD, "include": [{"class": "a", "count": 1, "color": 2}]}), "a color that is"),
    (
        json.dumps({**GOOD, "include": [{"class": "a", "count": 1, "position": ["above", 0]}]}),
        "has a position that is no relation to something before it",
    ),
]


@pytest.mark.parametrize(("line", "told"), BAD, ids=[told for _, told in BAD])
def test_a_bad_line_is_refused_before_anything_is_drawn(
    line: str, told: str, run: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "g.jsonl").write_text(f"{LINES[0]}\n\n{line}\n")
    with pytest.raises(DataError, match=f"^line 3 .*{re.escape(told)}.* — g.jsonl — "):
        read_metadata(Path("g.jsonl"))
    words = ["sample", str(run), "--geneval", "g.jsonl", "--out", "s"]
    assert main(words) == ExitCode.BAD_DATA
    assert capsys.readouterr().err.count("\n") == 1
    assert [path.name for path in home.iterdir()] == ["g.jsonl"]


def test_metadata_without_a_prompt_are_refused(home: Path) -> None:
    (home / "g.jsonl").write_text("\n\n")
    with pytest.raises(ConfigError, match="holds no prompts"):
        read_metadata(Path("g.jsonl"))


def test_lines_stay_as_they_are_written(home: Path) -> None:
    line = '{"prompt":"ein gr\\u00fcner Ring", "tag" : "colors", "own": 1.50, "include":[{"class":'
    line += '"ring","count":1}]}'
    (home / "g.jsonl").write_text(f"  {line} \r\n")
    assert read_metadata(Path("g.jsonl")) == [line]
    assert asked_of_metadata([line], 1, 0).prompts == ("ein grüner Ring",)


@pytest.mark.parametrize("each", [0, 4097])
def test_absurd_numbers_of_images_are_refused(each: int) -> None:
    with pytest.raises(ConfigError, match=f"{each} images of each of 3 prompts"):
        asked_of_metadata(LINES, each, 0)


def test_prompts_of_scenes_are_metadata_as_well(run: Path, home: Path) -> None:
    lines = [json.dumps(prompt.metadata) for prompt in make_prompts(1)]
    asked = asked_of_metadata(lines, 1, 0)
    found = draw_samples(
        run,
        asked.labels,
        asked.seeds,
        settings=text_run().sampling,
        prompts=asked.prompts,
        format=asked.format,
        out=home / "scenes",
        progress=False,
    )
    assert len(scored(found.path)) == 6
