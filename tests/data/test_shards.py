"""WebDataset shards: keys, labels and the errors of each, beside a slow reading of them."""

import json
import tarfile
from pathlib import Path

import pytest

from data.packing import png, refused, tar_of
from diffmoe.data import Pictures, open_pictures, open_source
from diffmoe.errors import DataError

Files = list[tuple[str, bytes]]


def sample(key: str, label: int, extension: str = "png") -> Files:
    return [(f"{key}.{extension}", png(label)), (f"{key}.cls", str(label).encode())]


def two(folder: Path) -> Path:
    """Two shards whose names and keys are not in order."""
    folder.mkdir(exist_ok=True)
    tar_of(folder / "b-1.tar", sample("0001", 2) + sample("0000", 4, "JPEG"))
    tar_of(folder / "a-0.tar", sample("x/7", 1, "webp") + sample("x/3", 0))
    return folder


def slow(folder: Path) -> list[tuple[bytes, int]]:
    """Picture and label of each sample, by name of shard and key."""
    found = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            content = {n: archive.extractfile(n).read() for n in archive.getnames()}  # type: ignore[union-attr]
        for key in sorted({name.rpartition(".")[0] for name in content}):
            (picture,) = (v for n, v in content.items() if n.startswith(key) and n[-3:] != "cls")
            found.append((picture, int(content[f"{key}.cls"])))
    return found


def read(pictures: Pictures) -> list[tuple[bytes, int]]:
    assert pictures.labels is not None
    return [(pictures.read(i), label) for i, label in enumerate(pictures.labels.tolist())]


def test_shards_are_read_in_the_order_of_their_names_and_keys(tmp_path: Path) -> None:
    found = open_pictures(two(tmp_path / "set"))
    assert isinstance(found, Pictures) and read(found) == slow(tmp_path / "set")
    assert found.class_names == ("0", "1", "2", "3", "4")
    assert found.name(0) == f"{tmp_path}/set/a-0.tar:x/3.png"


def test_one_shard_is_a_set(tmp_path: Path) -> None:
    folder = two(tmp_path / "set")
    (folder / "b-1.tar").unlink()
    assert read(open_pictures(folder / "a-0.tar")) == read(open_pictures(folder))


def test_the_fingerprint_is_that_of_keys_labels_and_pictures(tmp_path: Path) -> None:
    before = open_pictures(two(tmp_path / "set")).fingerprint
    assert before.startswith("4 images sha256:")
    moved = (tmp_path / "set").rename(tmp_path / "moved")
    assert open_pictures(moved).fingerprint == before
    tar_of(moved / "a-0.tar", [*sample("x/7", 1, "webp"), *sample("x/3", 3)])
    assert open_pictures(moved).fingerprint != before


def test_a_key_ends_at_the_first_dot_of_the_base_name(tmp_path: Path) -> None:
    files = [
        ("v1.0/a.png", png(1)),
        ("v1.0/a.seg.png", png(9)),
        ("v1.0/a.cls", b"1\n"),
        ("v1.0/a.txt", b"a caption"),
        ("__meta.json", b"[]"),
        ("./v1.0/.a.cls", b"hidden"),
    ]
    found = open_pictures(tar_of(tmp_path / "a.tar", files))
    assert read(found) == [(png(1), 1)]


@pytest.mark.parametrize("field", ["label", "cls"])
@pytest.mark.parametrize("value", [3, "3"])
def test_a_label_in_json(field: str, value: object, tmp_path: Path) -> None:
    note = json.dumps({field: value, "width": 9}).encode()
    path = tar_of(tmp_path / "a.tar", [("a.json", note), ("a.png", png(1))])
    assert read(open_pictures(path)) == [(png(1), 3)]


def test_cls_comes_before_json_in_any_order(tmp_path: Path) -> None:
    files = [("a.png", png(1)), ("a.json", b'{"label": 3}'), ("a.cls", b"2")]
    for order in (files, files[::-1]):
        assert read(open_pictures(tar_of(tmp_path / "a.tar", order))) == [(png(1), 2)]


