"""Vectors of captions by their text: what was written is read, and what is damaged is named."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from children import outcome
from diffmoe.config import FeatureText
from diffmoe.data import (
    CAPTIONS,
    CaptionRecord,
    CaptionShard,
    EncodedBy,
    caption_hashes,
    caption_shard_file,
    open_caption_cache,
    write_caption_record,
    write_caption_shard,
)
from diffmoe.errors import ConfigError, DataError, ExitCode

TOKENS, WIDTH = 6, 5
TEXTS = [f"caption number {number}" for number in range(40)] + ["größe", "b\udc80", " a"]
LENGTHS = {text: 1 + number % TOKENS for number, text in enumerate(TEXTS)}


def vectors_of(text: str) -> torch.Tensor:
    seed = int.from_bytes(caption_hashes([text])[0, :6].tobytes(), "little")
    drawn = torch.randn(LENGTHS[text], WIDTH, generator=torch.Generator().manual_seed(seed))
    return drawn.bfloat16()


def written(folder: Path, block: int = 16) -> Path:
    """A cache of all texts, in shards of `block`."""
    folder.mkdir()
    order = sorted(TEXTS, key=lambda text: caption_hashes([text]).tobytes())
    shards = []
    for number, first in enumerate(range(0, len(order), block)):
        some = order[first : first + block]
        place = folder / caption_shard_file(number)
        found = [vectors_of(text) for text in some]
        shards.append(write_caption_shard(place, found, caption_hashes(some), number))
    made = EncodedBy("t5 sha256:0123", "somewhere", "t5", TOKENS, WIDTH, "float32")
    write_caption_record(folder, CaptionRecord(made, "abc", block, tuple(shards)))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path / "cache")


def test_what_is_read_is_what_was_written(folder: Path) -> None:
    cache = open_caption_cache(folder)
    assert (cache.identity, cache.kind) == ("t5 sha256:0123", "t5")
    assert (cache.tokens, cache.width, len(cache)) == (TOKENS, WIDTH, len(TEXTS))
    assert cache.record.count == len(TEXTS) and cache.record.cut == 3
    asked = [*TEXTS[::-1], "", " \n", TEXTS[3], TEXTS[3]]
    found = cache.read(asked)
    assert found.tokens.dtype == torch.bfloat16 and found.mask.dtype == torch.bool
    assert found.tokens.shape == (len(asked), TOKENS, WIDTH)
    for text, vectors, mask in zip(asked, *found, strict=True):
        count = LENGTHS.get(text, 0)
        assert mask.tolist() == [place < count for place in range(TOKENS)]
        assert torch.equal(vectors[:count], vectors_of(text) if count else vectors[:0])
        assert (vectors[count:] == 0).all()
    assert cache.read([]).tokens.shape == (0, TOKENS, WIDTH)


@pytest.mark.parametrize("block", [1, 7, 100])
def test_shards_of_any_size_are_read_alike(block: int, folder: Path, tmp_path: Path) -> None:
    one, other = (open_caption_cache(place) for place in (folder, written(tmp_path / "b", block)))
    assert len(other.record.shards) == -(-len(TEXTS) // block)
    assert torch.equal(one.read(TEXTS).tokens, other.read(TEXTS).tokens)


def test_a_caption_that_is_not_there_is_told(folder: Path) -> None:
    cache = open_caption_cache(folder)
    assert cache.missing(TEXTS) is None and cache.missing(["", "  "]) is None
    for absent in ("caption number 40", "Caption number 1", "caption number 1 ", "zzz", "a"):
        assert cache.missing([TEXTS[0], "", absent, "also not"]) == 2
        with pytest.raises(DataError, match=r"the caption .* is not in the captions' cache"):
            cache.read([TEXTS[0], absent])
    cache.refuse_missing(TEXTS)
    with pytest.raises(ConfigError, match=r"caption 1 is not in .*: 'x.*x...' — .*cache — .*text"):
        cache.refuse_missing([TEXTS[0], "x" * 200])


def test_hashes_that_end_in_zeros_are_found(tmp_path: Path, monkeypatch) -> None:
    """Text in NumPy ends at its first zero from behind; hashes do not."""
    ends = [bytes(32), bytes(31) + b"\1", b"\1" + bytes(31), b"\1" * 31 + b"\0", b"\1" * 32]
    known = {chr(97 + place): np.frombuffer(end, np.uint8) for place, end in enumerate(ends)}
    monkeypatch.setattr(
        "diffmoe.data.cache.captions.caption_hashes",
        lambda texts: np.stack([known[text] for text in texts]),
    )
    vectors = [torch.full((1, WIDTH), float(place)).bfloat16() for place in range(5)]
    shard = write_caption_shard(
        tmp_path / caption_shard_file(0), vectors, np.stack([*known.values()]), 0
    )
    made = EncodedBy("t5", "x", "t5", TOKENS, WIDTH, "float32")
    write_caption_record(tmp_path, CaptionRecord(made, "abc", 5, (shard,)))
    found = open_caption_cache(tmp_path).read([*"abcde"]).tokens
    assert found[:, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_it_goes_to_other_processes(folder: Path) -> None:
    cache = open_caption_cache(folder)
    wanted = cache.read(TEXTS).tokens
    assert torch.equal(pickle.loads(pickle.dumps(cache)).read(TEXTS).tokens, wanted)
    total = outcome(lambda: cache.read(TEXTS).tokens.double().sum().item())
    assert total == wanted.double().sum().item()


def test_only_the_table_is_in_memory(tmp_path: Path) -> None:
    """48 bytes a caption, whatever its vectors take."""
    count, wide = 2000, 512
    texts = sorted(map(str, range(count)), key=lambda text: caption_hashes([text]).tobytes())
    vectors = [torch.ones(4, wide).bfloat16()] * count
    shard = write_caption_shard(tmp_path / caption_shard_file(0), vectors, caption_hashes(texts), 0)
    made = EncodedBy("t5", "x", "t5", 4, wide, "float32")
    write_caption_record(tmp_path, CaptionRecord(made, "abc", count, (shard,)))
    cache = open_caption_cache(tmp_path)
    assert len(pickle.dumps(cache)) < 50 * count + 10_000 < shard.bytes / 50
    assert cache.missing(texts) is None


# ---- what does not fit


def test_a_cache_of_other_sizes_is_refused(folder: Path) -> None:
    open_caption_cache(folder, FeatureText(tokens=TOKENS, width=WIDTH))
    with pytest.raises(ConfigError, match=r"tokens 7 is not .* cache, 6 .*set --model.text.tokens"):
        open_caption_cache(folder, FeatureText(tokens=7, width=WIDTH))
    with pytest.raises(ConfigError, match=r"width 4 is not .* cache, 5 .*set --model.text.width 5"):
        open_caption_cache(folder, FeatureText(tokens=TOKENS, width=4))


def test_a_folder_that_is_none_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"this folder is no cache of captions .*diffmoe prepare"):
        open_caption_cache(tmp_path)


# ---- damage


def place_of(folder: Path, number: int) -> Path:
    return folder / caption_shard_file(number)


def lose(folder: Path) -> None:
    place_of(folder, 1).unlink()


def shorten(folder: Path) -> None:
    os.truncate(place_of(folder, 1), place_of(folder, 1).stat().st_size - 1)


def write_over(folder: Path) -> None:
    """Another shard of the same size: of the same texts, with other vectors."""
    content = bytearray(place_of(folder, 1).read_bytes())
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    first = 8 + length + header["crc32"]["data_offsets"][0]
    content[first] ^= 1
    place_of(folder, 1).write_bytes(content)


def spoil_header(folder: Path) -> None:
    content = place_of(folder, 1).read_bytes()
    place_of(folder, 1).write_bytes(content[:8] + b"[" + content[9:])


def swap(folder: Path) -> None:
    """Of equal size: the vectors of both take as much by chance, or the size is told."""
    one, other = (place_of(folder, number) for number in (0, 1))
    aside = folder / "aside"
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


@pytest.mark.parametrize("damage", [lose, shorten, write_over, spoil_header])
def test_a_damaged_shard_is_named_when_the_cache_is_opened(
    damage: Callable[[Path], None], folder: Path
) -> None:
    damage(folder)
    with pytest.raises(DataError, match=r"captions-000001\.safetensors is damaged \(") as caught:
        open_caption_cache(folder)
    told = str(caught.value)
    assert caught.value.exit_code == ExitCode.BAD_DATA and "\n" not in told
    assert str(place_of(folder, 1)) in told and "diffmoe prepare" in told


def test_exchanged_shards_are_refused(folder: Path) -> None:
    swap(folder)
    with pytest.raises(DataError, match=r"captions-00000[01]\.safetensors is damaged"):
        open_caption_cache(folder)


def test_every_flipped_bit_of_vectors_is_found(folder: Path) -> None:
    """One bit of each caption's vectors in turn; all others are read as they were."""
    cache = open_caption_cache(folder)
    wanted = {text: cache.read([text]).tokens for text in TEXTS}
    generator = np.random.default_rng(0)
    for text in TEXTS[::4]:
        place = int(cache._find([text])[0])
        file = place_of(folder, place // 16)
        content = bytearray(file.read_bytes())
        bit = generator.integers(8 * 2 * WIDTH * LENGTHS[text])
        at = int(cache._firsts[place]) + int(bit) // 8
        content[at] ^= 1 << int(bit) % 8
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"is damaged \(the vectors of .* another checksum"):
            cache.read([text])
        others = [other for other in TEXTS if other != text]
        assert torch.equal(cache.read(others).tokens, torch.cat([wanted[one] for one in others]))
        content[at] ^= 1 << int(bit) % 8
        file.write_bytes(content)


