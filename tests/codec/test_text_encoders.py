"""Vectors of captions from tiny T5 and CLIP networks, and encoders that are refused."""

import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import pretrained
from diffmoe.codec import (
    OutsideEncoder,
    TextEncoder,
    Words,
    build_text_encoder,
    find_text_encoder,
    find_text_identity,
    load_model,
    open_text_encoder,
    read_prompts,
)
from diffmoe.codec.text import outside
from diffmoe.config import (
    ClipEncoder,
    FeatureText,
    NoEncoder,
    NoText,
    T5Encoder,
    WordEncoder,
    WordText,
)
from diffmoe.errors import ConfigError, StorageError

TOKENS = 9
LONG = "a b c d e f g h i j"
CAPTIONS = ["ab c", "", "j", "a b c d", LONG, " \n", "abc jihg", "?", "b\udc80c", "j"]


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained.save_t5(tmp_path_factory.mktemp("networks") / "t5")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained.save_clip(tmp_path_factory.mktemp("networks") / "clip")


@pytest.fixture(scope="module")
def t5(t5_folder: Path) -> OutsideEncoder:
    return open_text_encoder(str(t5_folder), TOKENS, "cpu")


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> OutsideEncoder:
    return open_text_encoder(str(clip_folder), TOKENS, "cpu")


