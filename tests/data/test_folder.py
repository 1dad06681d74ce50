"""A folder of images: how it is numbered, and a sentence for each folder that is none."""

import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffmoe.data import ImageSource, decode_image, open_pictures, open_source
from diffmoe.errors import ConfigError, DataError, ExitCode


def opened(folder: Path, channels: int = 3, side: int = 8) -> ImageSource:
    return ImageSource(open_pictures(folder), channels=channels, side=side)


def path(source: ImageSource, index: int) -> Path:
    return Path(source.pictures.name(index))


def test_classes_and_images_are_in_the_order_of_their_names(images: Path) -> None:
    source = opened(images)
    assert source.class_names == ("bird", "cat", "dog")
    assert source.labels.tolist() == [0] * 6 + [1] * 7 + [2] * 9
    assert source.labels.dtype == torch.int64
    assert (len(source), source.shape, source.encoded) == (22, (3, 8, 8), False)
    assert path(source, 7) == images / "cat" / "1.png"


def test_an_image_is_read_and_mirrored(images: Path) -> None:
    source = opened(images)
    image = source.load(8, False)
    assert torch.equal(image, decode_image(path(source, 8).read_bytes(), "", 8, channels=3, side=8))
    assert torch.equal(source.load(8, True), image.flip(-1))


def test_extensions_nesting_and_hidden_names(images: Path) -> None:
    picture = Image.new("RGB", (9, 9), "red")
    (images / "cat" / "more").mkdir()
    for name in ("more/deep.JPEG", "big.JPG", "a.webp", "b.bmp", "é ü.png", ".hidden.png"):
        picture.save(images / "cat" / name)
    (images / "cat" / "notes.txt").write_text("no image")
    (images / ".cache").mkdir()
    picture.save(images / "loose.png")
    source = opened(images)
    assert len(source) == 22 + 5
    assert source.class_names == ("bird", "cat", "dog")
    read = {path(source, i).name for i in range(len(source)) if source.load(i, False) is not None}
    assert {"deep.JPEG", "big.JPG", "a.webp", "b.bmp", "é ü.png"} < read


