"""Sets of images and references: what is read, and a sentence for each that cannot be."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffmoe.config import FolderData
from diffmoe.data import DigitsSource, open_source
from diffmoe.errors import ConfigError, DataError
from diffmoe.evaluation import (
    Moments,
    NpzSet,
    Reference,
    SourceSet,
    images_of,
    open_images,
    open_reference,
    read_images,
    record_of,
    write_statistics,
)
from runs import run_config

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (5, 6, 4, 3), dtype=np.uint8)
LABELS = np.array([0, 2, 1, 2, 0])


def saved(path: Path, compressed: bool = False, **arrays: Any) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


@pytest.mark.parametrize("compressed", [False, True])
def test_an_npz_of_the_adm_protocol_is_read_as_it_is(tmp_path: Path, compressed: bool) -> None:
    path = saved(tmp_path / "s.npz", compressed, arr_0=PIXELS, arr_1=LABELS)
    found = open_images(path)
    assert len(found) == 5 and found.labels is not None
    assert found.labels.tolist() == LABELS.tolist() and found.class_names == ("0", "1", "2")
    for index in range(5):
        pixels, notes = found.read(index)
        assert torch.equal(pixels.permute(1, 2, 0), torch.from_numpy(PIXELS[index]))
        assert not (notes.grey or notes.alpha or notes.converted)


def test_an_uncompressed_npz_is_mapped_not_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "s.npz", other=np.ones(3), arr_0=PIXELS)
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("arr_0.npy").header_offset
    found = NpzSet(path)
    content = bytearray(path.read_bytes())
    at = content.find(PIXELS[3].tobytes(), start)
    content[at : at + 3] = b"\x07\x08\x09"
    with path.open("r+b") as file:  # the same file, changed below the set
        file.write(content)
    assert found.read(3)[0][:, 0, 0].tolist() == [7, 8, 9]


@pytest.mark.parametrize("compressed", [False, True])
def test_a_header_that_lies_about_its_content_is_refused(tmp_path: Path, compressed: bool) -> None:
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    array = io.BytesIO()
    np.save(array, PIXELS)
    content = array.getvalue().replace(b"(5, 6, 4, 3)", b"(9, 6, 4, 3)")
    with zipfile.ZipFile(tmp_path / "s.npz", "w", kind) as archive:
        archive.writestr("arr_0.npy", content)
        archive.writestr("more.npy", b"\0" * 999)
    with pytest.raises(DataError, match="the sizes that arr_0 tells are not those"):
        open_images(tmp_path / "s.npz")


def test_an_inverted_pixel_is_noticed_where_files_are_mapped(tmp_path: Path) -> None:
    path = saved(tmp_path / "s.npz", arr_0=PIXELS)
    content = bytearray(path.read_bytes())
    content[content.find(PIXELS[2].tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="Bad CRC"):
        open_images(path)


def test_every_pixel_counts_in_the_fingerprint(tmp_path: Path) -> None:
    many = np.zeros((400, 2, 2, 3), np.uint8)
    first = NpzSet(saved(tmp_path / "a.npz", arr_0=many)).fingerprint
    many[201, 0, 0, 0] = 1
    assert NpzSet(saved(tmp_path / "b.npz", arr_0=many)).fingerprint != first
    labelled = NpzSet(saved(tmp_path / "c.npz", arr_0=many, arr_1=np.zeros(400, int)))
    assert labelled.fingerprint != NpzSet(tmp_path / "b.npz").fingerprint


def test_grey_images_of_an_npz_become_three_channels(tmp_path: Path) -> None:
    path = saved(tmp_path / "s.npz", arr_0=PIXELS[..., :1])
    pixels, notes = open_images(path).read(1)
    assert notes.grey and pixels.shape == (3, 6, 4)
    assert torch.equal(pixels[0], pixels[2])
    assert pixels[0].tolist() == PIXELS[1, ..., 0].tolist()


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"arr_0": PIXELS.astype(np.float32)}, "arr_0 is float32, not uint8"),
        ({"arr_0": np.full((2, 4, 4, 3), np.nan)}, "arr_0 is float64, not uint8"),
        ({"arr_0": PIXELS.transpose(0, 3, 1, 2)}, r"arr_0 of shape \(5, 3, 6, 4\) is not \(N, H"),
        ({"arr_0": PIXELS[0]}, r"is not \(N, H, W, 3\)"),
        ({"arr_0": PIXELS[:0]}, "0 images are too few to evaluate"),
        ({"arr_0": PIXELS[:1]}, "1 images are too few to evaluate"),
        ({"arr_0": PIXELS, "arr_1": LABELS + 10**12}, "are no labels of 5 images"),
        ({"arr_0": PIXELS, "arr_1": LABELS[:3]}, "are no labels of 5 images"),
        ({"arr_0": PIXELS, "arr_1": LABELS - 1}, "are no labels of 5 images"),
        ({"arr_0": PIXELS, "arr_1": LABELS * 1.0}, "are no labels of 5 images"),
        ({"pixels": PIXELS}, "holds no images: arr_0 is not among pixels"),
        ({"arr_0": np.array([{}], dtype=object)}, "it is pickled, and pickles can run code"),
    ],
)
def test_another_npz_is_refused_in_one_sentence(
    tmp_path: Path, arrays: dict[str, Any], said: str
) -> None:
    path = saved(tmp_path / "s.npz", **arrays)
    with pytest.raises(DataError, match=said) as caught:
        open_images(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "array", "pickle", "absent"])
def test_a_file_that_is_no_npz_is_refused(tmp_path: Path, kind: str) -> None:
    path = saved(tmp_path / "s.npz", arr_0=PIXELS)
    whole = path.read_bytes()
    array = io.BytesIO()
    np.save(array, PIXELS)
    content = {"empty": b"", "text": b"thesis", "cut": whole[: len(whole) // 2]}
    content |= {"array": array.getvalue(), "pickle": b"\x80\x04N."}
    if kind == "absent":
        path.unlink()
    else:
        path.write_bytes(content[kind])
    with pytest.raises((DataError, ConfigError)) as caught:
        open_images(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_pixel_of_a_compressed_npz_is_noticed(tmp_path: Path) -> None:
    path = saved(tmp_path / "s.npz", True, arr_0=PIXELS)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match="the file cannot be read"):
        open_images(path)


def pictures(folder: Path, *sizes: tuple[int, int], mode: str = "RGB") -> Path:
    folder.mkdir()
    for number, size in enumerate(sizes):
        Image.new(mode, size, 10 * number).save(folder / f"{number}.png")
    return folder


def test_images_of_several_sizes_are_refused_with_both(tmp_path: Path) -> None:
    found = open_images(pictures(tmp_path / "p", (8, 8), (8, 8), (8, 6)))
    read_images(found, range(2))
    with pytest.raises(DataError, match="image 2 is 6 x 8 pixels, the first one 8 x 8") as caught:
        read_images(found, range(3))
    assert "2.png" in str(caught.value)


def test_a_reference_is_cropped_where_asked(tmp_path: Path) -> None:
    found = open_images(pictures(tmp_path / "p", (16, 12), (20, 40)), crop=8)
    assert read_images(found, range(2))[0].shape == (2, 3, 8, 8)
    with pytest.raises(ConfigError, match=r"\.npz are not cropped"):
        open_images(saved(tmp_path / "s.npz", arr_0=PIXELS), crop=8)


def test_one_image_is_no_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 images are too few"):
        open_images(pictures(tmp_path / "p", (8, 8)))


def test_training_data_are_seen_as_the_model_saw_them() -> None:
    source = DigitsSource()
    found = SourceSet(source, "digits")
    pixels, notes = found.read(3)
    assert notes.grey and pixels.shape == (3, 8, 8) and len(found) == 1797
    expected = ((source.images[3] + 1) * 127.5).round()
    assert torch.equal(pixels[1].float(), expected[0])


def test_damaged_training_data_are_left_out_where_asked_and_told(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.new("L", (8, 8), number).save(tmp_path / name / f"{number}.png")
    (tmp_path / "a" / "1.png").write_bytes(b"no image")
    source = open_source(run_config(data=FolderData(path=tmp_path), model__num_classes=2))
    strict, lenient = images_of(source, "data"), images_of(source, "data", skips_damaged=True)
    assert (len(strict), len(lenient)) == (6, 5) and lenient.labels is not None
    assert lenient.labels.tolist() == [0, 0, 1, 1, 1]
    shades = [int(lenient.read(n)[0].max()) for n in range(5)]
    assert shades == [0, 2, 0, 1, 2]
    assert lenient.place == "data (1 damaged left out)"
    assert lenient.fingerprint != strict.fingerprint
    with pytest.raises(DataError):
        strict.read(1)
    for damaged in list(tmp_path.glob("*/*.png"))[1:]:
        damaged.write_bytes(b"no image")
    with pytest.raises(DataError, match="of 6 images can be read, too few"):
        images_of(source, "data", skips_damaged=True)


def statistics(width: int = 2048, spatial: int = 2023) -> dict[str, np.ndarray]:
    return {
        "mu": np.zeros(width),
        "sigma": np.eye(width),
        "mu_s": np.ones(spatial),
        "sigma_s": 2 * np.eye(spatial),
    }


def test_a_reference_batch_of_adm_is_read_whole(tmp_path: Path) -> None:
    batch = np.zeros((10_000, 256, 256, 3), np.uint8)  # of zeros: a compressed file is small
    path = saved(tmp_path / "VIRTUAL.npz", arr_0=PIXELS, **statistics())
    found = open_reference(path)
    assert found.pooled is not None and found.spatial is not None and found.images is not None
    assert found.pooled.mean.shape == (2048,) and float(found.spatial.covariance[0, 0]) == 2
    assert found.side is None and found.count is None and len(found.sha256) == 64
    assert not found.is_adm256

    class Batch(NpzSet):
        def __init__(self) -> None:
            self._batch = batch

        def __len__(self) -> int:
            return len(self._batch)

    whole = Reference(
        "of/VIRTUAL_imagenet256_labeled.npz", Batch(), found.pooled, found.spatial, side=(256, 256)
    )
    assert whole.is_adm256
    for lack in (
        {"place": "VIRTUAL_lsun_bedroom256.npz"},
        {"spatial": None},
        {"side": (128, 128)},
        {"network": "ab"},
        {"images": None},
    ):
        assert not Reference(**{**vars(whole), **lack}).is_adm256


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"logits": np.ones(3)}, "neither statistics .* nor images .* but logits"),
        ({"mu": np.zeros(2048)}, "holds mu without sigma"),
        (statistics(width=64), "mu has 64 features, those of the ADM protocol 2048"),
        (statistics() | {"sigma": np.eye(2048)[:5]}, "mu and sigma: mu of shape"),
        (statistics() | {"mu": np.full(2048, np.nan)}, "mu and sigma: mu or sigma holds values"),
        (statistics() | {"features": np.ones((2, 2048))}, r"are no float32 \(K, F\)"),
        (statistics() | {"features": np.ones((2, 9), np.float32)}, r"are no float32 \(K, F\)"),
        (statistics() | {"count": np.array("many")}, "count of shape .* is not what it should be"),
        (statistics() | {"side": np.array([1, 2, 3])}, "side of shape .* is not what"),
        (statistics() | {"sigma": -np.eye(2048)}, "sigma holds variances below 0"),
    ],
)
def test_other_statistics_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        open_reference(saved(tmp_path / "r.npz", **arrays))


def test_statistics_come_back_as_they_were_written(tmp_path: Path) -> None:
    features = torch.from_numpy(RANDOM.normal(size=(30, 5)).astype(np.float32))
    own = Reference(
        "here", None, Moments.of(features), None, features[::3], (8, 8), "", "ab12", 30, (0, 4)
    )
    write_statistics(tmp_path / "own.npz", own, "cd34", "work")
    found = open_reference(tmp_path / "own.npz")
    assert torch.equal(found.pooled.mean, own.pooled.mean)  # type: ignore[union-attr]
    assert torch.equal(found.pooled.covariance, own.pooled.covariance)  # type: ignore[union-attr]
    assert found.pooled.count == 30 and found.spatial is None  # type: ignore[union-attr]
    assert torch.equal(found.features, features[::3])  # type: ignore[arg-type]
    assert (found.side, found.network, found.count, found.labels) == ((8, 8), "ab12", 30, (0, 4))
    with pytest.raises(ConfigError, match="statistics of another network and no images"):
        found.of_images()


def test_the_record_of_a_sampling_is_found_beside_its_images(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    told = '{"weights_sha256": "ab", "step": 3, "images": [1, 2], "seeds": [3, 4, 5]}'
    (tmp_path / "s" / "samples.json").write_text(told)
    (tmp_path / "s.json").write_text(told)
    wanted = {"weights_sha256": "ab", "step": 3, "seeds": "3..5"}
    assert record_of(tmp_path / "s") == wanted == record_of(tmp_path / "s.npz")
    (tmp_path / "s.json").write_text('{"thesis": 1}')
    assert record_of(tmp_path / "s.npz") is None
    assert record_of(tmp_path / "other.npz") is None


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        ([7], "7..7"),
        ([7, 8], "7..8"),
        ([8, 7], "2 seeds sha256:"),
        ([7, 9], "2 seeds sha256:"),
        ([None, 7], "2 seeds sha256:"),
        ([], ""),
    ],
)
def test_seeds_are_told_in_short(tmp_path: Path, seeds: list[Any], said: str) -> None:
    images = [{"file": f"{n}.png", "seed": seed} for n, seed in enumerate(seeds)]
    shards = [{"file": "0.tar", "seeds": seeds[:1]}, {"file": "1.tar", "seeds": seeds[1:]}]
    records: dict[str, Any] = {"s.json": {"seeds": seeds}, "t/samples.json": {"images": images}}
    for name, content in (records | {"u/samples.json": {"shards": shards}}).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"weights_sha256": "ab", **content}))
    one, *others = (record_of(tmp_path / name) for name in ("s.npz", "t", "u"))
    assert one is not None and others == [one, one]
    assert one["seeds"].startswith(said) and (said != "" or one["seeds"] == "")
