"""Hugging Face data sets on disk, as their own library writes them."""

import errno
import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.packing import png, refused
from diffmoe.data import Pictures, open_pictures, open_source
from diffmoe.errors import ConfigError, DataError, StorageError

SHADES = (5, 9, 7, 3)
LABELS = [1, 0, 2, 1]
NAMES = ["tench, fish", 'a "b"', "é"]


@pytest.fixture(autouse=True)
def _quiet_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own copies of parquet files go where the test goes."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def made(kind: str = "class", labels: Any = LABELS, column: str = "label", **more: Any) -> Any:
    """A small set; labels are a column of classes, of integers, of words, or left out."""
    import datasets

    kinds = {
        "class": lambda: datasets.ClassLabel(names=NAMES),
        "integer": lambda: datasets.Value("int32"),
        "words": lambda: datasets.Value("string"),
    }
    columns = {
        "id": ([str(shade) for shade in SHADES], datasets.Value("string")),
        "image": ([{"bytes": png(s), "path": None} for s in SHADES], datasets.Image()),
        "second": ([{"bytes": png(0), "path": None} for _ in SHADES], datasets.Image()),
    }
    if kind in kinds:
        columns[column] = (labels, kinds[kind]())
    columns |= more
    features = datasets.Features({name: feature for name, (_, feature) in columns.items()})
    return datasets.Dataset.from_dict({n: values for n, (values, _) in columns.items()}, features)


def saved(rows: Any, folder: Path) -> Path:
    rows.save_to_disk(str(folder))
    return folder


def parquet(rows: Any, folder: Path) -> Path:
    (folder / "data").mkdir(parents=True)
    rows.select(range(2)).to_parquet(str(folder / "data" / "train-00000-of-00002.parquet"))
    rows.select(range(2, 4)).to_parquet(str(folder / "data" / "train-00001-of-00002.parquet"))
    rows.select([0]).to_parquet(str(folder / "data" / "test-00000-of-00001.parquet"))
    (folder / "README.md").write_text("a card")
    return folder


def split(rows: Any, folder: Path) -> Path:
    import datasets

    return saved(datasets.DatasetDict({"test": rows.select([0]), "train": rows}), folder)


def one_file(rows: Any, folder: Path) -> Path:
    folder.mkdir()
    rows.to_parquet(str(folder / "all.parquet"))
    return folder / "all.parquet"


WRITERS: dict[str, Callable[[Any, Path], Path]] = {
    "saved": saved,
    "split": split,
    "parquet": parquet,
    "one_file": one_file,
}


def test_every_way_of_writing_gives_the_same_pictures(tmp_path: Path) -> None:
    found = {name: open_pictures(w(made(), tmp_path / name)) for name, w in WRITERS.items()}
    for name, pictures in found.items():
        assert isinstance(pictures, Pictures), name
        assert [pictures.read(index) for index in range(len(pictures))] == list(map(png, SHADES))
        assert pictures.labels is not None and pictures.labels.tolist() == LABELS
        assert pictures.class_names == tuple(NAMES)
        assert pictures.name(2) == f"{tmp_path / name}{'/all.parquet' * (name == 'one_file')}:row 2"
    assert len({pictures.fingerprint for pictures in found.values()}) == 1
    copy = pickle.loads(pickle.dumps(found["saved"]))
    assert [copy.read(index) for index in range(4)] == list(map(png, SHADES))


def test_the_fingerprint_is_that_of_labels_and_pictures(tmp_path: Path) -> None:
    sets = [made(), made(labels=[1, 0, 2, 2]), made().select([1, 0, 2, 3]), made().select([0, 1])]
    prints = [
        open_pictures(saved(rows, tmp_path / str(n))).fingerprint for n, rows in enumerate(sets)
    ]
    assert len(set(prints)) == 4 and prints[0].startswith("4 images sha256:")


