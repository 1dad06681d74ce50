"""DINOv2 and CLIP of tiny saved networks against slow computations, and files that are refused."""

import hashlib
import json
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import pretrained
from diffmoe.errors import ConfigError, StorageError
from diffmoe.evaluation.networks import (
    BLOCK,
    ClipNetwork,
    DinoNetwork,
    FeatureNetwork,
    clip_scores,
    load_clip,
    load_dino,
)
from inception_reading import images

IMAGES = images(BLOCK + 1, 40, 56)
CAPTIONS = ["ab c", "j", "a b c d e f g h i j", "a b c d e f g h i j a"]  # the last is cut


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained.save_dino(tmp_path_factory.mktemp("networks") / "dino")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained.save_clip(tmp_path_factory.mktemp("networks") / "clip")


@pytest.fixture(scope="module")
def dino(dino_folder: Path) -> DinoNetwork:
    return load_dino(dino_folder)


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> ClipNetwork:
    return load_clip(clip_folder)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without a network whose hub cache is empty."""

    def refuse(*_: Any) -> None:
        raise AssertionError("the network was reached for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def resized(image: Tensor, width: int, height: int) -> np.ndarray:
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))


def prepared(image: np.ndarray, mean: list[float], deviation: list[float]) -> Tensor:
    values = (image / 255 - np.array(mean)) / np.array(deviation)
    return torch.from_numpy(values.transpose(2, 0, 1)[None])


# --- DINOv2 -------------------------------------------------------------------------------------


def test_dino_is_the_class_token_of_the_resized_image(dino_folder: Path, dino: DinoNetwork) -> None:
    from transformers import Dinov2Model

    model = Dinov2Model.from_pretrained(dino_folder).double().eval()
    found = dino.features(IMAGES[:2]).pooled
    assert found.dtype == torch.float32 and found.std() > 0.1
    for row, image in zip(found, IMAGES, strict=False):
        pixels = resized(image, 224, 224)
        x = prepared(pixels, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        with torch.no_grad():
            states = model(x, output_hidden_states=True).hidden_states[-1]
        wanted = model.layernorm(states)[0, 0]
        torch.testing.assert_close(row.double(), wanted, rtol=1e-4, atol=1e-5)


def test_an_image_has_its_features_whatever_comes_with_it(dino: DinoNetwork) -> None:
    whole = dino.features(IMAGES).pooled
    assert torch.equal(dino.features(IMAGES[:1]).pooled, whole[:1])
    assert torch.equal(dino.features(IMAGES[:7]).pooled, whole[:7])
    assert torch.equal(dino.features(IMAGES[:BLOCK]).pooled, whole[:BLOCK])
    assert torch.equal(dino.features(IMAGES[BLOCK:]).pooled, whole[BLOCK:])


def test_dino_is_a_feature_network_with_the_hash_of_its_file(
    dino_folder: Path, dino: DinoNetwork
) -> None:
    network: FeatureNetwork = dino
    weights = (dino_folder / "model.safetensors").read_bytes()
    assert network.fingerprint == hashlib.sha256(weights).hexdigest()
    assert (network.name, network.side) == ("dinov2", None)
    assert network.features(IMAGES[:1]).probabilities is None


def test_loading_reaches_for_no_network_and_no_random_number(
    dino_folder: Path, clip_folder: Path, offline: None
) -> None:
    before = torch.random.get_rng_state()
    load_dino(dino_folder)
    load_clip(clip_folder)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_hub_name_is_looked_up_in_the_cache(
    dino_folder: Path, dino: DinoNetwork, offline: None, tmp_path: Path
) -> None:
    repository = tmp_path / "hub" / "models--someone--dino"
    shutil.copytree(dino_folder, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    found = load_dino("someone/dino")
    assert found.fingerprint == dino.fingerprint


# --- CLIP ---------------------------------------------------------------------------------------


def cosines_of(model: Any) -> Tensor:
    """Of each image (rows) with each caption (columns), by the model in float64."""
    mean = [0.48145466, 0.4578275, 0.40821073]
    deviation = [0.26862954, 0.26130258, 0.27577711]
    words, seen, read = pretrained.vocabulary(), [], []
    wide = 224 * 56 // 40  # the short side becomes 224
    left = round((wide - 224) / 2)
    for image, caption in zip(IMAGES, CAPTIONS, strict=False):
        x = prepared(resized(image, wide, 224)[:, left : left + 224], mean, deviation)
        letters = [words[x] for word in caption.split() for x in (*word[:-1], word[-1] + "</w>")]
        tokens = torch.tensor([[0, *letters[: pretrained.LENGTH - 2], 1]])
        with torch.no_grad():
            seen.append(model.visual_projection(model.vision_model(x).pooler_output)[0])
            read.append(model.text_projection(model.text_model(tokens).pooler_output)[0])
    rows = [[(one @ other) / (one.norm() * other.norm()) for other in read] for one in seen]
    return torch.tensor(rows, dtype=torch.float64)


def test_clip_scores_are_those_of_a_slow_computation(clip_folder: Path, clip: ClipNetwork) -> None:
    from transformers import CLIPModel

    wanted = cosines_of(CLIPModel.from_pretrained(clip_folder).double().eval())
    found = clip.of_images(IMAGES[:4]) @ clip.of_captions(CAPTIONS)[0].t()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert wanted.min() > 0.05 and wanted.std() > 0.03
    scores = clip_scores(IMAGES[:4], CAPTIONS, clip)
    pairs = [100 * max(float(wanted[i, i]), 0) for i in range(4)]
    assert scores.scores.tolist() == pytest.approx(pairs, rel=1e-4, abs=1e-3)
    assert scores.mean == pytest.approx(sum(pairs) / 4, rel=1e-4) and scores.cut == 1


def test_captions_and_images_have_their_directions_in_any_company(clip: ClipNetwork) -> None:
    captions = [CAPTIONS[i % 3] for i in range(BLOCK + 1)]
    read, cut = clip.of_captions(captions)
    assert cut == 0 and torch.equal(clip.of_captions(captions[:5])[0], read[:5])
    assert torch.equal(clip.of_captions(captions[BLOCK:])[0], read[BLOCK:])
    seen = clip.of_images(IMAGES)
    assert torch.equal(clip.of_images(IMAGES[:3]), seen[:3])


def test_opposite_directions_score_0() -> None:
    class Opposite(ClipNetwork):
        def __init__(self) -> None:
            pass

        def of_images(self, images: Tensor) -> Tensor:
            return torch.eye(2).double()

        def of_captions(self, captions: list[str]) -> tuple[Tensor, int]:
            return torch.tensor([[-1.0, 0.0], [0.5, 0.75]]).double(), 0

    assert clip_scores(IMAGES[:2], ["a", "b"], Opposite()).scores.tolist() == [0, 75]


def test_a_record_or_a_tensor_may_come_from_transformers(
    clip: ClipNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = clip.of_images(IMAGES[:1])
    record = clip._model.get_image_features
    bare = lambda **given: getattr(record(**given), "pooler_output")  # noqa: B009, E731
    monkeypatch.setattr(clip._model, "get_image_features", bare)
    assert torch.equal(clip.of_images(IMAGES[:1]), wanted)


def test_older_tokenizer_files_are_read_too(clip_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(pretrained.vocabulary()))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    one, other = load_clip(folder), load_clip(clip_folder)
    assert torch.equal(one.of_captions(CAPTIONS)[0], other.of_captions(CAPTIONS)[0])


def test_images_and_captions_must_be_pairs(clip: ClipNetwork) -> None:
    with pytest.raises(ConfigError, match="2 images and 1 captions make no pairs"):
        clip_scores(IMAGES[:2], ["a"], clip)


# --- files that are refused ---------------------------------------------------------------------


@pytest.mark.parametrize("place", ["facebook/dinov2-large", "nowhere"])
def test_missing_weights_are_one_error_that_says_all(place: str, offline: None) -> None:
    with pytest.raises(ConfigError) as caught:
        load_dino(place)
    told = str(caught.value)
    for part in (
        f"the DINOv2 network {place} lacks config.json and model.safetensors",
        str(Path(place).absolute()),
        "hub",
        "hf download facebook/dinov2-large",
        "Apache-2.0",
    ):
        assert part in told
    assert "\n" not in told


def test_a_pickle_instead_of_safetensors_is_not_read(dino_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(dino_folder, tmp_path / "dino")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"lacks model\.safetensors — looked"):
        load_dino(folder)


def test_a_clip_without_its_tokenizer_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"CLIP network .* lacks tokenizer\.json .*MIT"):
        load_clip(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(StorageError, match="the CLIP network cannot be loaded"):
        load_clip(folder)


def test_another_kind_of_network_is_refused(dino_folder: Path, clip_folder: Path) -> None:
    with pytest.raises(ConfigError, match="of the kind clip, not dinov2"):
        load_dino(clip_folder)


def test_weights_of_another_network_are_refused(
    dino_folder: Path, clip_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(dino_folder, tmp_path / "dino")
    shutil.copy(clip_folder / "model.safetensors", folder)
    with pytest.raises(StorageError, match="tensors are missing, embeddings") as caught:
        load_dino(folder)
    assert "\n" not in str(caught.value)


def test_weights_of_another_size_are_refused(dino_folder: Path, tmp_path: Path) -> None:
    folder = pretrained.save_dino(tmp_path / "dino", hidden_size=8)
    shutil.copy(dino_folder / "model.safetensors", folder)
    with pytest.raises(StorageError, match="cannot be loaded") as caught:
        load_dino(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_damaged_files_are_refused(file: str, dino_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(dino_folder, tmp_path / "dino")
    (folder / file).write_bytes((folder / file).read_bytes()[:-50])
    with pytest.raises(StorageError, match="the DINOv2 network cannot be loaded") as caught:
        load_dino(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_code_beside_the_weights_is_not_run(dino_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(dino_folder, tmp_path / "dino")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    load_dino(folder)
    assert not (tmp_path / "ran").exists()


def test_sizes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="patches of 15 pixels do not fill 224"):
        load_dino(pretrained.save_dino(tmp_path / "dino", patch_size=15, image_size=45))
    with pytest.raises(ConfigError, match="images of 336 pixels"):
        load_clip(pretrained.save_clip(tmp_path / "clip", image_size=336))


def test_without_transformers_the_extra_is_named(
    dino_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'diffmoe\[networks\]'"):
        load_dino(dino_folder)