@pytest.fixture(params=["t5", "clip"])
def encoder(request: pytest.FixtureRequest) -> OutsideEncoder:
    return request.getfixturevalue(request.param)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hub cache that is empty, and no network."""

    def refuse(*_: Any) -> None:
        raise AssertionError("the network was reached for")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def copied(t5_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(t5_folder, tmp_path / "t5")


def t5_numbers(caption: str) -> list[int]:
    """By the tiny vocabulary: the letter that begins a word, others, the end."""
    found = []
    for word in caption.split():
        first, *others = (pretrained.LETTERS.index(letter) for letter in word)
        found += [4 + first, *(14 + other for other in others)]
    return [*found[: TOKENS - 1], 1]


def clip_numbers(caption: str) -> list[int]:
    words = pretrained.vocabulary()
    letters = [words[x] for word in caption.split() for x in (*word[:-1], word[-1] + "</w>")]
    return [0, *letters[: TOKENS - 2], 1]


# ---- what they say


def test_vectors_are_those_of_the_network_alone_without_padding(
    t5_folder: Path, clip_folder: Path, t5: OutsideEncoder, clip: OutsideEncoder
) -> None:
    from transformers import CLIPTextModel, T5EncoderModel

    both = (
        (t5, T5EncoderModel.from_pretrained(t5_folder), t5_numbers),
        (clip, CLIPTextModel.from_pretrained(clip_folder), clip_numbers),
    )
    captions = ["ab c", "j", "a b c d", LONG]
    for encoder, model, numbers in both:
        found = encoder.encode(captions)
        assert found.tokens.dtype == torch.bfloat16 and encoder.width == 16
        for vectors, mask, caption in zip(*found, captions, strict=True):
            with torch.no_grad():
                tokens = torch.tensor([numbers(caption)])
                wanted = model.double().eval()(input_ids=tokens).last_hidden_state[0]
            assert wanted.std() > 0.1
            assert mask.tolist() == [place < len(wanted) for place in range(TOKENS)]
            # half a unit in the last of bfloat16's 8 bits
            torch.testing.assert_close(vectors[mask].double(), wanted, rtol=2**-8, atol=1e-3)
            assert (vectors[~mask] == 0).all()


def test_a_caption_has_the_same_bits_alone_in_any_company_and_order(
    encoder: OutsideEncoder,
) -> None:
    whole = encoder.encode(CAPTIONS)
    order = [4, 9, 0, 7, 3, 1, 8, 2, 6, 5]
    turned = encoder.encode([CAPTIONS[place] for place in order])
    assert torch.equal(turned.tokens, whole.tokens[order])
    assert torch.equal(turned.mask, whole.mask[order])
    for place, caption in enumerate(CAPTIONS):
        alone = encoder.encode([caption])
        assert torch.equal(alone.tokens[0], whole.tokens[place])
        pair = encoder.encode([LONG, caption])
        assert torch.equal(pair.tokens[1], whole.tokens[place])


def test_blanks_say_nothing_and_other_captions_something(encoder: OutsideEncoder) -> None:
    found = encoder.encode(CAPTIONS)
    said = [bool(caption.strip()) for caption in CAPTIONS]
    assert found.mask.any(dim=1).tolist() == said
    assert (found.tokens[~found.mask] == 0).all() and found.tokens.isfinite().all()
    empty = encoder.encode([])
    assert empty.tokens.shape == (0, TOKENS, 16) and empty.mask.shape == (0, TOKENS)


def test_what_is_cut_is_what_changes_nothing(encoder: OutsideEncoder) -> None:
    end = encoder.cut(LONG)
    assert end and LONG.endswith(end)
    assert all(encoder.cut(caption) == "" for caption in CAPTIONS if caption != LONG)
    kept = LONG.removesuffix(end)
    assert encoder.cut(kept) == ""
    assert torch.equal(encoder.encode([LONG]).tokens, encoder.encode([kept]).tokens)
    assert encoder.cut("a" * 200_000).startswith("a" * 100_000)


def test_blocks_on_an_accelerator_are_of_many_only_if_each_place_gives_the_same_bits(
    t5: OutsideEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Elsewhere(OutsideEncoder):
        """On an accelerator in name; its numbers may depend on the place in a block."""

        drift = 0.0

        def _of_block(self, given: torch.Tensor) -> torch.Tensor:
            sizes.append(len(given))
            found = torch.cat([t5._of_block(row[None]) for row in given])
            return found + self.drift * torch.arange(len(given))[:, None, None].bfloat16()

    model = type("Model", (), {"config": t5._model.config, "device": torch.device("cuda")})()
    wanted = t5.encode(CAPTIONS).tokens
    for drift, rows in ((0.0, 32), (0.5, 1)):
        sizes: list[int] = []
        encoder = Elsewhere("t5", t5.folder, model, t5._pieces, TOKENS)
        encoder.drift = drift
        assert encoder._rows == rows
        monkeypatch.setattr(model, "device", torch.device("cpu"), raising=False)
        assert torch.equal(encoder.encode(CAPTIONS).tokens, wanted)
        assert sizes == [32, *[rows] * (1 if rows == 32 else len(CAPTIONS))]
        monkeypatch.setattr(model, "device", torch.device("cuda"), raising=False)


def test_a_network_in_bfloat16_says_nearly_the_same(t5: OutsideEncoder, t5_folder: Path) -> None:
    """As it runs on an accelerator."""
    model = load_model(t5_folder, outside.ENCODERS["t5"], "cpu", dtype=torch.bfloat16)
    half = OutsideEncoder("t5", t5_folder, model, t5._pieces, TOKENS)
    assert (t5.precision, half.precision) == ("float32", "bfloat16")
    assert half.identity == t5.identity
    found, wanted = half.encode(CAPTIONS), t5.encode(CAPTIONS)
    assert found.tokens.dtype == torch.bfloat16 and torch.equal(found.mask, wanted.mask)
    error = (found.tokens[found.mask].double() - wanted.tokens[found.mask].double()).abs()
    assert 0 < error.mean() < 0.03  # of numbers of size 1


# ---- who they are


def test_an_identity_names_weights_tokenizer_and_tokens(t5: OutsideEncoder, copied: Path) -> None:
    encoder: TextEncoder = t5
    assert isinstance(t5, TextEncoder) and encoder.tokens == TOKENS
    assert encoder.identity.startswith("t5 sha256:") and encoder.identity.endswith("tokens 9")
    named, reads = T5Encoder(path=str(copied)), FeatureText(tokens=TOKENS, width=16)
    assert find_text_identity(named, reads) == encoder.identity
    assert find_text_identity(named, FeatureText(tokens=8, width=16)) != encoder.identity
    for file in ("model.safetensors", "tokenizer.json"):
        content = (copied / file).read_bytes()
        (copied / file).write_bytes(content.replace(b"a", b"b", 1))
        assert find_text_identity(named, reads) != encoder.identity, file
        (copied / file).write_bytes(content)
    assert find_text_identity(named, reads) == encoder.identity


def test_weights_in_several_files_are_read_and_named(t5: OutsideEncoder, copied: Path) -> None:
    pretrained.in_shards(copied)
    encoder = open_text_encoder(str(copied), TOKENS, "cpu")
    assert torch.equal(encoder.encode(CAPTIONS).tokens, t5.encode(CAPTIONS).tokens)
    before = encoder.identity
    last = copied / "model-00002-of-00002.safetensors"
    last.write_bytes(last.read_bytes()[:-1] + b"\1")
    assert open_text_encoder(str(copied), TOKENS, "cpu").identity != before
    last.unlink()
    with pytest.raises(ConfigError, match=r"T5 network .* lacks model-00002-of-00002\.safe"):
        open_text_encoder(str(copied), TOKENS, "cpu")
    (copied / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../b"}}')
    with pytest.raises(StorageError, match=r"model.safetensors.index.json cannot be read"):
        open_text_encoder(str(copied), TOKENS, "cpu")


def test_a_text_tower_by_itself_is_that_of_the_whole_clip(
    clip_folder: Path, clip: OutsideEncoder, tmp_path: Path
) -> None:
    from transformers import CLIPTextModel

    CLIPTextModel.from_pretrained(clip_folder).save_pretrained(tmp_path / "tower")
    shutil.copy(clip_folder / "tokenizer.json", tmp_path / "tower")
    tower = open_text_encoder(str(tmp_path / "tower"), TOKENS, "cpu")
    assert tower.kind == "clip" and tower.identity != clip.identity
    assert torch.equal(tower.encode(CAPTIONS).tokens, clip.encode(CAPTIONS).tokens)


def test_older_tokenizer_files_of_clip_are_read_too(
    clip_folder: Path, clip: OutsideEncoder, tmp_path: Path
) -> None:
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(pretrained.vocabulary()))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    older = open_text_encoder(str(folder), TOKENS, "cpu")
    assert torch.equal(older.encode(CAPTIONS).tokens, clip.encode(CAPTIONS).tokens)
    assert older.cut(LONG) == clip.cut(LONG)


def test_pieces_of_sentencepiece_are_read_and_cut(copied: Path, tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    text = tmp_path / "text.txt"
    text.write_text(
        "\n".join(f"{a}{b} {c}" for a in "abcde" for b in "fghij" for c in "abcdefghij")
    )
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(copied / "spiece"),
        vocab_size=25,
        hard_vocab_limit=False,
        minloglevel=2,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
    )
    (copied / "tokenizer.json").unlink()
    encoder = open_text_encoder(str(copied), TOKENS, "cpu")
    found = encoder.encode(CAPTIONS)
    assert found.mask.any(dim=1).tolist() == [bool(one.strip()) for one in CAPTIONS]
    numbers = encoder._pieces.read("af b")[0]
    own = sentencepiece.SentencePieceProcessor(model_file=str(copied / "spiece.model"))
    assert numbers == [*own.encode("af b"), 1]
    long = "af ag c dg e " * 5
    end = encoder.cut(long)
    assert end and long.rstrip().endswith(end)
    kept = long.rstrip().removesuffix(end)
    assert encoder.cut(kept) == "" and len(encoder._pieces.read(kept)[0]) == TOKENS
    assert encoder.identity.split(" tokenizer ")[1] != ""


# ---- what is refused


def test_a_missing_encoder_is_one_error_that_says_all(
    offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {
        "google/t5-v1_1-xxl": ("T5", "Apache-2.0", "t5-v1_1-xxl", "config.json"),
        "openai/clip-vit-base-patch32": ("CLIP", "MIT", "openai/clip", "tokenizer.json"),
    }
    for place, words in named.items():
        with pytest.raises(ConfigError) as caught:
            open_text_encoder(place, 20, "cpu")
        told = str(caught.value)
        for part in (*words, place, "hub", "hf download", "model.safetensors"):
            assert part in told, part
        assert "\n" not in told
    reads = FeatureText(tokens=20, width=16)
    assert find_text_encoder(T5Encoder(path="google/t5-v1_1-xxl"), reads) is None
    assert find_text_identity(T5Encoder(path="google/t5-v1_1-xxl"), reads) is None
    assert find_text_encoder(ClipEncoder(path="nowhere"), reads) is None


def test_a_pickle_is_named_and_not_read(copied: Path) -> None:
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"lacks model.safetensors .*pytorch_model.bin is a pick"):
        open_text_encoder(str(copied), TOKENS, "cpu")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_damaged_files_are_refused(file: str, copied: Path) -> None:
    (copied / file).write_bytes((copied / file).read_bytes()[:-50])
    with pytest.raises(StorageError, match="the T5 network cannot be loaded") as caught:
        open_text_encoder(str(copied), TOKENS, "cpu")
    assert "\n" not in str(caught.value) and str(copied) in str(caught.value)


def test_an_encoder_that_does_not_fit_the_model_is_refused(
    t5_folder: Path, clip_folder: Path
) -> None:
    wide = FeatureText(tokens=TOKENS, width=4096)
    with pytest.raises(ConfigError, match=r"width 4096 .* 16 .*set --model.text.width 16"):
        build_text_encoder(T5Encoder(path=str(t5_folder)), wide, "cpu")
    long = FeatureText(tokens=13, width=16)
    with pytest.raises(ConfigError, match=r"tokens 13 is more than the 12 .* --model.text.tokens"):
        build_text_encoder(ClipEncoder(path=str(clip_folder)), long, "cpu")
    fit = FeatureText(tokens=TOKENS, width=16)
    with pytest.raises(ConfigError, match="of the kind clip, not t5"):
        build_text_encoder(T5Encoder(path=str(clip_folder)), fit, "cpu")
    with pytest.raises(ConfigError, match="of the kind t5, not clip or clip_text_model"):
        build_text_encoder(ClipEncoder(path=str(t5_folder)), fit, "cpu")
    with pytest.raises(ConfigError, match="tokens 1 leaves no room for words: 1 are special"):
        open_text_encoder(str(t5_folder), 1, "cpu")


def test_without_its_package_a_tokenizer_is_refused(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copied / "tokenizer.json").unlink()
    (copied / "spiece.model").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ConfigError, match=r"spiece.model needs .* pip install sentencepiece"):
        open_text_encoder(str(copied), TOKENS, "cpu")


# ---- by a config


def test_a_config_names_its_encoder(t5_folder: Path) -> None:
    reads = FeatureText(tokens=TOKENS, width=16)
    found = build_text_encoder(T5Encoder(path=str(t5_folder)), reads, "cpu")
    assert isinstance(found, OutsideEncoder) and found.kind == "t5"
    assert isinstance(find_text_encoder(T5Encoder(path=str(t5_folder)), reads), OutsideEncoder)
    assert build_text_encoder(NoEncoder(), NoText(), "cpu") is None
    table = WordText(tokens=4, words=4, width=8, layers=1, heads=1)
    words = build_text_encoder(WordEncoder(), table, "cpu", ["red", "blue"])
    assert isinstance(words, Words) and words.words == ("red", "blue") and words.tokens == 4
    assert find_text_encoder(WordEncoder(), table) is None
    with pytest.raises(ConfigError, match=r"words that the model knows .* words\.txt"):
        build_text_encoder(WordEncoder(), table, "cpu")
    with pytest.raises(ConfigError, match=r"3 words need 5 rows, and model.text.words is 4"):
        build_text_encoder(WordEncoder(), table, "cpu", ["red", "blue", "a"])


def test_loading_leaves_no_trace_in_the_random_state(t5_folder: Path, clip_folder: Path) -> None:
    before = torch.random.get_rng_state()
    for folder in (t5_folder, clip_folder):
        open_text_encoder(str(folder), TOKENS, "cpu").encode(["ab"])
    assert torch.equal(torch.random.get_rng_state(), before)


# ---- prompts


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    messages = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return messages


def test_what_is_cut_or_empty_is_told(caplog: pytest.LogCaptureFixture) -> None:
    words = Words(["a", "dog"], tokens=2)
    with caplog.at_level(logging.WARNING):
        found = read_prompts(words, ["a dog", "a dog runs", " "], "cut")
        assert torch.equal(found.tokens, words.encode(["a dog", "a dog runs", " "]).tokens)
        assert told(caplog) == [
            "caption 1 is longer than the 2 tokens that the model reads: 'runs' is cut",
            "caption 2 is empty: it is drawn without condition",
        ]
        read_prompts(words, ["a a " + "b" * 100] * 6, "cut", what="negative")
        first, *_, last = told(caplog)
        assert first.startswith("negative 0 is") and "b...' is cut" in first and len(first) < 150
        assert last == "the same of 3 more negatives"
        read_prompts(words, ["a dog"], "refuse")
        assert not told(caplog)


def test_too_long_prompts_are_refused_where_that_is_asked_for() -> None:
    words = Words(["a", "dog"], tokens=2)
    with pytest.raises(ConfigError, match=r"caption 1 is longer than the 2 tokens .*'runs'") as one:
        read_prompts(words, ["a dog", "a dog runs"], "refuse")
    assert "--text.too-long cut" in str(one.value) and "\n" not in str(one.value)


def test_the_example_of_each_kind_names_its_licence() -> None:
    licences = {kind: wanted.licence for kind, wanted in outside.ENCODERS.items()}
    assert licences == {"t5": "Apache-2.0", "clip": "MIT"}
