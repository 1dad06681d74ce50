"""Latents of an autoencoder against diffusers itself, and a sentence for each wrong folder."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from autoencoders import autoencoder
from autoencoders import codec_config as config
from diffmoe.codec import build_codec, find_autoencoder, open_autoencoder
from diffmoe.errors import ConfigError, DiffMoEError, ExitCode, StorageError

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "autoencoder"
    autoencoder().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(saved, tmp_path / "autoencoder")
    return tmp_path / "autoencoder"


@pytest.fixture
def offline(monkeypatch, tmp_path: Path) -> Iterator[None]:
    """A hub that cannot be reached, and an empty cache."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    yield


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_latents_are_shifted_and_scaled_posterior_samples(saved: Path) -> None:
    codec, network = build_codec(config(saved), "cpu"), autoencoder()
    pixels, draw = noise(3, 3, 8, 8).clamp(-1, 1), noise(3, 5, 4, 4)
    with torch.no_grad():
        posterior = network.encode(pixels).latent_dist
    mean = (posterior.mean - 0.25) * 0.5
    drawn = (posterior.mean + posterior.std * draw - 0.25) * 0.5
    torch.testing.assert_close(codec.encode(pixels, None), mean)
    torch.testing.assert_close(codec.encode(pixels, draw), drawn)
    assert codec.channels == 5


def test_decoding_undoes_scale_and_shift(saved: Path) -> None:
    codec, network = build_codec(config(saved), "cpu"), autoencoder()
    latents = noise(3, 5, 4, 4)
    with torch.no_grad():
        expected = network.decode(latents).sample.clamp(-1, 1)
    torch.testing.assert_close(codec.decode((latents - 0.25) * 0.5), expected)


def test_many_images_are_those_of_few(saved: Path) -> None:
    codec = build_codec(config(saved), "cpu")
    pixels, draw = noise(35, 3, 8, 8), noise(35, 5, 4, 4)
    latents = codec.encode(pixels, draw)
    alone = torch.cat([codec.encode(pixels[i : i + 1], draw[i : i + 1]) for i in range(35)])
    torch.testing.assert_close(latents, alone, rtol=1e-5, atol=1e-6)
    assert codec.decode(latents).shape == (35, 3, 8, 8)


