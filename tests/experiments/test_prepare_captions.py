"""Captions encoded once: the same vectors, whoever did the work and however often it was killed."""

import errno
import json
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pretrained
from children import fork, kill, outcome
from data.packing import png
from diffmoe.cli import main
from diffmoe.codec import OutsideEncoder, open_text_encoder
from diffmoe.config import FeatureText, FolderData, T5Encoder
from diffmoe.data import open_caption_cache
from diffmoe.data.cache import caption_shard
from diffmoe.errors import ConfigError, DataError, ExitCode, StoppedError, StorageError
from diffmoe.experiments import PreparedCaptions, prepare_captions
from diffmoe.training import train
from long_record import hold
from runs import newest_tensors, run_config

TOKENS = 6
LETTERS = pretrained.LETTERS
CAPTIONS = [f"{a} {b}{a}" for a in LETTERS for b in LETTERS[:5]]  # 50
LINES = [*CAPTIONS, "", *CAPTIONS[:7], "  ", "a b c d e f g"]  # two are blank, 7 twice, 1 is cut
TOTAL = 51


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(pretrained.save_t5(tmp_path_factory.mktemp("networks") / "t5"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "captions.txt"
    path.write_text("\n".join(LINES) + "\n")
    return path


@pytest.fixture
def make(text: Path, network: str, tmp_path: Path) -> Callable[..., PreparedCaptions]:
    """Prepares the captions into a folder."""

    def run(name: str = "cache", data: Path = text, **changes: Any) -> PreparedCaptions:
        options = {"tokens": TOKENS, "shard": 16, "device": "cpu", "progress": False} | changes
        encoder = options.pop("encoder", network)
        return prepare_captions(data, encoder, out=tmp_path / name, **options)

    return run


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder that takes its time, for processes to meet in it."""
    quick = OutsideEncoder.encode

    def encode(self: OutsideEncoder, captions: Any) -> Any:
        time.sleep(0.1)
        return quick(self, captions)

    monkeypatch.setattr(OutsideEncoder, "encode", encode)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- the same vectors


def test_a_cache_gives_what_the_encoder_gives(make, network: str) -> None:
    """Bit by bit; blank captions too."""
    found = make()
    cache, encoder = open_caption_cache(found.path), open_text_encoder(network, TOKENS, "cpu")
    assert (cache.identity, cache.width, cache.tokens) == (encoder.identity, 16, TOKENS)
    assert cache.missing(LINES) is None and len(cache) == TOTAL == found.made
    for some in (LINES, LINES[::-1], LINES[49:53]):
        read, live = cache.read(some), encoder.encode(some)
        assert torch.equal(read.tokens, live.tokens) and torch.equal(read.mask, live.mask)
    assert found.record.cut == 1
    assert f"{TOTAL} captions, each once" in found.lines()[0]
    assert found.lines()[-1] == "cut, as they have more than 6 tokens: 1 of them"


def test_every_kind_of_file_and_order_gives_the_same_bytes(make, tmp_path: Path) -> None:
    expected = content(make().path)
    records = [{"caption": line, "prompt": "not this"} for line in LINES[::-1]]
    for key in ("caption", "prompt", "text"):
        lines = "\n\n".join(json.dumps({key: one["caption"], "id": 3}) for one in records)
        (tmp_path / f"{key}.jsonl").write_text(lines)
        assert content(make(f"from {key}", tmp_path / f"{key}.jsonl").path) == expected
    (tmp_path / "windows.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(LINES).encode())
    assert content(make("from windows", tmp_path / "windows.txt").path) == expected
    (tmp_path / "own.jsonl").write_text("\n".join(json.dumps({"said": line}) for line in LINES))
    own = make("from own", tmp_path / "own.jsonl", field="said")
    assert content(own.path) == expected


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three captions, 24 pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(24):
        (folder / f"{number:02d}.png").write_bytes(png(10 * number))
        (folder / f"{number:02d}.txt").write_text(CAPTIONS[number % 3])
    return folder


def test_captions_of_pictures_are_read(make, pictures: Path) -> None:
    cache = open_caption_cache(make("cache", pictures).path)
    assert len(cache) == 3 and cache.missing(CAPTIONS) == 3


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_training_from_a_cache_is_training_with_the_encoder(
    make, pictures: Path, network: str, tmp_path: Path
) -> None:
    """Bit for bit, whoever reads the cache."""
    cache = make("cache", pictures).path
    small = {"input_size": 8, "channels": 3, "out_channels": 3, "num_classes": 0}
    small["text"] = FeatureText(tokens=TOKENS, width=16)
    found = []
    for number, (place, workers) in enumerate(((None, 0), (cache, 0), (cache, 1))):
        config = run_config(
            **{f"model__{name}": value for name, value in small.items()},
            loop__steps=2,
            loop__checkpoint_every=2,
            machine__workers=workers,
            data=FolderData(path=pictures),
            text=T5Encoder(path=network, cache=place),
        )
        train(config, tmp_path / f"run-{number}", progress=False)
        found.append(newest_tensors(tmp_path / f"run-{number}"))
    live, *cached = found
    for tensors in cached:
        assert tensors.keys() == live.keys()
        assert all(torch.equal(tensors[name], live[name]) for name in live)


def test_a_clip_is_told_by_its_own_config(make, tmp_path: Path) -> None:
    folder = pretrained.save_clip(tmp_path / "clip")
    record = make(encoder=str(folder)).record
    assert record.encoder.kind == "clip" and record.encoder.precision == "float32"
    with pytest.raises(ConfigError, match="tokens 120 is more than the 12 that this CLIP reads"):
        make("long", encoder=str(folder), tokens=120)


# ---- many processes, some of them killed


def test_a_killed_command_goes_on_and_ends_with_the_same_bytes(
    make, slow: None, tmp_path: Path
) -> None:
    expected = content(make("undisturbed").path)
    parts = tmp_path / "cache.parts"
    for wanted in (1, 2):
        child, _ = fork(lambda _: make())
        while not (parts / f"part-{wanted:06d}").exists():
            time.sleep(0.005)
        kill(child)
        assert not (tmp_path / "cache").exists()
    done = len(list(parts.glob("part-*")))
    found = make()
    assert found.made == TOTAL - 16 * done and done >= 2
    assert content(found.path) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "undisturbed"]


@pytest.mark.long
def test_twenty_kills_at_any_moment_change_no_byte(make, slow: None, tmp_path: Path) -> None:
    expected = content(make("undisturbed").path)

    def measure() -> dict[str, int]:
        random, kills, changed = np.random.default_rng(0), 0, 0
        for name in (f"cache-{number}" for number in range(5)):
            for _ in range(4):
                child, _ = fork(lambda _, name=name: make(name))
                time.sleep(random.uniform(0, 0.45))
                kill(child)
                kills += 1
            changed += content(make(name).path) != expected
        assert not changed and not list(tmp_path.glob("*.parts"))
        return {"kills": kills, "changed": changed}

    hold(
        "caption-cache-kills", "a killed `prepare` of captions ends in the same bytes", 20, measure
    )


def test_processes_share_the_work_and_all_see_it_end(make, slow: None, tmp_path: Path) -> None:
    def report(pipe: int) -> None:
        os.write(pipe, str(make().made).encode())

    children = [fork(report) for _ in range(3)]
    made = []
    for child, pipe in children:
        assert os.waitpid(child, 0)[1] == 0
        with os.fdopen(pipe) as stream:
            made.append(int(stream.read()))
    assert sum(made) == TOTAL and max(made) < TOTAL  # nothing twice, and not by one alone
    assert content(tmp_path / "cache") == content(make("alone").path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "cache"]


def test_an_interrupted_command_says_what_is_kept(make, slow: None, tmp_path: Path) -> None:
    def interrupted() -> list[str]:
        try:
            make()
        except StoppedError as stop:
            return [str(int(stop.exit_code)), str(stop)]
        return []

    def work(pipe: int) -> None:
        os.write(pipe, json.dumps(interrupted()).encode())

    child, pipe = fork(work)
    while not (tmp_path / "cache.parts" / "part-000000").exists():
        time.sleep(0.005)
    os.kill(child, signal.SIGINT)
    os.waitpid(child, 0)
    with os.fdopen(pipe) as stream:
        code, told = json.loads(stream.read())
    assert int(code) == ExitCode.RESUMABLE and " of 51 captions are encoded" in told
    assert make().made < TOTAL


def test_a_full_disk_is_told_and_costs_one_shard(make, tmp_path: Path, monkeypatch) -> None:
    quick = caption_shard.save_file

    def save_file(tensors: Any, path: Path) -> None:
        if "000001" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        quick(tensors, path)

    with monkeypatch.context() as patched:
        patched.setattr(caption_shard, "save_file", save_file)
        with pytest.raises(StorageError, match=r"\(No space left .* no half-written file was left"):
            make()
    left = sorted(path.name for path in (tmp_path / "cache.parts").iterdir())
    assert left == [".lock", "part-000000", "work.json"]
    assert make().made == TOTAL - 16


# ---- the same command on a finished cache


def test_a_sound_cache_is_verified_and_left_alone(make) -> None:
    path = make().path
    before = {file.name: file.stat().st_ino for file in path.iterdir()}
    again = make()
    assert again.verified and again.made == 0
    assert again.lines()[1] == "nothing left to do: every file is as it was written"
    assert {file.name: file.stat().st_ino for file in path.iterdir()} == before


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [flip_a_bit, lambda path: os.truncate(path, 700), Path.unlink])
def test_what_is_damaged_is_made_anew_and_nothing_else(
    damage: Callable[[Path], None], make
) -> None:
    path = make().path
    before = content(path)
    damage(path / "captions-000001.safetensors")
    found = make()
    assert (found.made, found.verified) == (16, False)
    assert content(path) == before
    assert make().verified


def test_another_cache_is_never_replaced(make, network: str, text: Path, tmp_path: Path) -> None:
    before = content(make().path)
    fewer = tmp_path / "fewer.txt"
    fewer.write_text("a\nb")
    other = pretrained.save_t5(tmp_path / "other", num_layers=1)
    for changes, what in (
        ({"shard": 8}, "shard lies here: 16, not 8"),
        ({"tokens": 7}, "encoder lies here: t5 .* tokens 6, not t5 .* tokens 7"),
        ({"encoder": str(other)}, "encoder lies here: t5 sha256:"),
        ({"data": fewer}, "captions lies here"),
    ):
        with pytest.raises(ConfigError, match=f"a cache of another {what}.*choose another --out"):
            make(**changes)
        assert content(tmp_path / "cache") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(StorageError, match=r"thesis.txt was not written here .* would be lost"):
        make("mine")
    assert not list(tmp_path.glob("*.parts"))


def test_unfinished_work_of_other_captions_is_not_mixed(make, slow: None, tmp_path: Path) -> None:
    child, _ = fork(lambda _: make())
    while not (tmp_path / "cache.parts" / "part-000000").exists():
        time.sleep(0.005)
    kill(child)
    other = tmp_path / "other.txt"
    other.write_text("a\nb")
    with pytest.raises(ConfigError, match="unfinished work of other settings lies here: captions"):
        make(data=other)


# ---- what cannot be encoded


def test_captions_that_cannot_be_read_are_refused(make, network: str, tmp_path: Path) -> None:
    cases = {
        "blank.txt": (b"\n  \n", DataError, "no caption says anything"),
        "latin.txt": (b"caf\xe9", DataError, "no UTF-8 text at byte 3"),
        "broken.jsonl": (b'{"text": "a"}\n{"text', DataError, "line 2 has no caption"),
        "number.jsonl": (b'{"text": 3}', DataError, "line 1 has no caption .*text"),
        "list.jsonl": (b'["text"]', DataError, "line 1 has no caption"),
        "deep.jsonl": (b"[" * 100_000, DataError, "line 1 has no caption"),
    }
    for name, (given, kind, what) in cases.items():
        (tmp_path / name).write_bytes(given)
        with pytest.raises(kind, match=what) as caught:
            make("cache", tmp_path / name)
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="nowhere"):
        make("cache", tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"the cache would lie among the data"):
        make("blank.txt/inside", tmp_path / "blank.txt")
    with pytest.raises(ConfigError, match=r"shard 0 is not in 1\.\.1000000"):
        make(shard=0)
    assert not (tmp_path / "cache").exists() and not list(tmp_path.glob("*.parts"))


def test_vectors_that_are_no_numbers_are_refused(make, network: str, monkeypatch) -> None:
    block = OutsideEncoder._of_block

    def spoilt(self: OutsideEncoder, given: torch.Tensor) -> torch.Tensor:
        found = block(self, given)
        return found / 0 if (given[0, 0] == 4).any() else found  # captions with an a

    monkeypatch.setattr(OutsideEncoder, "_of_block", spoilt)
    with pytest.raises(DataError, match=r"of the caption 'a .*' hold NaN or infinity") as caught:
        make()
    assert caught.value.exit_code == ExitCode.BAD_DATA


# ---- the verb


def test_the_verb_encodes_and_says_what_is_next(
    network: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog
) -> None:
    words = ["prepare", str(text), "--text-encoder", network, "--out", str(tmp_path / "cache")]
    words += ["--text-tokens", "6", "--device", "cpu", "--quiet"]
    with caplog.at_level(logging.WARNING):
        assert main(words) == ExitCode.DONE
    told = capsys.readouterr().out
    assert "51 captions, each once" in told and "51 of them encoded here" in told
    assert "train diffmoe-e16-t2i-flow --data.path IMAGES --text.path" in told
    assert f"--text.path {network} --text.cache {tmp_path / 'cache'}" in told
    assert "--model.text.tokens 6 --model.text.width 16" in told
    assert main(words) == ExitCode.DONE
    assert "nothing left to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--text-encoder", "x", "--side", "8"], "--side changes nothing: captions are encoded"),
        (["--text-encoder", "x", "--no-flip"], "--no-flip changes nothing: captions"),
        (["--text-tokens", "8"], "--text-tokens changes nothing: without --text-encoder images"),
    ],
)
def test_flags_that_would_change_nothing_are_refused(
    words: list[str], what: str, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", str(text), *words]) == ExitCode.BAD_INPUT
    assert what in capsys.readouterr().err


def test_it_needs_no_more_than_the_processes_that_share_it(make) -> None:
    """A child that was forked from a process which has encoded may encode as well."""
    make("first")
    assert outcome(lambda: make("second").made) == TOTAL
