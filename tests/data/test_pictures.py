"""Pictures in folders, records of samples and archives: order, labels, and every kind of damage."""

import hashlib
import io
import json
import logging
import multiprocessing
import os
import pickle
import struct
import tarfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from data.packing import files_of, png, tar_of, zip_of
from diffmoe.data import Pictures, open_pictures, open_source
from diffmoe.errors import ConfigError, DataError, DiffMoEError

PACKERS: dict[str, Callable[..., Path]] = {
    "images.tar": tar_of,
    "pax.tar": lambda path, files: tar_of(path, files, format=tarfile.PAX_FORMAT),
    "gnu.tar": lambda path, files: tar_of(path, files, format=tarfile.GNU_FORMAT),
    "images.zip": zip_of,
    "stored.zip": lambda path, files: zip_of(path, files, zipfile.ZIP_STORED),
    "no-ending": tar_of,
}
CLASSES = [
    ("train/dog/1.png", png(1)),
    ("train/cat/b.jpg", png(2)),
    ("train/cat/a.png", png(3)),
    ("train/dog/more/0.webp", png(4)),
]
packers = pytest.mark.parametrize("kind", PACKERS)
both = pytest.mark.parametrize("kind", ["images.tar", "images.zip"])


def packed(kind: str, folder: Path, files: list[tuple[str, bytes]]) -> Path:
    return PACKERS[kind](folder / kind, files)


def shown(pictures: Pictures) -> list[tuple[str, int | None]]:
    """Last part of the name, and label, of each picture."""
    labels = [None] * len(pictures) if pictures.labels is None else pictures.labels.tolist()
    names = [pictures.name(index).rpartition("/")[2] for index in range(len(pictures))]
    return list(zip(names, labels, strict=True))


def refused(path: Path, said: str, *, labelled: bool = True, kind: type = DataError) -> str:
    with pytest.raises(kind, match=said) as caught:
        open_pictures(path, labelled=labelled)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


# ---- folders


def slow_fingerprint(folder: Path) -> str:
    """Number of images, and the hash of labels, paths, sizes and the contents of all."""
    classes = sorted(p for p in folder.iterdir() if p.is_dir())
    paths = [p for c in classes for p in sorted(c.iterdir())]
    assert len(paths) <= 64
    labels = [classes.index(path.parent) for path in paths]
    parts = [
        struct.pack(f"<{len(paths)}q", *labels),
        b"\0".join(path.relative_to(folder).as_posix().encode() for path in paths),
        struct.pack(f"<{len(paths)}q", *(path.stat().st_size for path in paths)),
        *(path.read_bytes()[:65536] for path in paths),
    ]
    text = b"".join(struct.pack("<Q", len(part)) + part for part in parts)
    return f"{len(paths)} images sha256:{hashlib.sha256(text).hexdigest()[:16]}"


def test_the_fingerprint_of_a_folder_is_its_definition(images: Path) -> None:
    (images / "dog" / "large.png").write_bytes(bytes(70_000))
    assert open_pictures(images).fingerprint == slow_fingerprint(images)


def test_a_folder_gives_its_files(images: Path) -> None:
    pictures = open_pictures(images)
    assert isinstance(pictures, Pictures) and pictures.class_names == ("bird", "cat", "dog")
    assert pictures.name(7) == str(images / "cat" / "1.png")
    assert pictures.read(7) == (images / "cat" / "1.png").read_bytes()


def test_a_class_that_is_no_text_can_be_shown(tmp_path: Path) -> None:
    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")  # noqa: PTH102 - bytes
    (tmp_path / os.fsdecode(b"caf\xe9") / "1.png").write_bytes(png(1))
    pictures = open_pictures(tmp_path)
    assert pictures.class_names == (r"caf\udce9",) and pictures.read(0) == png(1)


