"""Stored latents: mirror images, checks at the start and on reading, nothing pickled."""

import logging
import multiprocessing
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from diffmoe.data import LatentSource, open_source
from diffmoe.errors import ConfigError, DataError, ExitCode

PAIRS = (6, 2, 1, 8, 8)


def test_latents_are_read_as_stored(make_latents, make_config) -> None:
    folder = make_latents()
    source, stored = open_source(make_config(folder)), np.load(folder / "latents.npy")
    assert (len(source), source.shape, source.encoded) == (6, (1, 8, 8), True)
    assert source.labels.tolist() == [0, 1, 2, 0, 1, 2] and source.labels.dtype == torch.int64
    assert source.class_names == tuple("0123456789")
    assert torch.equal(source.load(4, False), torch.from_numpy(stored[4]))


def test_the_mirror_image_has_its_own_latent(make_latents, make_config) -> None:
    folder = make_latents(PAIRS)
    source, stored = open_source(make_config(folder, flip=True)), np.load(folder / "latents.npy")
    for flip in (False, True):
        assert torch.equal(source.load(2, flip), torch.from_numpy(stored[2, int(flip)]))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_other_floats_become_float32(dtype, make_latents, make_config) -> None:
    values = np.random.default_rng(1).normal(size=(6, 1, 8, 8)).astype(dtype)
    if dtype == ">f4":
        with pytest.raises(DataError, match="latents are >f4"):
            open_source(make_config(make_latents(latents=values)))
        return
    latent = open_source(make_config(make_latents(latents=values))).load(0, False)
    assert latent.dtype == torch.float32
    assert torch.equal(latent, torch.from_numpy(values[0].astype(np.float32)))


def test_a_latent_read_is_a_copy(make_latents, make_config) -> None:
    source = open_source(make_config(make_latents()))
    source.load(0, False).zero_()
    assert source.load(0, False).any()


def test_the_latents_stay_on_disk(make_latents, make_config) -> None:
    source = open_source(make_config(make_latents((2000, 1, 8, 8))))
    content = pickle.dumps(source)
    assert len(content) < 100_000 < 2000 * 64 * 4
    assert torch.equal(pickle.loads(content).load(5, False), source.load(5, False))


def test_another_process_maps_the_file_anew(make_latents, make_config) -> None:
    source = open_source(make_config(make_latents()))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        latent = pool.apply(load_as_list, (source, 3))
    assert latent == source.load(3, False).flatten().tolist()


def load_as_list(source: LatentSource, index: int) -> list[float]:
    return source.load(index, False).flatten().tolist()


