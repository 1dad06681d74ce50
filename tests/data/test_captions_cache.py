"""Captions that stay with latents: beside an array of them, and in a cache of posteriors."""

import json
import os
import pickle
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autoencoders import autoencoder, codec_config
from children import fork, kill
from data.captioned import CAPTIONS, FLAT, TOLD, beside, csv_of, pictures, record, written
from data.posteriors import write_cache
from diffmoe.codec import Autoencoder
from diffmoe.config import FolderData, RunConfig, WordEncoder, WordText
from diffmoe.data import (
    CACHE,
    CacheSource,
    LatentSource,
    open_pictures,
    open_source,
    read_record,
    source_codec,
    source_texts,
    stream,
)
from diffmoe.errors import ConfigError, DataError
from diffmoe.experiments import PreparedCache, prepare
from runs import run_config

TEXTS = "captions.jsonl"


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("network") / "autoencoder"
    autoencoder().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Captioned pictures in class folders."""
    return written(tmp_path / "images", beside())


@pytest.fixture
def make(images: Path, network: str, tmp_path: Path) -> Callable[..., PreparedCache]:
    """Prepares the images into a folder, two a shard."""

    def run(name: str = "cache", data: Path = images, **changes: Any) -> PreparedCache:
        options = {"side": 8, "shard": 2, "device": "cpu", "progress": False} | changes
        return prepare(data, network, out=tmp_path / name, **options)

    return run


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """An autoencoder that takes its time, for processes to meet in it."""
    quick = Autoencoder.moments

    def moments(self: Autoencoder, pixels: torch.Tensor) -> torch.Tensor:
        time.sleep(0.1)
        return quick(self, pixels)

    monkeypatch.setattr(Autoencoder, "moments", moments)


def run_on(data: Path, network: str, *, text: bool = True) -> RunConfig:
    """A run on images or their cache that reads words, or is told classes."""
    sizes = {"model__input_size": 4, "model__channels": 5, "model__out_channels": 5}
    if text:
        words = WordText(tokens=8, words=50, width=16, layers=1, heads=2)
        sizes |= {"model__num_classes": 0, "model__text": words, "text": WordEncoder()}
    else:
        sizes |= {"model__num_classes": 2}
    config = run_config(**sizes)
    return replace(config, data=FolderData(path=data, flip=False), codec=codec_config(network))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- a cache


def test_a_cache_keeps_the_captions_of_its_images(make, images: Path, network: str) -> None:
    found = make()
    source = CacheSource(found.path, captioned=True)
    assert list(source.captions) == CAPTIONS and source.class_names == ("a", "c")
    assert list(pickle.loads(pickle.dumps(source)).captions) == CAPTIONS
    assert (found.path / TEXTS).read_text(encoding="utf-8").count("\n") == len(TOLD)
    assert found.lines()[0].startswith("5 images of 2 classes with captions and their mirror")
    assert make().verified


def test_a_run_may_move_from_captioned_images_to_their_cache(
    make, images: Path, network: str
) -> None:
    cache = make().path
    for text in (True, False):
        there, here = (open_source(run_on(data, network, text=text)) for data in (images, cache))
        assert there.fingerprint == here.fingerprint and len(there) == len(here) == 5
        assert (here.captions is not None) == text
    assert open_pictures(images).fingerprint == here.fingerprint


def test_batches_have_the_captions_of_their_images(make, images: Path, network: str) -> None:
    batches = []
    for data in (images, make().path):
        config = run_on(data, network)
        source = open_source(config)
        codec, texts = source_codec(config, source, "cpu"), source_texts(config, source, "cpu")
        batch = next(stream(config, source, codec, texts, first=0, device="cpu"))
        expected = texts.encode([CAPTIONS[place] for place in batch.index])
        assert torch.equal(batch.captions.tokens, expected.tokens)
        assert torch.equal(batch.captions.mask, expected.mask)
        batches.append(batch)
    assert batches[0].index == batches[1].index and torch.equal(batches[0].x, batches[1].x)


def test_images_without_labels_make_a_cache_if_they_have_captions(
    make, network: str, tmp_path: Path
) -> None:
    found = make(data=record(tmp_path / "drawn"))
    assert found.lines()[0].startswith("5 images with captions and their")
    source = open_source(run_on(found.path, network))
    assert (source.labels.tolist(), source.class_names) == ([0] * 5, ("captioned",))
    assert list(source.captions) == CAPTIONS
    with pytest.raises(ConfigError, match=r"holds captions and no classes, .*reads text"):
        open_source(run_on(found.path, network, text=False))


def test_a_cache_without_captions_is_refused_by_a_run_on_text(
    make, network: str, tmp_path: Path
) -> None:
    found = make(data=written(tmp_path / "bare", pictures()))
    with pytest.raises(ConfigError, match="holds no captions, which the model reads"):
        open_source(run_on(found.path, network))
    assert open_source(run_on(found.path, network, text=False)).captions is None
    facts = json.loads((found.path / CACHE).read_text())
    assert "captions" not in facts and "captions" not in facts["source"]
    assert TEXTS not in content(found.path)


def test_a_cache_of_before_there_were_captions_is_read(tmp_path: Path) -> None:
    folder = write_cache(tmp_path / "old")
    assert "captions" not in (folder / CACHE).read_text()
    assert read_record(folder).captions is None and CacheSource(folder).captions is None


def test_the_same_captions_by_any_processes(make, slow: None, tmp_path: Path) -> None:
    children = [fork(lambda _: make()) for _ in range(3)]
    assert [os.waitpid(child, 0)[1] for child, _ in children] == [0] * 3
    killed, _ = fork(lambda _: make("killed"))
    while not (tmp_path / "killed.parts" / "part-000001").exists():
        time.sleep(0.005)
    kill(killed)
    expected = content(make("alone", workers=0).path)
    assert expected == content(tmp_path / "cache") == content(make("killed").path)
    assert len(expected) == 3 + 3


def test_an_image_that_is_left_out_leaves_its_caption_out(make, images: Path, network: str) -> None:
    (images / "a" / "b" / "2.png").write_bytes(b"no picture")
    found = make(skip_damaged=True)
    kept = [text for number, text in enumerate(CAPTIONS) if number != 2]
    source = open_source(run_on(found.path, network))
    assert list(source.captions) == kept and source.labels.tolist() == [0, 0, 1, 1]
    name, _, left = source.fingerprint.partition(" without ")
    assert name == open_pictures(images, captioned=True).fingerprint and left.startswith("1:")


def test_other_captions_are_not_mixed_in(make, images: Path, slow: None, tmp_path: Path) -> None:
    child, _ = fork(lambda _: make())
    while not (tmp_path / "cache.parts" / "part-000000").exists():
        time.sleep(0.005)
    kill(child)
    caption = images / "c" / "4.txt"
    before = caption.read_bytes()
    caption.write_text("another")
    with pytest.raises(ConfigError, match="renamed or given other captions since shards"):
        make()
    caption.write_bytes(before)
    assert make().made < len(TOLD)
    caption.write_text("another")
    with pytest.raises(ConfigError, match="a cache of another data lies here"):
        make()


@pytest.mark.parametrize("kind", ["another caption", "cut off", "gone", "a folder"])
def test_damaged_captions_are_named_and_made_anew(
    kind: str, make, images: Path, network: str
) -> None:
    cache = make().path
    place, expected = cache / TEXTS, content(cache)
    if kind == "another caption":
        place.write_bytes(place.read_bytes().replace(b"red", b"rod"))
    elif kind == "cut off":
        place.write_bytes(place.read_bytes()[:-9])
    else:
        place.unlink()
    if kind == "a folder":
        place.mkdir()
    with pytest.raises(DataError, match=r"captions\.jsonl (is damaged|cannot be read).*prepare"):
        open_source(run_on(cache, network))
    assert open_source(run_on(cache, network, text=False)).captions is None
    if kind == "a folder":
        place.rmdir()
    found = make()
    assert found.made == 0 and content(cache) == expected


# ---- an array of latents


def latents(folder: Path, texts: bytes | None, name: str = TEXTS) -> Path:
    folder.mkdir()
    values = np.random.default_rng(0).normal(size=(5, 1, 8, 8)).astype(np.float32)
    np.save(folder / "latents.npy", values)
    if texts is not None:
        (folder / name).write_bytes(texts)
    return folder


def opened(folder: Path) -> LatentSource:
    return LatentSource(folder, classes=0, flip=False, captioned=True)


ROWS = "".join(json.dumps(text) + "\n" for text in CAPTIONS).encode()
OBJECTS = "".join(json.dumps({"caption": text}) + "\n" for text in CAPTIONS).encode()


def test_captions_lie_beside_latents(tmp_path: Path, make_config) -> None:
    one, two = (opened(latents(tmp_path / n, t)) for n, t in (("one", ROWS), ("two", OBJECTS)))
    assert list(one.captions) == list(two.captions) == CAPTIONS
    assert one.fingerprint == two.fingerprint and "captioned sha256:" in one.fingerprint
    assert (one.labels.tolist(), one.class_names) == ([0] * 5, ("captioned",))
    plain = opened(latents(tmp_path / "txt", b"a\r\n\nc \xe2\x80\xa8 c\nd\ne", "captions.txt"))
    assert plain.captions[:] == ["a", "", "c \u2028 c", "d", "e"]
    assert plain.fingerprint != one.fingerprint
    assert plain.fingerprint.partition(" captioned")[0] == one.fingerprint.partition(" capt")[0]
    words = WordText(tokens=8, words=50, width=16, layers=1, heads=2)
    config = make_config(tmp_path / "one")
    model = replace(config.model, num_classes=0, text=words)
    source = open_source(replace(config, model=model, text=WordEncoder()))
    assert isinstance(source, LatentSource) and list(source.captions) == CAPTIONS


def test_another_field_of_captions_beside_latents(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"caption": "no", "title": text}) + "\n" for text in CAPTIONS)
    folder = latents(tmp_path / "titled", lines.encode())
    asked = {"classes": 0, "flip": False, "captioned": True}
    assert list(LatentSource(folder, **asked, caption_field="title").captions) == CAPTIONS
    with pytest.raises(DataError, match="line 1 has no caption"):
        LatentSource(folder, **asked, caption_field="mine")


def test_prepare_takes_captions_from_another_field(make, network: str, tmp_path: Path) -> None:
    table = csv_of(
        [("file", "caption", "mine"), *((f"{key}.png", "no", text) for key, text in FLAT)]
    )
    folder = written(tmp_path / "fields", [("captions.csv", table), *pictures(FLAT)])
    named = make("named", folder, caption_field="mine")
    usual = make("usual", folder)
    texts = [list(CacheSource(each.path, captioned=True).captions) for each in (named, usual)]
    assert texts[0] != texts[1] and len(texts[0]) == len(texts[1])
    config = run_on(named.path, network)
    field = replace(config, data=replace(config.data, caption_field="mine"))
    with pytest.raises(ConfigError, match="caption_field mine would change nothing: the cache"):
        open_source(field)
    assert list(open_source(config).captions) == texts[0]
    with pytest.raises(DataError, match="caption"):
        make("absent", folder, caption_field="nowhere")


@pytest.mark.parametrize(
    ("texts", "name", "said"),
    [
        (None, TEXTS, "there are 5 latents but no captions"),
        (b'"a"\n' * 4, TEXTS, "4 captions do not fit 5 samples"),
        (b'"a"\n' * 6, TEXTS, "6 captions do not fit 5 samples"),
        (b"a\n" * 6, "captions.txt", "6 captions do not fit 5 samples"),
        (b'"a"\n"b"\nc', TEXTS, "line 3 is no JSON"),
        (b'"a"\n7', TEXTS, "line 2 has the caption 7"),
        (b'"a"\n{"file": "x"}', TEXTS, "line 2 has no caption"),
        (b"a\ncaf\xe9", "captions.txt", "line 2 is no UTF-8"),
        (b"a\n" + b"x" * 10_001, "captions.txt", "line 2 has a caption of 10,001 characters"),
    ],
)
def test_captions_that_do_not_fit_latents(
    texts: bytes | None, name: str, said: str, tmp_path: Path
) -> None:
    folder = latents(tmp_path / "set", texts, name)
    with pytest.raises(DataError, match=said) as caught:
        opened(folder)
    assert str(folder) in str(caught.value)


def test_without_captions_latents_are_what_they_were(tmp_path: Path) -> None:
    folder = latents(tmp_path / "set", ROWS)
    np.save(folder / "labels.npy", np.array([0, 1, 2, 0, 1]))
    source = LatentSource(folder, classes=3, flip=False)
    shutil.copytree(folder, tmp_path / "bare")
    (tmp_path / "bare" / TEXTS).unlink()
    bare = LatentSource(tmp_path / "bare", classes=3, flip=False)
    assert source.captions is None and source.fingerprint == bare.fingerprint