def test_without_labels_loose_pictures_will_do(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", ".hidden.png", "note.txt"):
        (tmp_path / name).write_bytes(png(9))
    pictures = open_pictures(tmp_path, labelled=False)
    assert shown(pictures) == [("a.png", None), ("b.png", None)] and pictures.class_names == ()
    assert pictures.fingerprint.startswith("2 images sha256:")
    (tmp_path / "empty").mkdir()
    assert len(open_pictures(tmp_path, labelled=False)) == 2
    refused(tmp_path, "holds 2 images but no class sub-folder")


def test_without_need_classes_are_still_given(images: Path) -> None:
    (images / "sheet.png").write_bytes(png(1))
    (images / "cow").mkdir()
    found = open_pictures(images, labelled=False)
    assert found.class_names == ("bird", "cat", "dog") and len(found) == 22


def test_a_place_without_pictures(tmp_path: Path) -> None:
    assert "data.path" not in refused(tmp_path, "the path holds no images", labelled=False)
    gone = tmp_path / "gone"
    refused(gone, "the path does not exist", labelled=False, kind=ConfigError)
    refused(gone, "the path does not exist", kind=ConfigError)


# ---- what sampling wrote


def record(folder: Path, entries: object, **more: object) -> Path:
    for name in ("000000.png", "000001.png", "sheet.png"):
        (folder / name).write_bytes(png(len(name)))
    (folder / "samples.json").write_text(json.dumps({"images": entries, **more}))
    return folder


def entries(*labels: object) -> list[dict[str, object]]:
    return [{"file": f"{i:06d}.png", "label": label, "seed": i} for i, label in enumerate(labels)][
        ::-1
    ]


def test_a_record_names_the_samples_their_order_and_labels(tmp_path: Path) -> None:
    pictures = open_pictures(record(tmp_path, entries(3, 1)))
    assert shown(pictures) == [("000001.png", 1), ("000000.png", 3)]
    assert pictures.class_names == ("0", "1", "2", "3")
    before = pictures.fingerprint
    record(tmp_path, entries(3, 2))
    assert open_pictures(tmp_path).fingerprint != before


def test_a_record_may_name_its_classes(tmp_path: Path) -> None:
    names = ["a, b", 'the "c"', "d"]
    pictures = open_pictures(record(tmp_path, entries(0, 1), class_names=names))
    assert pictures.class_names == tuple(names)


def test_a_record_without_a_label_has_none(tmp_path: Path) -> None:
    record(tmp_path, entries(3, None))
    pictures = open_pictures(tmp_path, labelled=False)
    assert shown(pictures) == [("000001.png", None), ("000000.png", None)]
    assert pictures.class_names == ()
    refused(tmp_path, r"samples\.json holds no label for 1 images")


def test_a_sample_that_is_gone_is_named_when_it_is_read(tmp_path: Path) -> None:
    pictures = open_pictures(record(tmp_path, entries(0, 1)))
    (tmp_path / "000001.png").unlink()
    with pytest.raises(DataError, match=r"image 0 .*No such file.*000001\.png"):
        pictures.read(0)
    assert pictures.fingerprint


BAD_RECORDS: list[tuple[object, dict[str, object], str]] = [
    (3, {}, "is no record of images"),
    ([3], {}, "is no record of images"),
    ([], {}, "holds no images"),
    ([{"label": 3}], {}, "an image without a file"),
    ([{"file": "a\0b", "label": 3}], {}, "an image without a file"),
    ([{"file": "../a.png", "label": 3}], {}, r"'\.\./a\.png', which lies outside"),
    ([{"file": "/a.png", "label": 3}], {}, "which lies outside"),
    (2 * [{"file": "a.png", "label": 3}], {}, "names a file twice"),
    (entries(-1), {}, "the label -1, which is no class"),
    (entries(10**9), {}, "the label 1000000000, which is no class"),
    (entries("x" * 99), {}, "which is no class"),
    (entries(True), {}, "the label True, which is no class"),
    (entries(1.0), {}, r"the label 1\.0, which is no class"),
    (entries(2), {"class_names": ["a", "b"]}, "names 2 classes, the labels use 3"),
    (entries(0), {"class_names": "abc"}, "class_names that are no list"),
    (entries(0), {"class_names": [1]}, "class_names that are no list"),
]


@pytest.mark.parametrize(("images", "more", "said"), BAD_RECORDS)
def test_a_bad_record(images: object, more: dict[str, object], said: str, tmp_path: Path) -> None:
    refused(record(tmp_path, images, **more), said)


@pytest.mark.parametrize("text", [b"{", b"\xff\xfe", b"[" * 10**5])
def test_a_damaged_record(text: bytes, tmp_path: Path) -> None:
    record(tmp_path, []).joinpath("samples.json").write_bytes(text)
    refused(tmp_path, r"samples\.json cannot be read")


def test_a_record_beside_classes_is_passed_over(images: Path) -> None:
    before = open_pictures(images).fingerprint
    (images / "samples.json").write_text("[]")
    assert open_pictures(images).fingerprint == before


# ---- what some of the pictures are told apart by


@pytest.mark.parametrize("kind", ["folder", "images.zip", "images.tar"])
@pytest.mark.parametrize("larger", [True, False])
def test_a_state_tells_which_pictures_changed(
    larger: bool, kind: str, images: Path, tmp_path: Path
) -> None:
    """Another size is always seen, another content in those that are looked into."""

    def opened() -> Pictures:
        whole = kind == "folder"
        return open_pictures(images if whole else packed(kind, tmp_path, files_of(images)))

    before, paths = opened(), [Path(open_pictures(images).name(n)) for n in range(8)]
    whole = range(len(before))
    parts = [range(first, min(first + 3, len(before))) for first in whole[::3]]
    parts_of = {few: [[n for n in few if n in part] for part in parts] for few in ((), whole)}
    states = {
        few: [before.state(*pair) for pair in zip(parts, own, strict=True)]
        for few, own in parts_of.items()
    }
    assert before.state(whole, whole) == before.fingerprint
    for index, path in enumerate(paths):
        content = path.read_bytes()
        path.write_bytes(content + b"more" if larger else bytes(len(content)))
        after = opened()
        assert after.listing == before.listing and after.fingerprint != before.fingerprint
        for few, own in parts_of.items():
            found = [after.state(*pair) for pair in zip(parts, own, strict=True)]
            changed = [n for n in range(len(parts)) if found[n] != states[few][n]]
            assert changed == ([index // 3] if larger or few else [])
        path.write_bytes(content)


def test_a_listing_is_that_of_names_and_labels(images: Path) -> None:
    before = open_pictures(images).listing
    (images / "cat" / "1.png").rename(images / "cat" / "10.png")
    renamed = open_pictures(images).listing
    (images / "cat" / "10.png").rename(images / "dog" / "0.png")
    moved = open_pictures(images).listing
    (images / "dog" / "0.png").unlink()
    fewer = open_pictures(images).listing
    assert len({before, renamed, moved, fewer}) == 4


# ---- archives


@packers
def test_an_archive_has_the_order_labels_and_fingerprint_of_its_folder(
    kind: str, images: Path, tmp_path: Path
) -> None:
    (images / "cat" / "sub").mkdir()
    (images / "cat" / "sub" / "é ü.png").write_bytes(png(7))
    (images / "dog" / "large.png").write_bytes(bytes(70_000))
    (images / "cat" / ("n" * 150 + ".png")).write_bytes(png(8))
    folder = open_pictures(images)
    for prefix in ("", "./", "deep/train/"):
        found = open_pictures(packed(kind, tmp_path, files_of(images, prefix)))
        assert found.class_names == folder.class_names
        assert torch.equal(found.labels, folder.labels) and found.labels.dtype == torch.int64
        assert found.fingerprint == folder.fingerprint
        assert all(found.read(i) == folder.read(i) for i in range(len(folder)))


@packers
def test_names_and_order_in_an_archive(kind: str, tmp_path: Path) -> None:
    path = packed(kind, tmp_path, CLASSES)
    found = open_pictures(path)
    assert isinstance(found, Pictures) and found.class_names == ("cat", "dog")
    assert shown(found) == [("a.png", 0), ("b.jpg", 0), ("1.png", 1), ("0.webp", 1)]
    assert found.name(0) == f"{path}:train/cat/a.png"
    assert [found.read(index) for index in range(4)] == [png(3), png(2), png(1), png(4)]


@both
def test_what_is_no_picture_or_hidden_is_passed_over(kind: str, tmp_path: Path) -> None:
    others = [
        ("train/cat/note.txt", b"x"),
        ("train/.cache/a.png", png(1)),
        ("train/cat/._a.png", b"x"),
        ("__MACOSX/train/cat/._a.png", b"x"),
        ("train/sheet.png", png(1)),
    ]
    found = open_pictures(packed(kind, tmp_path, others + CLASSES))
    assert shown(found) == [("a.png", 0), ("b.jpg", 0), ("1.png", 1), ("0.webp", 1)]


@both
def test_pictures_of_one_folder(kind: str, tmp_path: Path) -> None:
    path = packed(kind, tmp_path, [("all/cats/b.png", png(1)), ("all/cats/a.png", png(2))])
    found = open_pictures(path)
    assert found.class_names == ("cats",) and shown(found) == [("a.png", 0), ("b.png", 0)]
    (tmp_path / "plain" / "cats").mkdir(parents=True)
    for name, shade in (("b", 1), ("a", 2)):
        (tmp_path / "plain" / "cats" / f"{name}.png").write_bytes(png(shade))
    assert found.fingerprint == open_pictures(tmp_path / "plain").fingerprint
    free = open_pictures(path, labelled=False)
    assert shown(free) == [("a.png", None), ("b.png", None)] and free.class_names == ()
    assert (
        free.fingerprint == open_pictures(tmp_path / "plain" / "cats", labelled=False).fingerprint
    )


@both
def test_loose_pictures_in_an_archive(kind: str, tmp_path: Path) -> None:
    path = packed(kind, tmp_path, [("b.png", png(1)), ("a.png", png(2))])
    refused(path, "holds 2 images but no class sub-folder")
    assert shown(open_pictures(path, labelled=False))[0] == (f"{path.name}:a.png", None)


@both
def test_an_archive_without_pictures(kind: str, tmp_path: Path) -> None:
    for files in ([], [("cat/note.txt", b"x")], [("cat/.hidden.png", png(1))]):
        path = packed(kind, tmp_path, files)
        refused(path, r"the path holds no images \(png")
        refused(path, "the path holds no images", labelled=False)


@both
def test_two_members_of_one_name(kind: str, tmp_path: Path) -> None:
    for twin in ("cat/1.png", "./cat//1.png", "../cat/1.png"):
        files = [("cat/1.png", png(1)), ("dog/1.png", png(1)), (twin, png(2))]
        if kind == "images.zip" and twin == "cat/1.png":
            with pytest.warns(UserWarning, match="Duplicate"):
                path = packed(kind, tmp_path, files)
        else:
            path = packed(kind, tmp_path, files)
        refused(path, r"holds 2 members called cat/1\.png")


@both
def test_names_that_lead_out_are_names_only(kind: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    files = [("../../cat/1.png", png(1)), ("/etc/../dog/1.png", png(2))]
    found = open_pictures(packed(kind, tmp_path / "in", files))
    assert found.class_names == ("cat", "etc") and found.read(0) == png(1)
    assert [path.name for path in tmp_path.rglob("*")] == ["in", kind]


def test_links_and_devices_are_no_pictures(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name, content in CLASSES:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)
        for number, kind in enumerate(kinds):
            entry = tarfile.TarInfo(f"train/cat/link{number}.png")
            entry.type, entry.linkname = kind, "/etc/passwd"
            archive.addfile(entry)
    with caplog.at_level(logging.WARNING):
        assert len(open_pictures(path)) == 4
    assert "4 links in" in caplog.text
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("cat/1.png", png(1))
        link = zipfile.ZipInfo("cat/2.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    assert len(open_pictures(tmp_path / "a.zip")) == 1


@pytest.mark.parametrize("mode", ["gz", "bz2", "xz"])
def test_a_compressed_tar_is_refused(mode: str, tmp_path: Path) -> None:
    path = tar_of(tmp_path / f"a.tar.{mode}", CLASSES, f"w:{mode}")
    message = refused(path, "compressed as a whole, so no image", kind=ConfigError)
    assert "unpack it to a .tar" in message


def test_every_cut_of_a_tar_is_seen(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", CLASSES)
    whole = path.read_bytes()
    end = len(whole.rstrip(b"\0"))
    mark = -(-end // 512) * 512
    for length in [*range(256, mark, 256), end - 1, mark, mark + 100]:
        path.write_bytes(whole[:length])
        refused(path, "the archive is damaged or cut off")
    path.write_bytes(whole[: mark + 512])
    assert len(open_pictures(path)) == 4


def test_a_damaged_header_does_not_end_a_tar(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", CLASSES)
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        places = [entry.offset for entry in archive]
    for place in places:
        path.write_bytes(whole[:place] + b"\xff" * 200 + whole[place + 200 :])
        refused(path, "the archive is damaged or cut off")


def test_every_cut_of_a_zip_is_seen(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", CLASSES)
    whole = path.read_bytes()
    for length in range(4, len(whole), 37):
        path.write_bytes(whole[:length])
        refused(path, "the archive is damaged or cut off")


def damage(path: Path, content: bytes) -> None:
    """Change the middle of where some content lies in a file."""
    whole = path.read_bytes()
    place = whole.index(content) + len(content) // 2
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])


def test_a_member_of_a_zip_that_was_changed_is_named(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", CLASSES, zipfile.ZIP_STORED)
    damage(path, png(2))
    found = open_pictures(path)
    with pytest.raises(
        DataError, match=r"image 1 .*not those that were packed.*a\.zip:train/cat/b"
    ):
        found.read(1)
    assert found.read(0) == png(3) and found.fingerprint


def test_a_deflated_member_that_was_changed_is_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(999)
    path = zip_of(tmp_path / "a.zip", [("cat/1.png", noise + bytes(9999))])
    found, whole = open_pictures(path), path.read_bytes()
    for place in range(40, 1000, 31):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        with pytest.raises(DataError, match=r"image 0 cannot be read \((its|the archive)"):
            found.read(0)


@both
def test_an_archive_that_shrank_or_went_is_named(kind: str, tmp_path: Path) -> None:
    path = packed(kind, tmp_path, CLASSES)
    found = open_pictures(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"image 3 .*the archive ends before it.*0\.webp"):
        found.read(3)
    path.write_bytes(bytes(9999))
    if kind == "images.zip":
        with pytest.raises(DataError, match=r"image 3 .*archive is damaged before it"):
            found.read(3)
    path.unlink()
    with pytest.raises(DataError, match=r"image 3 .*No such file"):
        found.read(3)
    assert found.fingerprint


def test_a_damaged_picture_in_an_archive_is_named(tmp_path: Path, make_config) -> None:
    files = [("cat/1.png", png(1)[:-30]), ("cat/2.png", b"")]
    for name in ("images.tar", "images.zip"):
        source = open_source(make_config(packed(name, tmp_path, files)))
        with pytest.raises(DataError, match=rf"image 0 cannot .*truncated.*{name}:cat/1\.png"):
            source.load(0, False)
        with pytest.raises(DataError, match=rf"image 1 .*is empty.*{name}:cat/2\.png"):
            source.load(1, False)


def test_an_encrypted_zip(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", CLASSES)
    whole = bytearray(path.read_bytes())
    for name, _ in CLASSES[2:]:  # the flag in the directory at the end
        whole[whole.rindex(name.encode()) - 46 + 8] |= 1
    path.write_bytes(whole)
    refused(path, r"train/cat/a\.png is encrypted")


def test_a_zip_packed_otherwise(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", CLASSES, zipfile.ZIP_LZMA)
    refused(path, r"train/dog/1\.png is packed by method 14")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", [("cat/1.png", bytes(10**6)), ("cat/2.png", png(1))])
    whole = path.read_bytes()
    size = struct.pack("<I", 10**6)
    path.write_bytes(whole.replace(size, struct.pack("<I", 2**29)))
    with pytest.raises(DataError, match=r"image 0 .*536,870,912 bytes are too many.*a\.zip:cat/1"):
        open_pictures(path).read(0)
    path.write_bytes(whole.replace(size, struct.pack("<I", 1000)))  # unpacks to more than it says
    with pytest.raises(DataError, match="not those that were packed"):
        open_pictures(path).read(0)


def test_a_member_that_unpacks_to_more_than_it_says_takes_no_memory(tmp_path: Path) -> None:
    size = 10**8
    path = zip_of(tmp_path / "a.zip", [("cat/1.png", bytes(size))])
    packed = path.read_bytes()
    path.write_bytes(packed.replace(struct.pack("<I", size), struct.pack("<I", 1000)))
    found = open_pictures(path)
    tracemalloc.start()
    with pytest.raises(DataError, match="not those that were packed"):
        found.read(0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**7


def test_a_stored_member_of_another_size_than_the_directory_says(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", [("cat/1.png", png(1))], zipfile.ZIP_STORED)
    whole = bytearray(path.read_bytes())
    place = whole.rindex(b"PK\1\2") + 24  # the size of the content in the directory
    whole[place : place + 4] = struct.pack("<I", 7)
    path.write_bytes(whole)
    with pytest.raises(DataError, match="not those that were packed"):
        open_pictures(path).read(0)


def test_a_large_member_of_a_tar_is_refused_unread(tmp_path: Path) -> None:
    path, size = tmp_path / "a.tar", 2**28 + 1
    entry = tarfile.TarInfo("cat/1.png")
    entry.size = size
    with path.open("wb") as file:  # a hole in the file: nothing of it is stored
        file.write(entry.tobuf())
        file.truncate(512 + -(-size // 512) * 512 + 1024)
    with pytest.raises(DataError, match=r"image 0 .*268,435,457 bytes are too many"):
        open_pictures(path).read(0)


def test_a_member_with_holes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    entry = tarfile.TarInfo("cat/1.png")
    entry.type = tarfile.GNUTYPE_SPARSE
    with tarfile.open(path, "w") as archive:
        archive.addfile(entry)
    refused(path, r"cat/1\.png is stored with holes")


@pytest.mark.parametrize("content", [b"no archive", b"x" * 5000, b"\x89PNG\r\n\x1a\n", bytes(99)])
def test_a_file_that_is_no_archive(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    refused(tmp_path / "file", "the path is a file and no archive", kind=ConfigError)
    (tmp_path / "file.tar").write_bytes(content)
    refused(tmp_path / "file.tar", "the archive is damaged or cut off")
    (tmp_path / "file.zip").write_bytes(content)
    refused(tmp_path / "file.zip", "is a file and no archive", kind=ConfigError)


def test_an_archive_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tar_of(tmp_path / "a.tar", CLASSES)

    def closed(path: Path, *others: object, **more: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", closed)
    refused(path, r"cannot be read \(Permission denied\)")


FILES = Path("/proc/self/fd")


@pytest.mark.skipif(not FILES.exists(), reason="open files cannot be counted here")
def test_reading_leaves_no_file_open(images: Path, tmp_path: Path) -> None:
    before = len(list(FILES.iterdir()))
    bad = [("cat/bad.png", png(1)[:-9])]
    for path in (images, *(packed(kind, tmp_path, CLASSES + bad) for kind in PACKERS)):
        found = open_pictures(path)
        for index in range(len(found)):
            found.read(index)
    assert len(list(FILES.iterdir())) == before


def _sum(found: Pictures, results: "multiprocessing.Queue[list[int]]") -> None:
    results.put([sum(found.read(index)) for index in range(len(found))])


@both
def test_another_process_reads_the_same(kind: str, tmp_path: Path) -> None:
    found = open_pictures(packed(kind, tmp_path, CLASSES))
    here = [sum(found.read(index)) for index in range(4)]
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    children = [context.Process(target=_sum, args=(found, results)) for _ in range(2)]
    for child in children:
        child.start()
    assert [results.get(timeout=60) for _ in children] == [here, here]
    for child in children:
        child.join()
    copy = pickle.loads(pickle.dumps(found))
    assert [sum(copy.read(index)) for index in range(4)] == here


@both
def test_an_index_is_small_and_quick_to_hand_over(kind: str, tmp_path: Path) -> None:
    count = 20_000
    files = [(f"class{n % 10}/image{n:06}.png", b"x") for n in range(count)]
    path = packed(kind, tmp_path, files)
    start = time.process_time()
    found = open_pictures(path)
    assert len(found) == count and time.process_time() - start < 10
    held = [getattr(found, name) for name in ("_names", "_inside")]
    total = sum(len(names._block) + names._ends.nbytes for names in held) + found._table.nbytes
    assert total < 120 * count
    assert not any(isinstance(value, list | dict) for value in vars(found).values())


def test_training_reads_an_archive_as_its_folder(images: Path, tmp_path: Path, make_config) -> None:
    folder = open_source(make_config(images))
    for kind in ("images.tar", "images.zip"):
        source = open_source(make_config(packed(kind, tmp_path, files_of(images))))
        assert source.fingerprint == folder.fingerprint
        assert source.class_names == folder.class_names
        for index in (0, 8, 21):
            assert torch.equal(source.load(index, True), folder.load(index, True))


def test_every_error_is_ours(tmp_path: Path) -> None:
    """Random changes of bytes: a sentence or pictures, never another exception."""
    random = np.random.default_rng(0)
    for kind in ("images.tar", "images.zip"):
        path = packed(kind, tmp_path, CLASSES)
        whole = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        for _ in range(150):
            changed = whole.copy()
            places = random.integers(0, len(whole), 3)
            if random.random() < 0.7:
                places[0] = len(whole) - 1 - random.integers(0, min(300, len(whole)))
            changed[places] = random.integers(0, 256, 3)
            path.write_bytes(changed.tobytes())
            try:
                found = open_pictures(path)
                for index in range(len(found)):
                    found.read(index)
            except DiffMoEError as error:
                assert "\n" not in str(error)
