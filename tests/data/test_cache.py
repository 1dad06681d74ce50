"""A latent cache as a source: what it gives, what it refuses, and each kind of damage."""

import json
import os
import pickle
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from data.posteriors import CODEC, IDENTITY, LABELS, MOMENTS, write_cache
from diffmoe.config import PixelCodec, RunConfig
from diffmoe.data import (
    CACHE,
    CacheSource,
    Skipped,
    open_source,
    read_record,
    shard_file,
    source_codec,
    stream,
    write_labels,
    write_record,
    write_shard,
)
from diffmoe.errors import ConfigError, DataError, ExitCode
from diffmoe.randomness import normals, permutation, uniforms

# A machine with one core is warned that two workers are many.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return write_cache(tmp_path / "cache")


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def config_of(make_config: Callable[..., RunConfig]) -> Callable[..., RunConfig]:
    """Builds a run that fits the cache in a folder."""

    def build(folder: Path, *, codec: Any = CODEC, flip: bool = False, **changes: Any) -> RunConfig:
        own = {"channels": 5, "out_channels": 5, "input_size": 4, "num_classes": 3}
        return replace(make_config(folder, flip=flip, **(own | changes)), codec=codec)

    return build


# ---- what it gives


def test_a_cache_gives_posteriors_and_mirror_posteriors(cache: Path, config_of) -> None:
    source = open_source(config_of(cache, flip=True))
    assert isinstance(source, CacheSource) and not source.encoded
    assert (len(source), source.class_names) == (7, ("bird", "cat", "dog"))
    assert source.labels.tolist() == LABELS.tolist()
    for index in range(7):
        for flip in (False, True):
            assert torch.equal(
                source.load(index, flip), torch.from_numpy(MOMENTS[index, int(flip)])
            )


def test_half_precision_is_read_as_float32(tmp_path: Path, config_of) -> None:
    source = open_source(config_of(write_cache(tmp_path / "cache", dtype="float16")))
    expected = torch.from_numpy(MOMENTS[5, 0].astype(np.float16).astype(np.float32))
    assert source.load(5, False).dtype == torch.float32
    assert torch.equal(source.load(5, False), expected)
    sizes = [path.stat().st_size for path in (tmp_path / "cache").glob("shard-000000*")]
    assert sizes[0] < 0.6 * MOMENTS[:4].nbytes


def test_a_fingerprint_is_that_of_the_images_and_what_differs(tmp_path: Path) -> None:
    left = (Skipped(7, "damaged"),)
    names = {
        "same": write_cache(tmp_path / "a"),
        "half": write_cache(tmp_path / "b", dtype="float16"),
        "fewer": write_cache(tmp_path / "c", skipped=left),
        "others": write_cache(tmp_path / "d", skipped=(Skipped(6, "damaged"),)),
    }
    found = {name: CacheSource(folder).fingerprint for name, folder in names.items()}
    assert found["same"] == "7 images sha256:00"
    assert found["half"] == "7 images sha256:00 as float16 posteriors"
    assert found["fewer"].startswith("7 images sha256:00 without 1:")
    assert len(set(found.values())) == 4


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("micro", [4, 32])
def test_the_stream_draws_latents_as_if_from_images(
    micro: int, workers: int, cache: Path, config_of
) -> None:
    config = config_of(cache, flip=True, micro_batch=micro, workers=workers)
    source = open_source(config)
    codec = source_codec(config, source, "cpu")
    batches = stream(config, source, codec, first=5 * micro, device="cpu")
    batch = next(batches)
    for row in range(micro):
        n = 5 * micro + row
        index = int(permutation(0, f"order/{n // 7}", 7)[n % 7])
        mean, deviation = torch.from_numpy(MOMENTS[index, int(uniforms(0, "flip", n, 1) < 0.5)])
        noise = normals(0, "encode", n, 1, (5, 4, 4))[0]
        assert torch.equal(batch.x[row], (mean + deviation * noise - 0.25) * 0.5)
        assert int(batch.label[row]) == LABELS[index]


def test_a_source_survives_pickling_and_leaves_its_files_behind(cache: Path) -> None:
    source = CacheSource(cache)
    before = source.load(6, True)
    twin = pickle.loads(pickle.dumps(source))
    assert torch.equal(twin.load(6, True), before)


def test_more_shards_than_files_may_be_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import diffmoe.data.cache.open_files as open_files

    monkeypatch.setattr(open_files, "_MOST_OPEN", 1)
    source = CacheSource(write_cache(tmp_path / "cache"))
    before = len(list(Path("/dev/fd").iterdir()))
    for index in (0, 6, 1, 5, 2, 4):
        assert torch.equal(source.load(index, False), torch.from_numpy(MOMENTS[index, 0]))
    assert len(list(Path("/dev/fd").iterdir())) <= before + 1


