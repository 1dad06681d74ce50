"""The bundled scans, and what an independent classifier makes of their split."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.svm import SVC

from diffmoe.config import AutoencoderCodec
from diffmoe.data import DigitsSource, digits_split, open_source
from diffmoe.errors import ConfigError, ExitCode
from diffmoe.presets import preset


def test_the_scans_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    scans, source = load_digits(), DigitsSource()
    assert (len(source), source.shape, source.encoded) == (1797, (1, 8, 8), False)
    assert source.class_names == tuple("0123456789")
    assert source.labels.dtype == torch.int64 and source.labels.tolist() == scans.target.tolist()
    expected = torch.from_numpy(scans.images[3] / 8 - 1).float()[None]
    assert torch.equal(source.load(3, False), expected)
    assert source.images.dtype == torch.float32
    assert (source.images.min(), source.images.max()) == (-1, 1)


def test_the_fingerprint_of_the_scans_is_a_constant() -> None:
    assert DigitsSource().fingerprint == "1797 digits sha256:6f9e14f74b501153"
    other = DigitsSource()
    other.images = -other.images
    assert other.fingerprint != DigitsSource().fingerprint


def test_a_digit_is_never_mirrored() -> None:
    source = DigitsSource()
    assert torch.equal(source.load(3, True), source.load(3, False))


def test_the_split_is_stratified_and_always_the_same() -> None:
    split, labels = digits_split(), DigitsSource().labels
    assert all(map(torch.equal, split, digits_split()))
    assert sorted(torch.cat(split).tolist()) == list(range(1797))
    for digit in range(10):
        whole = int((labels == digit).sum())
        assert int((labels[split.held_out] == digit).sum()) == whole // 4


def test_a_classifier_fitted_on_one_part_reads_the_other() -> None:
    source, split = DigitsSource(), digits_split()
    pixels, labels = source.images.flatten(1).numpy(), source.labels.numpy()
    classifier = SVC(gamma="scale").fit(pixels[split.train], labels[split.train])
    assert np.mean(classifier.predict(pixels[split.held_out]) == labels[split.held_out]) >= 0.97


def test_without_scikit_learn(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    message = r"scikit-learn, which is not installed — pip install 'diffmoe\[demo\]'"
    with pytest.raises(ConfigError, match=message) as caught:
        open_source(preset("digits-dense"))
    assert caught.value.exit_code == ExitCode.BAD_INPUT


def test_a_model_that_does_not_fit_the_digits() -> None:
    config = preset("digits-dense")
    with pytest.raises(ConfigError, match=r"num_classes 9 is less than the 10 classes"):
        open_source(replace(config, model=replace(config.model, num_classes=9)))
    with pytest.raises(ConfigError, match=r"\(1, 8, 8\) do not fit the codec.*\(1, 16, 16\)"):
        open_source(replace(config, model=replace(config.model, input_size=16)))
    encoder = AutoencoderCodec(path="a/b", factor=1, scale=1.0, shift=0.0)
    with pytest.raises(ConfigError, match=r"\(1, 8, 8\) do not fit the codec.*\(3, 8, 8\)"):
        open_source(replace(config, codec=encoder))