@pytest.mark.parametrize("column", ["label", "labels", "cls"])
def test_a_column_of_integers_is_one_of_labels(column: str, tmp_path: Path) -> None:
    found = open_pictures(saved(made("integer", column=column), tmp_path / "set"))
    assert found.labels is not None and found.labels.tolist() == LABELS
    assert found.class_names == ("0", "1", "2")


def test_label_is_taken_before_another_column_of_classes(tmp_path: Path) -> None:
    import datasets

    other = ([0, 0, 0, 0], datasets.ClassLabel(names=["x"]))
    found = open_pictures(saved(made("integer").add_column("n", [1] * 4), tmp_path / "a"))
    assert found.labels is not None and found.labels.tolist() == LABELS
    both = open_pictures(saved(made("integer", coarse=other), tmp_path / "b"))
    assert both.labels is not None and both.labels.tolist() == LABELS
    only = open_pictures(saved(made("none", fine=other), tmp_path / "c"))
    assert only.class_names == ("x",)


def test_without_a_column_of_labels(tmp_path: Path) -> None:
    for kind in ("none", "words"):
        path = saved(made(kind), tmp_path / kind)
        refused(path, "no column of labels, only id, image, second")
        found = open_pictures(path, labelled=False)
        assert found.labels is None and found.class_names == () and len(found) == 4
        assert found.fingerprint.startswith("4 images")


def test_labels_that_are_none_or_no_class(tmp_path: Path) -> None:
    for number, (kind, labels, said) in enumerate(
        (
            ("class", [1, None, None, 0], "column label holds no label for 2 images"),
            ("class", [1, 0, -1, 0], "holds the label -1 in row 2, which is no class"),
            ("integer", [1, 0, 0, -7], "holds the label -7 in row 3, which is no class"),
            ("integer", [1, 10**6, 0, 0], "holds the label 1000000 in row 1, which is no class"),
        )
    ):
        path = saved(made(kind, labels), tmp_path / str(number))
        refused(path, said)
        if number < 2:
            assert open_pictures(path, labelled=False).labels is None
        else:
            refused(path, said, labelled=False)


def test_without_a_column_of_images(tmp_path: Path) -> None:
    rows = made().remove_columns(["image", "second"])
    refused(saved(rows, tmp_path / "set"), "no column of images, only id, label")


def test_without_rows(tmp_path: Path) -> None:
    made().select([]).save_to_disk(str(tmp_path / "set"), num_shards=1)
    refused(tmp_path / "set", "holds no images")
    refused(tmp_path / "set", "holds no images", labelled=False)
    (tmp_path / "file").mkdir()
    made().select([]).to_parquet(str(tmp_path / "file" / "a.parquet"))
    refused(tmp_path / "file", "the data set cannot be read")


def test_without_a_split_called_train(tmp_path: Path) -> None:
    import datasets

    parts = datasets.DatasetDict({"test": made(), "validation": made()})
    said = "no split `train`, only test, validation"
    refused(saved(parts, tmp_path / "set"), said)
    assert len(open_pictures(tmp_path / "set" / "test")) == 4
    (tmp_path / "files").mkdir()
    for name in ("validation", "test"):
        made().to_parquet(str(tmp_path / "files" / f"{name}-00000-of-00001.parquet"))
    refused(tmp_path / "files", said)


def test_an_image_that_lies_beside_the_set(tmp_path: Path) -> None:
    import datasets
    from pyarrow.parquet import write_table

    entries = [{"bytes": None, "path": f"{n}.png"} for n in range(2)]
    entries += [None, {"bytes": b"", "path": None}]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = datasets.Dataset.from_dict({"image": entries, "label": [0] * 4}, features)
    (tmp_path / "set").mkdir()
    write_table(rows.data.table, tmp_path / "set" / "a.parquet")  # its own writer wants the files
    (tmp_path / "set" / "0.png").write_bytes(png(3))
    found = open_pictures(tmp_path / "set")
    assert found.read(0) == png(3) and found.read(3) == b""
    for index, said in ((1, "there is no file .*1.png"), (2, "holds no image")):
        with pytest.raises(DataError, match=rf"image {index} cannot .*{said}.*set:row {index}"):
            found.read(index)
    assert found.fingerprint