def test_classes_are_named_by_a_file_beside_the_shards(tmp_path: Path) -> None:
    folder = two(tmp_path / "set")
    names = ["tench, fish", '"quoted"', "é", "d", "e", "unused"]
    (folder / "classes.txt").write_text("\n".join(names), encoding="utf-8")
    assert open_pictures(folder).class_names == tuple(names)
    (folder / "classes.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match=r"classes\.txt names 2 classes, the labels use 5"):
        open_pictures(folder)
    (folder / "classes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"classes\.txt is no text"):
        open_pictures(folder)


def test_shards_that_sampling_wrote_keep_the_names_of_its_record(tmp_path: Path) -> None:
    folder = two(tmp_path / "set")
    (folder / "sheet.png").write_bytes(png(0))
    names = ["a, b", "é", "c", "d", "e", "f"]
    for content, found in (
        ({"shards": [], "class_names": names}, tuple(names)),
        ({"shards": [], "class_names": names[:2]}, tuple("01234")),
        ({"shards": [], "class_names": 3}, tuple("01234")),
        ({"shards": [], "class_names": [1] * 9}, tuple("01234")),
        ([], tuple("01234")),
    ):
        (folder / "samples.json").write_text(json.dumps(content))
        pictures = open_pictures(folder)
        assert read(pictures) == slow(folder) and pictures.class_names == found
    (folder / "samples.json").write_text("{")
    assert open_pictures(folder).class_names == tuple("01234")
    (folder / "samples.json").write_text(json.dumps({"class_names": names}))
    (folder / "classes.txt").write_text("\n".join("vwxyz"))
    assert open_pictures(folder).class_names == tuple("vwxyz")


def test_pictures_without_labels(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    path = tar_of(tmp_path / "set" / "a.tar", [*sample("b", 1), ("a.png", png(2))])
    refused(path, "sample a has no label")
    found = open_pictures(path, labelled=False)
    assert found.labels is None and found.class_names == () and found.read(0) == png(2)
    tar_of(path, [("a.png", png(2))])
    assert open_pictures(tmp_path / "set", labelled=False).labels is None
    refused(path, "holds 1 images but no class sub-folder")


BAD: list[tuple[Files, str]] = [
    ([("a.cls", b"")], "has the label '', which is no integer"),
    ([("a.cls", b"x")], "has the label 'x', which is no integer"),
    ([("a.cls", b"1.0")], r"has the label '1\.0', which is no integer"),
    ([("a.cls", b"1_0")], "has the label '1_0', which is no integer"),
    ([("a.cls", "\u0663".encode())], "has the label .*which is no integer"),
    ([("a.cls", b"\xff\xfe")], "has the label .*which is no integer"),
    ([("a.cls", b"9" * 5000)], "has the label .*which is no integer"),
    ([("a.cls", b"-1")], "has the label -1, which is no class"),
    ([("a.cls", b"1000000")], "has the label 1000000, which is no class"),
    ([("a.cls", b" " * (2**20 + 1))], "has a label of 1,048,577 bytes"),
    ([("a.json", b"{")], r"has a \.json that cannot be read"),
    ([("a.json", b"[" * 100_000)], r"has a \.json that cannot be read"),
    ([("a.json", b"[3]")], "has no label"),
    ([("a.json", b"{}")], "has no label"),
    ([("a.json", b'{"label": null}')], "has no label"),
    ([("a.json", b'{"label": 1.5}')], r"has the label 1\.5, which is no integer"),
    ([("a.json", b'{"label": true}')], "has the label True, which is no integer"),
    ([("a.json", b'{"label": [1]}')], r"has the label \[1\], which is no integer"),
    ([("a.cls", b"1"), ("a.jpg", png(2))], "has two pictures"),
]


@pytest.mark.parametrize(("files", "said"), BAD)
def test_a_bad_label_is_named(files: Files, said: str, tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", [("a.png", png(1)), *files])
    assert refused(path, f"sample a {said}").count("a.cls") == 1


def test_two_members_of_one_name(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", sample("k", 1) + sample("k", 1))
    refused(path, r"holds 2 members called k\.(png|cls)")


def test_the_last_shard_was_cut(tmp_path: Path) -> None:
    path = two(tmp_path / "set") / "b-1.tar"
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(DataError, match=r"damaged or cut off \(.*b-1\.tar"):
        open_pictures(tmp_path / "set")


def test_shards_without_pictures(tmp_path: Path) -> None:
    tar_of(tmp_path / "a.tar", [("a.cls", b"1")])
    refused(tmp_path, "holds no images")
    refused(tmp_path, "holds no images", labelled=False)


def test_classes_in_folders_win_over_an_archive_beside_them(images: Path) -> None:
    before = open_pictures(images).fingerprint
    tar_of(images / "a.tar", sample("a", 1))
    assert open_pictures(images).fingerprint == before


def test_training_reads_shards(tmp_path: Path, make_config) -> None:
    source = open_source(make_config(two(tmp_path / "set")))
    assert source.labels.tolist() == [0, 1, 4, 2] and source.load(1, False).shape == (1, 8, 8)


def test_a_folder_without_pictures_beside_shards_hides_none_of_them(tmp_path: Path) -> None:
    folder = two(tmp_path / "shards")
    wanted = read(open_pictures(folder))
    (folder / "a-latents").mkdir()
    (folder / "a-latents" / "cache.json").write_text("{}")
    assert read(open_pictures(folder)) == wanted