def test_classes_may_have_names(make_latents, make_config) -> None:
    folder = make_latents()
    (folder / "classes.txt").write_text("bird\ncat\ndog\n", encoding="utf-8")
    assert open_source(make_config(folder)).class_names == ("bird", "cat", "dog")
    (folder / "classes.txt").write_text("bird\ncat\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"classes\.txt names 2 classes, the labels use 3"):
        open_source(make_config(folder))
    (folder / "classes.txt").write_text("a\n" * 11, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"num_classes 10 is less than the 11 classes"):
        open_source(make_config(folder))
    (folder / "classes.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(DataError, match=r"classes\.txt is no text"):
        open_source(make_config(folder))


def test_flipping_needs_mirror_images(make_latents, make_config) -> None:
    message = r"data\.flip is on but the latents hold no mirror images.*--data\.no-flip"
    with pytest.raises(ConfigError, match=message):
        open_source(make_config(make_latents(), flip=True))


LABELS = {
    "too_large": ([0, 1, 2, 11, 1, 2], r"label 11 of sample 3 is not in 0\.\.9 — .*labels\.npy"),
    "null_class": ([0, 10, 2, 0, 1, 2], r"label 10 of sample 1 .*null class of guidance"),
    "negative": ([0, 1, 2, 0, 1, -1], r"label -1 of sample 5 is not in 0\.\.9"),
    "float": ([0.0, 1, 2, 0, 1, 2], "labels are float64 .* store integers"),
    "short": ([0, 1], r"labels of shape \(2,\) do not fit 6 latents"),
    "one_hot": (np.eye(6, dtype=int), r"labels of shape \(6, 6\) do not fit 6 latents"),
}


@pytest.mark.parametrize(("labels", "message"), LABELS.values(), ids=LABELS)
def test_wrong_labels_are_named(labels, message: str, make_latents, make_config) -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_source(make_config(make_latents(labels=np.array(labels))))
    assert caught.value.exit_code == ExitCode.BAD_DATA


ARRAYS = {
    "shape": (np.ones((6, 8, 8), np.float32), r"latents of shape \(6, 8, 8\) are neither"),
    "three": (np.ones((6, 3, 1, 8, 8), np.float32), r"of shape \(6, 3, 1, 8, 8\) are neither"),
    "none": (np.ones((0, 1, 8, 8), np.float32), "are neither"),
    "integers": (np.ones((6, 1, 8, 8), np.int64), "latents are int64 .* float16 or float32"),
    "pickled": (np.array([[{}]] * 6), r"latents\.npy cannot be read \(.*[Pp]ython objects"),
}


@pytest.mark.parametrize(("array", "message"), ARRAYS.values(), ids=ARRAYS)
def test_wrong_arrays_are_named(array, message: str, make_latents, make_config) -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_source(make_config(make_latents(latents=array)))
    assert "latents.npy" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["latents", "labels"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "pickle", "archive", "huge"])
def test_damaged_files_are_named(name: str, damage: str, make_latents, make_config) -> None:
    path = make_latents() / f"{name}.npy"
    content = path.read_bytes()
    if damage == "archive":
        with path.open("wb") as file:
            np.savez(file, a=np.ones(3))
    else:
        path.write_bytes(
            {
                "truncated": content[:-40],
                "empty": b"",
                "text": b"no array",
                "pickle": pickle.dumps({"a": 1}),
                "huge": content.replace(b"(6,", b"(6000000000000,", 1),
            }[damage]
        )
    with pytest.raises(DataError, match=rf"{name}\.npy cannot be read \(.+\) — .* numpy\.save"):
        open_source(make_config(path.parent))


def test_absent_labels_are_named(make_latents, make_config) -> None:
    folder = make_latents()
    (folder / "labels.npy").unlink()
    with pytest.raises(DataError, match=r"labels\.npy cannot be read \(there is no such file\)"):
        open_source(make_config(folder))


@pytest.mark.parametrize("name", ["latents", "labels"])
def test_an_array_that_may_not_be_read_is_named(
    name: str, make_latents, make_config, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, honest = make_latents(), np.load

    def closed(path: Path, *others: object, **more: object) -> np.ndarray:
        if path.stem == name:
            raise PermissionError(13, "Permission denied", str(path))
        return honest(path, *others, **more)

    monkeypatch.setattr(np, "load", closed)
    with pytest.raises(DataError, match=rf"{name}\.npy may not be read — .* — check its perm"):
        open_source(make_config(folder))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_latent_that_is_not_finite_is_named(value, make_latents, make_config) -> None:
    latents = np.random.default_rng(0).normal(size=PAIRS).astype(np.float32)
    latents[4, 1, 0, 3, 3] = value
    source = open_source(make_config(make_latents(latents=latents), flip=True))
    source.load(4, False)
    with pytest.raises(DataError, match=r"latent 4 holds NaN or infinity — .*latents\.npy"):
        source.load(4, True)


def test_a_latent_never_written_is_named(make_latents, make_config) -> None:
    latents = np.random.default_rng(0).normal(size=(6, 1, 8, 8)).astype(np.float32)
    latents[5] = 0
    source = open_source(make_config(make_latents(latents=latents)))
    with pytest.raises(DataError, match=r"latent 5 is constant \(0\)"):
        source.load(5, False)


def test_a_value_beyond_float32_is_infinite(make_latents, make_config) -> None:
    latents = np.random.default_rng(0).normal(size=(6, 1, 8, 8))
    latents[0, 0, 0, 0] = 1e300
    source = open_source(make_config(make_latents(latents=latents)))
    with pytest.raises(DataError, match="latent 0 holds NaN or infinity"):
        source.load(0, False)


def test_latents_of_another_shape_than_the_models(make_latents, make_config) -> None:
    message = r"shape \(4, 8, 8\) do not fit the model, which takes \(1, 8, 8\)"
    with pytest.raises(ConfigError, match=message) as caught:
        open_source(make_config(make_latents((6, 4, 8, 8))))
    assert caught.value.exit_code == ExitCode.BAD_INPUT


def test_images_beside_latents_are_not_read(make_latents, make_config, images: Path) -> None:
    assert open_source(make_config(make_latents())).encoded


def test_fewer_labels_than_the_model_knows_are_told(
    make_latents, make_config, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        open_source(make_config(make_latents(), num_classes=3))
        assert not caplog.text
        open_source(make_config(make_latents(labels=np.array([0, 7, 7, 0, 7, 7]))))
    assert "samples of 2 classes, fewer than model.num_classes 10" in caplog.text


# ---- what the latents are, wherever they lie

VALUES = np.random.default_rng(3).normal(size=PAIRS).astype(np.float32)
OTHERS = {
    "labels": {"labels": np.array([0, 1, 2, 0, 2, 1])},
    "order": {"latents": VALUES[::-1].copy()},
    "one value": {"latents": VALUES + np.float32(1e-4) * (VALUES[3, 1, 0, 2, 2] == VALUES)},
    "dtype": {"latents": VALUES.astype(np.float64)},
    "fewer": {"latents": VALUES[:5], "labels": np.arange(5) % 3},
    "no mirror images": {"latents": VALUES[:, 0].copy()},
}


def test_a_fingerprint_is_that_of_the_latents_not_of_their_place_or_names(
    make_latents, make_config, tmp_path: Path
) -> None:
    folder = make_latents(latents=VALUES)
    before = open_source(make_config(folder)).fingerprint
    assert re.fullmatch("6 latents sha256:[0-9a-f]{16}", before)
    (folder / "classes.txt").write_text("bird\ncat\ndog\n", encoding="utf-8")
    assert open_source(make_config(folder)).fingerprint == before
    (tmp_path / "copy").mkdir()
    for name in ("latents", "labels"):
        (folder / f"{name}.npy").rename(tmp_path / "copy" / f"{name}.npy")
    assert open_source(make_config(tmp_path / "copy", flip=True)).fingerprint == before


@pytest.mark.parametrize("name", OTHERS)
def test_other_latents_have_another_fingerprint(name: str, make_latents, make_config) -> None:
    before = open_source(make_config(make_latents(latents=VALUES))).fingerprint
    assert open_source(
        make_config(make_latents(**{"latents": VALUES} | OTHERS[name]))
    ).fingerprint != (before)


def test_of_many_latents_few_are_read(make_latents, make_config) -> None:
    source = open_source(make_config(make_latents((5000, 1, 8, 8))))
    read: list[int] = []

    class Watched:
        shape, dtype = (5000, 1, 8, 8), np.dtype(np.float32)

        def __len__(self) -> int:
            return 5000

        def __getitem__(self, index: int) -> np.ndarray:
            read.append(index)
            return np.zeros((1, 8, 8), np.float32)

    source._array = Watched()
    assert source.fingerprint.startswith("5000 latents")
    assert (len(read), read[0], read[-1]) == (64, 0, 4999)