def test_a_damaged_set(tmp_path: Path) -> None:
    for name in ("state.json", "dataset_info.json", "data-00000-of-00001.arrow"):
        path = saved(made(), tmp_path / name)
        (path / name).write_bytes((path / name).read_bytes()[:40])
        refused(path, "the data set cannot be read")
        (path / name).unlink()
        refused(path, "the data set cannot be read")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.parquet").write_bytes(b"PAR1 and more")
    refused(tmp_path / "other", "the data set cannot be read")
    (tmp_path / "dict").mkdir()
    (tmp_path / "dict" / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    refused(tmp_path / "dict", "the data set cannot be read")


def test_a_copy_is_told_and_the_library_is_not_heard(tmp_path: Path, caplog, capfd) -> None:
    import datasets

    before = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    caplog.set_level("INFO", logger="diffmoe")
    capfd.readouterr()
    open_pictures(parquet(made(), tmp_path / "set"))
    (line,) = caplog.messages
    assert line.startswith(f"{tmp_path / 'set'} is read from a copy of all its rows in ")
    assert str(tmp_path / "cache") in line
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.parquet").write_bytes(b"PAR1 and more, but no table")
    message = refused(tmp_path / "other", "the data set cannot be read")
    assert "generating the dataset" not in message  # which is what the library says of it
    read = [line for line in capfd.readouterr().err.splitlines() if "Creating parquet" not in line]
    assert "Generating" not in " ".join(read) and "Failed" not in " ".join(read)
    assert (datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()) == before
    caplog.clear()
    open_pictures(saved(made(), tmp_path / "saved"))
    assert not caplog.messages


def test_without_a_place_for_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    path = parquet(made(), tmp_path / "set")
    (tmp_path / "file").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "cache")
    with pytest.raises(StorageError, match=r"copy .* cannot .*file/cache — set HF_DATASETS_CACHE"):
        open_pictures(path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def full(*_: Any, **more: Any) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("an error occurred") from error

    monkeypatch.setattr(datasets.Dataset, "from_parquet", full)
    said = (
        r"the copy of the data set cannot be written \(No space left on device\) — .*/cache — set"
    )
    with pytest.raises(StorageError, match=said):
        open_pictures(path)


@pytest.mark.parametrize("way", WRITERS)
def test_the_state_of_rows_tells_which_of_them_changed(way: str, tmp_path: Path) -> None:
    import datasets

    contents = [png(shade) for shade in SHADES]
    before = open_pictures(WRITERS[way](made(), tmp_path / "a"))
    contents[2] += b"more"
    changed = ([{"bytes": content, "path": None} for content in contents], datasets.Image())
    after = open_pictures(WRITERS[way](made(image=changed), tmp_path / "b"))
    assert before.listing == after.listing
    for images in (range(1), range(1, 3), range(2, 4), range(4)):
        assert (before.state(images, ()) == after.state(images, ())) == (2 not in images)
    assert before.state(range(0), [1]) == after.state(range(0), [1])
    assert before.state(range(0), [2]) != after.state(range(0), [2])


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(made(), tmp_path / "set")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"datasets, which is not installed — pip install 'diffm"):
        open_pictures(path)


def test_training_reads_a_set(tmp_path: Path, make_config) -> None:
    source = open_source(make_config(saved(made(), tmp_path / "set")))
    assert source.load(1, False).shape == (1, 8, 8)
    assert ((source.load(1, False) + 1) * 127.5).round().unique().tolist() == [9]
    broken = made().add_column("label2", LABELS).remove_columns("image")
    source = open_source(make_config(saved(broken, tmp_path / "second")))
    assert ((source.load(3, False) + 1) * 127.5).round().unique().tolist() == [0]