def test_a_damaged_image_is_named_with_its_index(images: Path) -> None:
    (images / "cat" / "3.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"image 9 cannot be read .*empty.*cat.3\.png"):
        opened(images).load(9, False)


def test_a_dead_link_and_a_deleted_image_are_named(images: Path) -> None:
    (images / "bird" / "gone.png").symlink_to(images / "nowhere.png")
    source = opened(images)
    index = [path(source, i).name for i in range(len(source))].index("gone.png")
    with pytest.raises(DataError, match=rf"image {index} .*No such file.*gone\.png"):
        source.load(index, False)


def test_a_pipe_is_no_image(images: Path) -> None:
    os.mkfifo(images / "cat" / "pipe.png")
    assert len(opened(images)) == 22


def test_a_loop_of_links_ends(images: Path) -> None:
    (images / "cat" / "again").symlink_to(images)
    assert len(opened(images)) == 22


def test_a_linked_class_is_a_class(images: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "elsewhere" / "0.png")
    (images / "emu").symlink_to(tmp_path / "elsewhere")
    assert opened(images).class_names == ("bird", "cat", "dog", "emu")


def test_a_folder_without_images(tmp_path: Path, make_config) -> None:
    with pytest.raises(DataError, match=r"data\.path holds no images \(png, jpg, .*each class"):
        open_source(make_config(tmp_path))
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match=r"data\.path holds no images") as caught:
        open_source(make_config(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert caught.value.exit_code == ExitCode.BAD_DATA == 3


def test_a_folder_without_class_sub_folders(tmp_path: Path, make_config) -> None:
    for name in "ab":
        Image.new("RGB", (9, 9)).save(tmp_path / f"{name}.png")
    with pytest.raises(DataError, match=r"holds 2 images but no class sub-folder.*of their own"):
        open_source(make_config(tmp_path))


def test_an_empty_class_is_named(images: Path, make_config) -> None:
    (images / "cow").mkdir()
    with pytest.raises(DataError, match="class 'cow' holds no images") as caught:
        open_source(make_config(images))
    assert caught.value.exit_code == ExitCode.BAD_DATA


def test_an_unset_absent_or_wrong_path(tmp_path: Path, make_config) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "text").write_text("no archive")
    os.mkfifo(tmp_path / "pipe")
    for path, pieces in (
        (None, r"data\.path is not set — set --data\.path to a folder"),
        (tmp_path / "nowhere", r"data\.path does not exist — .*nowhere — set --data\.path"),
        (tmp_path / "file", r"data\.path is an empty file — .*file — set --data\.path"),
        (tmp_path / "text", r"data\.path is a file and no archive — .*text — set --data\.path"),
        (tmp_path / "text" / "x", r"data\.path does not exist — .*text/x — set --data\.path"),
        (tmp_path / "pipe", r"data\.path is neither file nor folder — .*pipe — set --data\.path"),
    ):
        with pytest.raises(ConfigError, match=pieces) as caught:
            open_source(make_config(path))
        assert caught.value.exit_code == ExitCode.BAD_INPUT


def test_a_folder_that_may_not_be_read(images: Path, make_config, monkeypatch) -> None:
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    said = r"data\.path cannot be read \(Permission denied\) — .*images.* — check its permissions"
    with pytest.raises(DataError, match=said):
        open_source(make_config(images))
    monkeypatch.undo()
    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(DataError, match=said):
        open_source(make_config(images))


def test_a_path_may_be_words(images: Path, make_config) -> None:
    assert len(open_source(make_config(str(images)))) == 22


def test_the_home_folder_may_be_abbreviated(images: Path, make_config, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(images.parent))
    assert len(open_source(make_config(Path("~/images")))) == 22


def test_more_classes_than_the_model_knows(images: Path, make_config) -> None:
    message = r"model\.num_classes 2 is less than the 3 classes .* set --model\.num-classes 3"
    with pytest.raises(ConfigError, match=message):
        open_source(make_config(images, num_classes=2))
    assert len(open_source(make_config(images, num_classes=3))) == 22


def test_fewer_classes_than_the_model_knows_are_told(
    images: Path, make_config, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        open_source(make_config(images, num_classes=3))
        assert not caplog.text
        open_source(make_config(images, num_classes=5))
    assert "samples of 3 classes, fewer than model.num_classes 5" in caplog.text


# ---- what the images are, wherever they lie


def fingerprint(folder: Path) -> str:
    return opened(folder).fingerprint


def test_a_fingerprint_is_that_of_the_images_not_of_their_place(
    images: Path, tmp_path: Path
) -> None:
    before = fingerprint(images)
    assert re.fullmatch("22 images sha256:[0-9a-f]{16}", before)
    shutil.copytree(images, tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("*"):
        os.utime(path, (0, 0))
    (tmp_path / "copy" / "cat" / "notes.txt").write_text("no image")
    assert fingerprint(tmp_path / "copy") == before
    linked = tmp_path / "linked"
    linked.symlink_to(images)
    assert fingerprint(linked) == before
    assert opened(images, channels=1, side=4).fingerprint == before


CHANGES: dict[str, Callable[[Path], object]] = {
    "gone": lambda p: (p / "cat" / "6.png").unlink(),
    "more": lambda p: shutil.copy(p / "cat" / "6.png", p / "cat" / "7.png"),
    "renamed": lambda p: (p / "cat" / "6.png").rename(p / "cat" / "9.png"),
    "another label": lambda p: (p / "cat" / "6.png").rename(p / "dog" / "9.png"),
    "another size": lambda p: (p / "cat" / "6.png").write_bytes(b"12"),
    "class renamed": lambda p: (p / "cat").rename(p / "cats"),
    "swapped": lambda p: swap(p / "cat" / "5.png", p / "cat" / "6.png"),
    "same size": lambda p: repaint(p / "cat" / "6.png"),
}


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def repaint(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"\1")


@pytest.mark.parametrize("change", CHANGES)
def test_other_images_have_another_fingerprint(change: str, images: Path) -> None:
    before = fingerprint(images)
    CHANGES[change](images)
    assert fingerprint(images) != before


def test_of_many_images_every_size_and_some_contents_count(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for number in range(1000):
        (tmp_path / "a" / f"{number:04}.png").write_bytes(b"%04d" % number)
    before = fingerprint(tmp_path)
    (tmp_path / "a" / "0501.png").write_bytes(b"12345")
    assert fingerprint(tmp_path) != before
    (tmp_path / "a" / "0501.png").write_bytes(b"0501")
    for number in range(400, 450):
        (tmp_path / "a" / f"{number:04}.png").write_bytes(b"????")
    assert fingerprint(tmp_path) != before


def test_a_fingerprint_leaves_unreadable_images_to_their_reader(images: Path) -> None:
    source = opened(images)
    (images / "bird" / "0.png").unlink()
    (images / "bird" / "1.png").unlink()
    (images / "bird" / "1.png").symlink_to(images / "nowhere.png")
    assert source.fingerprint.startswith("22 images")


def test_channels_that_no_image_has(images: Path, make_config) -> None:
    with pytest.raises(ConfigError, match=r"model\.channels 4 does not fit images"):
        open_source(make_config(images, channels=4, out_channels=4))


def test_pictures_without_labels_are_nothing_to_train_on(images: Path) -> None:
    loose = open_pictures(images / "cat", labelled=False)
    with pytest.raises(
        ConfigError, match="pictures without labels or captions are nothing to train on"
    ):
        ImageSource(loose, channels=3, side=8)


def test_images_have_the_channels_of_the_model(images: Path, make_config) -> None:
    assert open_source(make_config(images)).shape == (1, 8, 8)
    assert open_source(make_config(images, channels=3, out_channels=3)).shape == (3, 8, 8)


def test_images_beside_the_classes_are_told(images: Path, caplog: pytest.LogCaptureFixture) -> None:
    count = len(opened(images))
    assert not caplog.records
    for name in ("loose.png", "other.jpg", "notes.txt"):
        (images / name).write_bytes(b"x")
    assert len(opened(images)) == count
    assert "2 images beside the class folders of" in caplog.text