def test_nothing_is_trained_and_precision_is_full(saved: Path) -> None:
    codec = build_codec(config(saved), "cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        latents = codec.encode(noise(1, 3, 8, 8).requires_grad_(), noise(1, 5, 4, 4))
        pixels = codec.decode(latents.bfloat16())
    assert latents.dtype == pixels.dtype == torch.float32
    assert not latents.requires_grad and not pixels.requires_grad
    torch.testing.assert_close(latents, codec.encode(noise(1, 3, 8, 8), noise(1, 5, 4, 4)))


def test_the_identity_names_weights_and_scale_but_no_place(saved: Path, folder: Path) -> None:
    identity = build_codec(config(saved), "cpu").identity
    assert re.fullmatch(r"AutoencoderKL sha256:[0-9a-f]{16} scale 0\.5 shift 0\.25", identity)
    assert build_codec(config(folder), "cpu").identity == identity
    assert build_codec(replace(config(saved), scale=0.6), "cpu").identity != identity
    weights = load_file(folder / WEIGHTS)
    weights["decoder.conv_in.bias"][0] += 1e-6
    save_file(weights, folder / WEIGHTS)
    assert build_codec(config(folder), "cpu").identity != identity


def test_a_scale_other_than_the_autoencoders_is_told(saved: Path, caplog) -> None:
    with caplog.at_level(logging.WARNING, logger="diffmoe"):
        build_codec(config(saved), "cpu")
        assert not caplog.records
        build_codec(replace(config(saved), scale=0.18215), "cpu")
    assert "codec.scale 0.18215" in caplog.text and "0.5" in caplog.text


def refusal(path: Path | str, **changes: Any) -> DiffMoEError:
    with pytest.raises(DiffMoEError) as caught:
        build_codec(replace(config(path), **changes), "cpu")
    assert "\n" not in str(caught.value) and " — " in str(caught.value)
    return caught.value


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    error = refusal(tmp_path / "nowhere")
    assert "nowhere' does not exist" in str(error) and "set --codec.path" in str(error)
    assert isinstance(error, ConfigError) and error.exit_code == ExitCode.BAD_INPUT


@pytest.mark.parametrize("name", ["config.json", WEIGHTS])
def test_a_missing_file_is_named(name: str, folder: Path) -> None:
    (folder / name).unlink()
    error = refusal(folder)
    assert f"lacks {name} — {folder} — set --codec.path" in str(error)
    assert isinstance(error, ConfigError)


def test_a_missing_file_is_told_without_the_slow_import(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom diffmoe.codec import build_codec\n"
        "from diffmoe.config import AutoencoderCodec\n"
        "from diffmoe.errors import ConfigError\n"
        "try:\n"
        f"    build_codec(AutoencoderCodec(path={str(tmp_path)!r}, factor=8, scale=1.0, shift=0.0),"
        " 'cpu')\n"
        "except ConfigError:\n    sys.exit('diffusers' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 0


def test_a_pickle_is_no_weight_file(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "diffusion_pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    assert f"lacks {WEIGHTS}" in str(refusal(folder))


def truncated(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size // 2)


def no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def another_network(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))


def one_tensor_less(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    del weights["decoder.conv_in.bias"]
    save_file(weights, folder / WEIGHTS)


def one_shape_wrong(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights["decoder.conv_in.bias"] = torch.zeros(3)
    save_file(weights, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncated, "Unable to load weights"),
        (no_json, "not a valid JSON"),
        (another_network, "it is a UNet2DModel, not an AutoencoderKL"),
        (one_tensor_less, "lack 1 tensors, decoder.conv_in.bias for one"),
        (one_shape_wrong, "Error"),
    ],
)
def test_a_damaged_autoencoder_is_named(damage, reason: str, folder: Path) -> None:
    damage(folder)
    error = refusal(folder)
    assert "the autoencoder cannot be loaded (" in str(error)
    assert reason in str(error) and str(folder) in str(error)
    assert isinstance(error, StorageError) and error.exit_code == ExitCode.STORAGE == 5


def test_a_hub_name_that_cannot_be_had(offline, tmp_path: Path) -> None:
    error = refusal("some-one/some-autoencoder")
    message = str(error)
    assert message.startswith("codec.path some-one/some-autoencoder cannot be loaded (")
    assert str(tmp_path / "cache") in message and "huggingface.co" in message
    assert "hf download some-one/some-autoencoder" in message and "config.json" in message
    assert isinstance(error, ConfigError)


def test_a_hub_out_of_reach_is_told_once_and_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub
    import huggingface_hub.constants as constants

    class Cut:
        def head(self, *others: object, **more: object) -> None:
            raise OSError("[Errno -2] Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub, "get_session", Cut)
    monkeypatch.chdir(tmp_path)
    began = time.monotonic()
    message = str(refusal("some-one/some-autoencoder"))
    assert time.monotonic() - began < 10
    assert "not in the cache, and https://huggingface.co cannot be reached" in message
    assert message.count("Name or service not known") == 1
    assert capfd.readouterr() == ("", "")


def test_a_cached_autoencoder_asks_no_network(offline, saved: Path, tmp_path: Path) -> None:
    repository = tmp_path / "cache" / "models--some-one--some-autoencoder"
    shutil.copytree(saved, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    codec = build_codec(config("some-one/some-autoencoder"), "cpu")
    assert codec.identity == build_codec(config(saved), "cpu").identity


def test_a_factor_other_than_the_autoencoders(saved: Path) -> None:
    error = refusal(saved, factor=8)
    assert "codec.factor 8 is not that of the autoencoder, 2" in str(error)
    assert "set --codec.path to one of factor 8, or --codec.factor to 2" in str(
        error
    ) and isinstance(error, ConfigError)


def test_an_autoencoder_of_grey_images(tmp_path: Path) -> None:
    autoencoder(in_channels=1, out_channels=1).save_pretrained(tmp_path)
    assert "encodes images of 1 channels" in str(refusal(tmp_path))


def test_latents_of_other_channels_are_not_decoded(saved: Path) -> None:
    with pytest.raises(ConfigError, match=r"latents of 4 channels .* the autoencoder has 5"):
        build_codec(config(saved), "cpu").decode(noise(1, 4, 4, 4))


# ---- without a config, and without a network


def test_an_autoencoder_knows_its_own_factor_scale_and_shift(saved: Path) -> None:
    made = open_autoencoder(str(saved), "cpu", flag="autoencoder")
    assert made.config == config(saved)
    assert made.identity == build_codec(config(saved), "cpu").identity


def test_an_autoencoder_without_a_shift_has_none(tmp_path: Path) -> None:
    three = {
        "block_out_channels": (4, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
    }
    autoencoder(shift_factor=None, **three).save_pretrained(tmp_path)
    made = open_autoencoder(str(tmp_path), "cpu", flag="autoencoder")
    own = made.config
    assert (own.factor, own.scale, own.shift) == (4, 0.5, 0.0)
    assert made.moments(noise(1, 3, 16, 16)).shape == (1, 2, 5, 4, 4)


def test_a_message_names_the_flag_that_was_given(offline, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, what in (
        ("nowhere", "autoencoder 'nowhere' does not exist"),
        ("empty", "set --autoencoder to a folder that"),
        ("some-one/some", "autoencoder some-one/some cannot be loaded"),
    ):
        with pytest.raises(ConfigError, match=what) as caught:
            open_autoencoder(name, "cpu", flag="autoencoder")
        assert "codec.path" not in str(caught.value)


def test_a_message_says_how_to_give_another_where_there_is_no_flag(
    offline, saved: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for name, factor, what in (
        ("nowhere", 2, "— say it: the folder of an AutoencoderKL or its hub name"),
        (str(tmp_path / "empty"), 2, "— say it: a folder that"),
        ("some-one/some", 2, "where there is a network, or say it: a folder with config.json"),
        (str(saved), 4, "— say it: one of factor 4"),
    ):
        with pytest.raises(ConfigError) as caught:
            build_codec(replace(config(name), factor=factor), "cpu", setting="say it:")
        assert what in str(caught.value) and "--" not in str(caught.value)


def test_moments_are_the_posterior_as_it_is(saved: Path) -> None:
    pixels = noise(20, 3, 8, 8).clamp(-1, 1)
    moments = build_codec(config(saved), "cpu").moments(pixels)
    with torch.no_grad():
        posteriors = [autoencoder().encode(p[None]).latent_dist for p in pixels]
    expected = [torch.stack([p.mean, p.std], dim=1) for p in posteriors]
    torch.testing.assert_close(moments, torch.cat(expected), rtol=1e-5, atol=1e-6)


def test_only_an_autoencoder_at_hand_is_found(offline, saved: Path, tmp_path: Path) -> None:
    assert find_autoencoder(config(tmp_path / "nowhere")) is None
    assert find_autoencoder(config("some-one/some-autoencoder")) is None
    found = find_autoencoder(config(saved))
    assert found is not None and found.channels == 5
