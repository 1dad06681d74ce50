"""Images of prompts: from the command line, from a file, or of captions that the run keeps."""

import json
import logging
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffmoe.checkpoint import RunFolder
from diffmoe.cli import main
from diffmoe.config import to_yaml
from diffmoe.data import SampledPictures
from diffmoe.errors import ConfigError, DataError, ExitCode
from diffmoe.evaluation import record_of
from diffmoe.experiments import prompted, read_prompt_file
from diffmoe.sampling.output.pictures import captioned
from diffmoe.training import train
from runs import run_config
from texts import text_run

RED, STARS = "a red circle", "two stars"
# Weights far from their first values: captions change nothing there.
LIVELY = {
    "loop__steps": 8,
    "loop__checkpoint_every": 8,
    "training__learning_rate": 0.02,
    "training__warmup_steps": 1,
    "training__ema_decay": 0.0,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "run"
    train(text_run(**LIVELY), path, progress=False)
    return path


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def drawn(run: Path, *words: str, out: str = "s") -> list[dict[str, Any]]:
    """What the record says of each image of a command."""
    assert main(["sample", str(run), "--quiet", "--out", out, *words]) == 0
    found: list[dict[str, Any]] = json.loads(Path(out, "samples.json").read_text())["images"]
    return found


def asked(images: list[dict[str, Any]]) -> list[tuple[str, int, int]]:
    return [(one["caption"], one["label"], one["seed"]) for one in images]


def lines(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# --- which prompts -------------------------------------------------------------------------------


def test_prompts_have_their_turn_until_there_are_as_many(run: Path) -> None:
    images = drawn(run, "--prompts", RED, STARS, "--count", "5", "--seed", "7")
    assert asked(images) == [(RED, 0, 7), (STARS, 1, 8), (RED, 0, 9), (STARS, 1, 10), (RED, 0, 11)]
    assert images[3]["file"] == "000003-prompt-1-seed-10.png"
    record = json.loads(Path("s/samples.json").read_text())
    assert record["prompts"] == [RED, STARS] and "class_names" not in record
    assert sorted(path.name for path in Path("s").iterdir()) == sorted(
        ["samples.json", "sheet.png", *(one["file"] for one in images)]
    )


def test_one_prompt_is_drawn_from_every_seed_given(run: Path) -> None:
    images = drawn(run, "--prompts", RED, "--seeds", "3", "1", "4")
    assert asked(images) == [(RED, 0, 3), (RED, 0, 1), (RED, 0, 4)]


def test_an_image_depends_on_its_prompt_and_seed_not_on_its_company(run: Path) -> None:
    many = drawn(run, "--prompts", RED, STARS, "--count", "4", out="many")
    (one,) = drawn(run, "--prompts", STARS, "--seeds", "3", out="one")
    assert one["sha256"] == many[3]["sha256"] != many[1]["sha256"]


def test_another_prompt_and_a_negative_one_change_the_image(run: Path) -> None:
    words = ["--guidance", "3", "--seeds", "0", "--prompts"]
    found = {
        drawn(run, *words, prompt, *more, out=f"s{place}")[0]["sha256"]
        for place, (prompt, *more) in enumerate(
            [(RED,), (STARS,), ("",), (RED, "--negative", STARS)]
        )
    }
    assert len(found) == 4


def test_a_file_of_text_has_a_prompt_a_line(run: Path, home: Path) -> None:
    file = lines(home / "p.txt", "\ufeffa ring\r\n\n# star\nein gr\u00fcner Ring\n")
    assert read_prompt_file(file) == ("a ring", "", "# star", "ein grüner Ring")
    assert [one["caption"] for one in drawn(run, "--prompt-file", "p.txt")] == [
        *("a ring", "", "# star", "ein grüner Ring")
    ]


def test_an_empty_prompt_is_drawn_without_condition_and_said_so(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = drawn(run, "--prompts", RED, "", "--seeds", "0", "0")
    assert "prompt 1 is empty: it is drawn without condition" in caplog.text
    blank = drawn(run, "--prompts", "  ", "--seeds", "0", out="blank")
    assert blank[0]["sha256"] == images[1]["sha256"] != images[0]["sha256"]


def test_a_file_of_json_has_a_prompt_an_object(home: Path) -> None:
    content = '{"text": "c", "caption": "b", "prompt": "a"}\n\n{"text": "c", "caption": "b"}\n'
    file = lines(home / "p.jsonl", content + '{"text": "c", "tag": 1}')
    assert read_prompt_file(file) == ("a", "b", "c")


def test_without_prompts_captions_of_the_training_are_drawn(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    images = drawn(run)
    kept = RunFolder(run).captions
    assert [one["caption"] for one in images] == list(kept[:16])
    told = [record.message for record in caplog.records if "no prompts" in record.message]
    assert told == [f"no prompts are given: {len(kept)} captions of the training have their turn"]


def test_captions_drawn_by_the_seed_are_functions_of_it(run: Path) -> None:
    first = prompted(run, (), (), 8, law="random", first_seed=3)
    later = prompted(run, (), (), 4, law="random", first_seed=5)
    assert first.labels[2:6] == later.labels and len(set(first.labels)) > 2


def test_a_run_that_keeps_no_captions_wants_prompts(run: Path, home: Path) -> None:
    with pytest.raises(ConfigError, match="no prompts are given, and the run keeps no captions"):
        prompted(home, (), (), None)


# --- what is refused -----------------------------------------------------------------------------

BAD_FILES = [
    ("p.txt", b"a ring\na \xff star\n", DataError, "line 2 is no UTF-8"),
    ("p.txt", b"", ConfigError, "the file holds no prompt"),
    ("p.txt", b"\n \n", ConfigError, "the file holds no prompt"),
    ("p.txt", b"a\n" + b"b" * 10_001, DataError, "line 2 has 10,001 characters"),
    ("p.txt", b"a\0b", DataError, "line 1 holds bytes that are no text"),
    ("p.jsonl", b'{"prompt": "a"}\n{"prompt": ', DataError, "line 2 is no JSON"),
    ("p.jsonl", b'"a"', DataError, "line 1 has no text as prompt, caption, text"),
    ("p.jsonl", b'{"prompt": 3}', DataError, "line 1 has no text"),
    ("p.jsonl", b'{"prompt": "\\ud800"}', DataError, "line 1 holds bytes that are no text"),
    ("p.jsonl", b"[" * 100_000, DataError, "line 1 is no JSON"),
]


@pytest.mark.parametrize(("name", "content", "kind", "told"), BAD_FILES)
def test_a_bad_file_of_prompts_is_refused_with_its_line(
    name: str, content: bytes, kind: type[Exception], told: str, home: Path
) -> None:
    with pytest.raises(kind, match=told) as caught:
        read_prompt_file(lines(home / name, content))
    assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.txt", ".", "/dev/zero"])
def test_what_is_no_file_of_prompts_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read|none of prompts"):
        read_prompt_file(Path(name))


BAD_WORDS = [
    (["--labels", "3"], "the run reads captions, and knows no classes — give --prompts instead"),
    (["--labels", "3", "--prompts", RED], "--labels and --prompts do not go together"),
    (["--prompts", RED, "--prompt-file", "p"], "--prompts and --prompt-file do not go together"),
    (["--geneval", "g", "--count", "4"], "--geneval and --count do not go together"),
    (["--geneval", "g", "--format", "png"], "--geneval and --format do not go together"),
    (["--prompts", RED, "--count-each", "2"], "--count-each goes with --geneval"),
    (["--prompts", RED, STARS, "--count", "1"], "count 1 does not go with 2 prompts"),
    (["--prompts", RED, "--law", "random"], "law random does not go with 1 prompt"),
    (["--prompts"], "--prompts was given no value"),
    (["--prompts", "a \udcff"], "prompt 0 holds bytes that are no text"),
    (["--prompts", RED, "--negative", "\udcff"], "negative prompt 0 holds bytes that are no text"),
    (["--prompt-file", "nowhere.txt"], "the file of prompts cannot be read"),
]


@pytest.mark.parametrize(("words", "told"), BAD_WORDS)
def test_what_contradicts_itself_is_refused(
    words: list[str], told: str, run: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", str(run), "--out", "s", *words]) == ExitCode.BAD_INPUT
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1
    assert not list(home.iterdir())


def test_a_run_of_classes_refuses_prompts(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "classes").mkdir()
    (home / "classes" / "config.yaml").write_text(to_yaml(run_config()))
    for words in (["--prompts", RED], ["--prompt-file", "p.txt"], ["--geneval", "g.jsonl"]):
        assert main(["sample", "classes", *words]) == ExitCode.BAD_INPUT
        assert "the run reads no prompts: its condition is a class" in capsys.readouterr().err


# --- how they are kept ---------------------------------------------------------------------------


def test_the_record_of_a_folder_is_read_as_pictures_with_captions(run: Path) -> None:
    images = drawn(run, "--prompts", RED, STARS, "--count", "3")
    found = SampledPictures(Path("s"), labelled=False)
    assert found.labels is not None and found.labels.tolist() == [0, 1, 0]
    assert list(found.captioned(("caption",)).captions or ()) == [RED, STARS, RED]
    made = record_of(Path("s"))
    assert made is not None and str(made["prompts"]).startswith("2 prompts sha256:")
    assert images[0].keys() == {"file", "label", "seed", "caption", "bytes", "sha256"}


def test_a_shard_has_a_caption_in_the_place_of_a_class(run: Path) -> None:
    words = ["--prompts", RED, "größer", "--format", "webdataset", "--out", "s", "--quiet"]
    assert main(["sample", str(run), *words]) == 0
    with tarfile.open("s/shard-000000.tar") as shard:
        found = {one.name: shard.extractfile(one).read() for one in shard}  # type: ignore[union-attr]
    assert list(found) == [f"00000{n}.{kind}" for n in (0, 1) for kind in ("png", "txt", "json")]
    assert found["000001.txt"].decode() == "größer"
    assert json.loads(found["000001.json"]) == {"label": 1, "seed": 1, "caption": "größer"}


def test_arrays_hold_the_numbers_of_prompts(run: Path) -> None:
    words = ["--prompts", RED, STARS, "--count", "3", "--out", "s.npz", "--quiet"]
    assert main(["sample", str(run), *words]) == 0
    with np.load("s.npz") as arrays:
        assert arrays["arr_0"].shape == (3, 32, 32, 3) and arrays["arr_1"].tolist() == [0, 1, 0]
    record = json.loads(Path("s.json").read_text())
    assert record["prompts"] == [RED, STARS] and record["seeds"] == [0, 1, 2]


def test_the_same_command_again_does_nothing(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    drawn(run, "--prompts", RED)
    before = {path: path.stat().st_mtime_ns for path in Path("s").iterdir()}
    caplog.set_level(logging.INFO)
    drawn(run, "--prompts", RED)
    assert "nothing left to do" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in Path("s").iterdir()} == before


def test_other_prompts_replace_the_samples_and_nothing_else(run: Path) -> None:
    drawn(run, "--prompts", RED)
    assert [one["caption"] for one in drawn(run, "--prompts", STARS)] == [STARS]
    Path("s/mine.txt").touch()
    assert main(["sample", str(run), "--prompts", RED, "--out", "s"]) == ExitCode.STORAGE
    assert Path("s/mine.txt").exists()


@pytest.mark.parametrize(
    "prompt", ["two words", "w" * 500, "many words " * 100, "", "größer ✗ 環", "a\ttab  here"]
)
def test_no_prompt_leaves_its_place_on_the_sheet(prompt: str) -> None:
    black = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    sheet = captioned(black, [f"{' '.join(prompt.split())}\nseed 1"] * 3, 2, prompts=True)
    assert sheet.size == (8 + 2 * (128 + 8), 8 + 2 * (128 + 4 * 13 + 8))
    values = np.asarray(sheet.convert("L"))
    for left in (0, 136, 272):  # the gaps beside all tiles and texts
        assert (values[:, left : left + 8] == 255).all()
    assert (values[136 + 52 : 144 + 52] == 255).all()  # below the fourth line


def test_a_sheet_shows_the_words_in_three_lines_at_most() -> None:
    black = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)

    def rows(prompt: str) -> int:
        sheet = np.asarray(captioned(black, [f"{prompt}\n"], prompts=True).convert("L"))
        below = np.flatnonzero((sheet[137:] < 255).any(axis=1))
        return int(below.max()) // 13 + 1

    assert rows("a red circle") == 1
    assert rows("a picture of a yellow cross") == 2
    assert rows("a picture of a yellow cross to the right of a green star") == 3
    assert rows("a picture of a yellow cross to the right of a green star " * 9) == 3


def test_the_sheet_of_a_run_is_that_of_its_prompts(run: Path) -> None:
    drawn(run, "--prompts", RED, STARS)
    with Image.open("s/sheet.png") as sheet:
        assert sheet.size == (8 + 2 * (128 + 8), 8 + 128 + 4 * 13 + 8)