def test_a_shard_that_is_cut_while_it_is_read_is_an_error_and_no_crash(folder: Path) -> None:
    cache = open_caption_cache(folder)
    cache.read(TEXTS)
    for number in range(3):
        os.truncate(place_of(folder, number), 100)
    with pytest.raises(DataError, match="is damaged"):
        cache.read(TEXTS)


@pytest.mark.parametrize(
    ("old", "new"),
    [('"tokens": 6', '"tokens": 7'), ("t5 sha256:0123", "t5 sha256:0124"), ("bfloat16", "float32")],
)
def test_a_changed_record_is_refused(old: str, new: str, folder: Path) -> None:
    text = (folder / CAPTIONS).read_text()
    (folder / CAPTIONS).write_text(text.replace(old, new, 1))
    assert text.count(old) >= 1
    with pytest.raises(DataError, match=r"captions\.json is damaged"):
        open_caption_cache(folder)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("", r"cannot be read \(it is no JSON\)"),
        ("[" * 100_000, "cannot be read"),
        ("[]", "is not that of a cache of captions"),
        ('{"format": "diffmoe latent cache"}', "is not that of a cache of captions"),
        ('{"format": "diffmoe caption cache", "version": 9}', "is of version 9, .* reads 1"),
        ('{"format": "diffmoe caption cache", "version": 1}', "is damaged"),
    ],
)
def test_a_record_that_is_none_is_refused(content: str, what: str, folder: Path) -> None:
    (folder / CAPTIONS).write_text(content)
    with pytest.raises(DataError, match=what) as caught:
        open_caption_cache(folder)
    assert "\n" not in str(caught.value)


def test_captions_out_of_order_are_refused(tmp_path: Path) -> None:
    order = sorted(TEXTS, key=lambda text: caption_hashes([text]).tobytes(), reverse=True)
    vectors = [vectors_of(text) for text in order]
    place = tmp_path / caption_shard_file(0)
    shard: CaptionShard = write_caption_shard(place, vectors, caption_hashes(order), 0)
    made = EncodedBy("t5", "x", "t5", TOKENS, WIDTH, "float32")
    write_caption_record(tmp_path, CaptionRecord(made, "abc", 100, (shard,)))
    with pytest.raises(DataError, match="not in order"):
        open_caption_cache(tmp_path)