def test_a_cache_of_a_million_images_opens_quickly(tmp_path: Path) -> None:
    folder = write_cache(tmp_path / "cache")
    moments = np.zeros((1024, 2, *MOMENTS.shape[2:]), np.float32)
    shard = write_shard(folder / "one", moments, np.zeros(1024), np.arange(1024))
    names = [shard_file(number) for number in range(1251)]
    for name in names:
        (folder / name).unlink(missing_ok=True)
        os.link(folder / "one", folder / name)
    many = tuple(replace(shard, file=name) for name in names)
    labels = write_labels(folder, np.arange(1251 * 1024) % 3)
    write_record(folder, replace(read_record(folder), shards=many, labels=labels))
    began = time.perf_counter()
    assert len(CacheSource(folder)) == 1251 * 1024
    assert time.perf_counter() - began < 3


# ---- runs it does not fit

UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "scale": ({"codec": replace(CODEC, scale=0.18215)}, r"codec\.scale 0.18215 is not .*, 0\.5"),
    "shift": (
        {"codec": replace(CODEC, shift=0.0)},
        r"codec\.shift 0\.0 is not .* 0\.25 — .*--codec",
    ),
    "factor": ({"codec": replace(CODEC, factor=8)}, r"codec\.factor 8 is not that of the cache, 2"),
    "pixels": ({"codec": PixelCodec()}, "codec pixels takes no latent cache"),
    "side": ({"input_size": 8}, r"model\.input_size 8 is not .* 4 .* set --model\.input-size 4"),
    "channels": ({"channels": 4, "out_channels": 4}, r"model\.channels 4 is not .* cache, 5"),
    "classes": ({"num_classes": 2}, r"model\.num_classes 2 is less than the 3 classes"),
}


@pytest.mark.parametrize(("changes", "message"), UNFIT.values(), ids=UNFIT)
def test_a_run_that_does_not_fit_is_refused(
    changes: dict[str, Any], message: str, cache: Path, config_of
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        open_source(config_of(cache, **changes))
    assert "\n" not in str(caught.value) and str(cache) in str(caught.value)


def test_flipping_needs_mirror_images(tmp_path: Path, config_of) -> None:
    folder = write_cache(tmp_path / "cache", flip=False)
    assert open_source(config_of(folder)).load(3, False).shape == (2, 5, 4, 4)
    with pytest.raises(ConfigError, match=r"data\.flip is on .* holds no mirror .*--data\.no-flip"):
        open_source(config_of(folder, flip=True))


def test_an_autoencoder_that_is_not_at_hand_is_told(cache: Path, config_of, caplog) -> None:
    config = config_of(cache)
    with caplog.at_level("INFO", logger="diffmoe"):
        codec = source_codec(config, open_source(config), "cpu")
    assert codec is not None and codec.identity == IDENTITY
    assert "codec.path some-one/not-at-hand is not at hand" in caplog.text


def test_an_autoencoder_at_hand_that_is_another_is_refused(
    cache: Path, config_of, tmp_path: Path
) -> None:
    from autoencoders import autoencoder

    autoencoder().save_pretrained(tmp_path / "other")
    config = config_of(cache, codec=replace(CODEC, path=str(tmp_path / "other")))
    with pytest.raises(ConfigError, match=r"is not the autoencoder of the cache: .* some/place"):
        source_codec(config, open_source(config), "cpu")


# ---- damage


def damaged(folder: Path, message: str, load: Callable[[CacheSource], object]) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load(CacheSource(folder))
    assert caught.value.exit_code == ExitCode.BAD_DATA and "\n" not in str(caught.value)


def flip_a_bit(place: Path, what: str) -> None:
    content = bytearray(place.read_bytes())
    target = load_file(place)[what][1].tobytes()
    content[bytes(content).index(target)] ^= 4
    place.write_bytes(content)


def test_a_bit_that_flipped_is_found_when_its_image_is_read(cache: Path) -> None:
    flip_a_bit(cache / shard_file(2), "moments")
    source = CacheSource(cache)
    source.load(4, False)
    message = r"image 5 of the cache, in shard-000002.* is damaged .*`diffmoe prepare`"
    damaged(cache, message, lambda source: source.load(5, False))
    source.load(6, False)


@pytest.mark.parametrize("what", ["crc32", "index", "labels"])
def test_a_bit_that_flipped_beside_the_posteriors_is_found_at_once(what: str, cache: Path) -> None:
    flip_a_bit(cache / shard_file(2), what)
    damaged(cache, r"^shard-000002\.safetensors is damaged, or .* checksums .*`diffmoe pre", len)


def test_a_shard_of_another_cache_is_found_at_once(cache: Path, tmp_path: Path) -> None:
    """Its own checksums fit it; only the record of the cache can tell."""
    other = tmp_path / "other"
    other.mkdir()
    written = write_shard(other / shard_file(0), MOMENTS[:4] + 1, LABELS[:4], np.arange(4))
    assert written.bytes == (cache / shard_file(0)).stat().st_size
    (other / shard_file(0)).replace(cache / shard_file(0))
    damaged(cache, r"^shard-000000\.safetensors is .* another shard lies in its place: .* — ", len)


def test_shards_that_were_exchanged_are_found_at_once(tmp_path: Path) -> None:
    folder = write_cache(tmp_path / "cache", sizes=(3, 1, 3))
    (folder / shard_file(0)).rename(tmp_path / "aside")
    (folder / shard_file(2)).rename(folder / shard_file(0))
    (tmp_path / "aside").rename(folder / shard_file(2))
    damaged(folder, r"^shard-000000\.safetensors is .* another shard lies in its place: .* — ", len)


@pytest.mark.parametrize("header", [b"\xff" * 8, b"\0" * 8, b"\x10" + b"\0" * 7])
def test_a_damaged_header_is_named(header: bytes, cache: Path) -> None:
    place = cache / shard_file(0)
    place.write_bytes(header + place.read_bytes()[8:])
    damaged(cache, r"shard-000000\S+ is damaged \(its header", len)


def test_another_shard_in_the_place_of_one(tmp_path: Path, cache: Path) -> None:
    place = cache / shard_file(0)
    other = np.zeros((4, 2, 2, 5, 2, 8), np.float32)  # of the same size
    write_shard(place, other, LABELS[:4], np.arange(4))
    damaged(cache, r"is damaged \(its header", len)


def test_a_truncated_shard_is_found_at_once(cache: Path) -> None:
    os.truncate(cache / shard_file(2), 1000)
    damaged(cache, r"shard-000002\.safetensors has 1000 bytes, not \d+ — .*prepare", len)


def test_a_shard_cut_short_while_it_is_read_is_an_error(cache: Path) -> None:
    def cut(source: CacheSource) -> None:
        source.load(4, False)
        os.truncate(cache / shard_file(2), 1500)
        source.load(6, False)

    damaged(cache, r"image 6 of the cache, in shard-000002", cut)


def test_a_missing_shard_is_found_at_once_and_later(cache: Path) -> None:
    def lose(source: CacheSource) -> None:
        (cache / shard_file(0)).unlink()
        source.load(0, False)

    damaged(cache, r"shard-000000\S+ is damaged \(No such file", lose)
    damaged(cache, r"shard-000000\.safetensors is missing", len)


def test_labels_are_checked(cache: Path) -> None:
    place = cache / "labels.npy"
    content = place.read_bytes()
    place.write_bytes(content[:-8] + b"\1" + content[-7:])
    damaged(cache, r"labels\.npy is damaged", len)
    place.unlink()
    damaged(cache, r"labels\.npy cannot be read \(No such file", len)


def with_version(content: dict[str, Any]) -> str:
    return json.dumps(content | {"version": 7})


RECORDS: dict[str, tuple[Callable[[dict[str, Any]], str], str]] = {
    "no json": (lambda content: json.dumps(content)[:-9], "cannot be read .it is no JSON"),
    "a list": (lambda content: "[]", "is not that of a latent cache"),
    "foreign": (lambda content: '{"images": []}', "is not that of a latent cache"),
    "changed": (lambda content: json.dumps(content | {"side": 16}), "is damaged"),
    "version": (with_version, r"is of version 7, this diffmoe reads 2"),
    "not text": (lambda content: "\udcff", "cannot be read"),
}


@pytest.mark.parametrize(("change", "message"), RECORDS.values(), ids=RECORDS)
def test_damaged_facts_are_named(change, message: str, cache: Path, config_of) -> None:
    place = cache / CACHE
    text = change(json.loads(place.read_text()))
    place.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=rf"cache\.json {message}.* — "):
        open_source(config_of(cache))


def test_facts_that_do_not_fit_together_are_damage(cache: Path) -> None:
    record = read_record(cache)
    write_record(cache, replace(record, skipped=None))  # type: ignore[arg-type]
    damaged(cache, "does not list what a cache has", len)


def test_a_cache_that_is_not_finished_says_so(tmp_path: Path, config_of) -> None:
    (tmp_path / "cache.parts" / "part-000000").mkdir(parents=True)
    (tmp_path / "cache.parts" / "work.json").write_text("{}")
    for name in ("cache", "cache.parts"):
        with pytest.raises(DataError, match=r"not finished .*cache\.parts — run the `diffmoe prep"):
            open_source(config_of(tmp_path / name))
