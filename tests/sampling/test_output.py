"""Images to files: whole folders in one rename, with the stamp that says how to make them."""

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from torch import Tensor

import trained
from children import fork, read_all
from diffmoe.checkpoint import LoadedRun, RunFolder
from diffmoe.config import SD_VAE, RunConfig
from diffmoe.errors import ConfigError, StorageError
from diffmoe.model import RoutingPlan
from diffmoe.sampling import (
    MACHINE,
    DrawnPart,
    ImageRequest,
    contact_sheet,
    generate,
    is_as_recorded,
    output_of,
    refuse_place,
    sampling_plan,
    stamp,
    to_picture,
)

IMAGES = torch.arange(3 * 64).view(3, 1, 8, 8).to(torch.uint8)
NAMES = [f"no. {label}" for label in range(10)]
STAMP = {"run": "digits", "sampling": {"steps": 4}}


def write_samples(
    path: Path,
    images: Tensor,
    labels: Sequence[int],
    seeds: Sequence[int],
    stamp: dict[str, Any],
    form: str = "png",
    size: int = 2,
) -> None:
    """Samples kept in parts of two images and put together."""
    asked, output = ImageRequest(labels, seeds, NAMES), output_of(form, None)
    with tempfile.TemporaryDirectory() as folder:
        parts = []
        for start in range(0, len(images), size):
            numbers = range(start, min(start + size, len(images)))
            parts.append(DrawnPart(Path(folder, str(start)), numbers))
            parts[-1].folder.mkdir()
            output.write_part(parts[-1].folder, images[start : start + size], numbers, asked)
        output.assemble(path, parts, asked, stamp)


def pixels(path: Path) -> Tensor:
    with Image.open(path) as picture:
        data = torch.tensor(list(picture.tobytes()), dtype=torch.uint8)
        return data.view(picture.height, picture.width, -1).squeeze(-1)


def test_a_folder_holds_images_a_sheet_and_their_record(tmp_path: Path) -> None:
    target = tmp_path / "samples" / "one"
    write_samples(target, IMAGES, [3, 3, 7], [0, 1, 2], STAMP)
    names = [f"00000{i}-class-{label}-seed-{i}.png" for i, label in enumerate((3, 3, 7))]
    assert sorted(path.name for path in target.iterdir()) == [*names, "samples.json", "sheet.png"]
    for image, name in zip(IMAGES, names, strict=True):
        assert torch.equal(pixels(target / name), image[0])
    record = json.loads((target / "samples.json").read_text())
    assert record["run"] == "digits" and record["sampling"] == {"steps": 4}
    content = (target / names[2]).read_bytes()
    held = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert record["images"][2] == {"file": names[2], "label": 7, "seed": 2, **held}
    assert [entry["file"] for entry in record["images"]] == names


def test_the_sheet_of_small_images_is_enlarged(tmp_path: Path) -> None:
    write_samples(tmp_path / "s", IMAGES, [3, 3, 7], [0, 1, 2], STAMP)
    sheet = pixels(tmp_path / "s" / "sheet.png")
    assert sheet.shape == (64 + 26 + 2 * 8, 3 * (64 + 8) + 8)
    assert torch.equal(sheet[8:72:8, 80:144:8], IMAGES[1, 0])


@pytest.mark.parametrize("side", [1, 2, 8, 17, 48, 63, 64, 200])
def test_a_tile_of_the_sheet_is_64_pixels_or_more(side: int, tmp_path: Path) -> None:
    write_samples(tmp_path / "s", torch.zeros(1, 3, side, side).byte(), [1], [0], STAMP)
    with Image.open(tmp_path / "s" / "sheet.png") as sheet:
        tile = sheet.width - 2 * 8
    assert tile % side == 0 and max(64, side) <= tile < max(64, side) + max(64, side)
    with Image.open(next((tmp_path / "s").glob("*seed*"))) as picture:
        assert picture.size == (side, side)  # single pictures keep their true size


def test_class_and_seed_stand_under_each_tile(tmp_path: Path) -> None:
    sheets = []
    for label, seed in ((3, 0), (4, 0), (3, 1), (3, 2**62), (3, 2**62)):
        write_samples(tmp_path / "s", IMAGES[:2], [label, 5], [seed, 5], STAMP)
        sheets.append(pixels(tmp_path / "s" / "sheet.png"))
    below = [sheet[72:98, 8:72] for sheet in sheets]
    for one, other in ((0, 1), (0, 2), (2, 3)):
        assert not torch.equal(below[one], below[other])
    assert torch.equal(below[3], below[4])
    assert all(torch.equal(sheet[:, 72:], sheets[0][:, 72:]) for sheet in sheets)  # none overlaps


def test_a_failure_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_samples(tmp_path / "s", IMAGES, [3, 3, 7], [0, 1, 2], {"bad": object()})
    assert list(tmp_path.iterdir()) == []


def test_a_failure_keeps_the_samples_of_before(tmp_path: Path) -> None:
    write_samples(tmp_path / "s", IMAGES, [3, 3, 7], [0, 1, 2], STAMP)
    before = {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()}
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_samples(tmp_path / "s", IMAGES, [3, 4, 7], [0, 1, 2], {"bad": object()})
    assert {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_samples_replace_samples(tmp_path: Path) -> None:
    write_samples(tmp_path / "s", IMAGES, [3, 3, 7], [0, 1, 2], STAMP)
    write_samples(tmp_path / "s", IMAGES[:1], [5], [9], STAMP)
    names = sorted(path.name for path in (tmp_path / "s").iterdir())
    assert names == ["000000-class-5-seed-9.png", "samples.json", "sheet.png"]


def written(path: Path) -> Path:
    write_samples(path, IMAGES, [3, 3, 7], [0, 1, 2], STAMP)
    return path


def tree(path: Path) -> dict[str, bytes | None]:
    return {str(p): p.read_bytes() if p.is_file() else None for p in path.rglob("*")}


def note(path: Path) -> None:
    (path / "notes.txt").write_text("a user's own")


def folder(path: Path) -> None:
    (path / "kept").mkdir()


def own_picture(path: Path) -> None:
    to_picture(IMAGES[0]).save(path / "000003-class-1-seed-1.png")  # as ours, but not recorded


def folder_of_our_name(path: Path) -> None:
    (path / "sheet.png").unlink()
    (path / "sheet.png").mkdir()


def record_of_another(path: Path) -> None:
    (path / "samples.json").write_text('{"images": [{"file": "a.png"}]}')


def record_with_another(path: Path) -> None:
    record = json.loads((path / "samples.json").read_text())
    record["images"].append({"file": "notes.txt"})
    (path / "samples.json").write_text(json.dumps(record))
    note(path)


def no_record(path: Path) -> None:
    (path / "samples.json").unlink()


def broken_record(path: Path) -> None:
    (path / "samples.json").write_bytes(b"\xff{")


FIRST = "000000-class-3-seed-0.png"
FOREIGN = [
    (note, "notes.txt"),
    (folder, "kept"),
    (own_picture, "000003-class-1-seed-1.png"),
    (folder_of_our_name, "sheet.png"),
    (record_of_another, FIRST),
    (record_with_another, FIRST),
    (no_record, FIRST),
    (broken_record, FIRST),
]


@pytest.mark.parametrize(("change", "named"), FOREIGN, ids=[c.__name__ for c, _ in FOREIGN])
def test_samples_never_replace_anything_else(
    change: Callable[[Path], None], named: str, tmp_path: Path
) -> None:
    place = written(tmp_path / "s")
    change(place)
    before = tree(tmp_path)
    for attempt in (refuse_place, written):
        with pytest.raises(StorageError, match=f"^{named} was not written by a sampling") as caught:
            attempt(place)
        assert str(place) in str(caught.value)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "content",
    ['{"shards": []}', '{"shards": [{"file": "a.tar"}]}', '{"images": 3, "shards": []}',
     "", "[]", "{}", '{"images": []}', '{"images": 3}', '{"images": [{}]}', '{"images": [[]]}',
     '{"images": [{"file": 3}]}', '{"images": [{"file": ["a"]}]}', "[" * 100_000],
    ids=lambda content: content[:30],
)  # fmt: skip
def test_a_record_of_something_else_is_not_replaced(content: str, tmp_path: Path) -> None:
    (tmp_path / "samples.json").write_text(content)
    with pytest.raises(StorageError, match=r"^samples\.json was not written by a sampling"):
        refuse_place(tmp_path)


def test_a_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    for attempt in (refuse_place, written):
        with pytest.raises(StorageError, match="file was not written by a sampling"):
            attempt(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "a file"


def test_samples_go_to_new_empty_and_old_places(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "new" / "below", tmp_path / "s", tmp_path / "s"):
        before = tree(tmp_path)
        refuse_place(place)
        assert tree(tmp_path) == before
        written(place)
    (tmp_path / "s" / FIRST).unlink()  # a picture less is nobody's loss
    assert len(list(written(tmp_path / "s").iterdir())) == 5


def test_the_folder_one_is_in_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for place in (Path(), tmp_path, Path("nowhere", "..")):
        with pytest.raises(StorageError, match=r"cannot replace the folder you are in .* below it"):
            refuse_place(place)
    assert not tree(tmp_path)


def test_a_link_or_a_mount_point_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("link", "dangling"):
        with pytest.raises(StorageError, match="cannot replace a link"):
            refuse_place(tmp_path / name)
    with pytest.raises(StorageError, match="nothing can be written here"):
        refuse_place(tmp_path / "dangling" / "below")
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "there")
    with pytest.raises(StorageError, match="cannot replace a mount point"):
        refuse_place(tmp_path / "there")


@pytest.mark.parametrize("place", ["file/s", "file/s/deeper", "/proc/s", "x" * 245])
def test_a_place_that_cannot_be_written_is_one_sentence(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for attempt in (refuse_place, written):
        with pytest.raises(StorageError, match="nothing can be written here"):
            attempt(tmp_path / place)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_sheet_of_many_images_shows_the_first(tmp_path: Path) -> None:
    images = (torch.arange(105) + 100).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    write_samples(tmp_path / "s", images, [0] * 105, range(105), STAMP)
    assert len(list((tmp_path / "s").glob("*seed*"))) == 105
    shape = (10 * (64 + 26 + 8) + 8, 10 * (64 + 8) + 8)
    assert pixels(tmp_path / "s" / "sheet.png").shape == shape


def test_the_contact_sheet_puts_every_pixel_in_its_place() -> None:
    images = torch.randint(0, 255, (5, 3, 4, 6), generator=torch.Generator().manual_seed(0))
    sheet = contact_sheet(images.to(torch.uint8), columns=3, gap=2)
    assert sheet.size == (3 * 8 + 2, 2 * 6 + 2) and sheet.mode == "RGB"
    found = torch.tensor(list(sheet.tobytes())).view(14, 26, 3)
    used = torch.zeros(14, 26, dtype=torch.bool)
    for index in range(5):
        top, left = 2 + index // 3 * 6, 2 + index % 3 * 8
        tile = found[top : top + 4, left : left + 6]
        assert torch.equal(tile, images[index].permute(1, 2, 0))
        used[top : top + 4, left : left + 6] = True
    assert (found[~used] == 255).all()


def test_a_picture_is_enlarged_by_whole_pixels() -> None:
    picture = to_picture(IMAGES[0], scale=3)
    assert picture.mode == "L" and picture.size == (24, 24)
    large = torch.tensor(list(picture.tobytes()), dtype=torch.uint8).view(24, 24)
    assert torch.equal(large, IMAGES[0, 0].repeat_interleave(3, 0).repeat_interleave(3, 1))


# --- one file of arrays --------------------------------------------------------------------------

COLOURED = torch.randint(0, 256, (5, 3, 8, 8), generator=torch.Generator().manual_seed(1)).byte()
LABELS = [3, 3, 7, 0, 9]


def array_file(path: Path, images: Tensor = COLOURED, **stamp: Any) -> Path:
    labels = LABELS[: len(images)]
    write_samples(path, images, labels, range(9, 9 + len(images)), STAMP | stamp, "npz")
    return path


def test_arrays_are_images_with_colours_last_and_their_labels(tmp_path: Path) -> None:
    with np.load(array_file(tmp_path / "s.npz")) as found:
        assert list(found) == ["arr_0", "arr_1"]
        images, labels = found["arr_0"], found["arr_1"]
    assert images.dtype == np.uint8 and images.shape == (5, 8, 8, 3)
    assert np.array_equal(images, COLOURED.permute(0, 2, 3, 1).numpy())
    assert labels.dtype == np.int64 and labels.tolist() == LABELS
    with np.load(array_file(tmp_path / "g.npz", IMAGES)) as found:
        grey = found["arr_0"]
    assert grey.shape == (3, 8, 8, 3)
    for channel in range(3):
        assert np.array_equal(grey[..., channel], IMAGES[:, 0].numpy())


def test_arrays_lie_in_the_file_as_they_are_in_memory(tmp_path: Path) -> None:
    """As a reader wants them that maps the file instead of reading it."""
    path = array_file(tmp_path / "s.npz")
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        entries = archive.infolist()
    assert [entry.filename for entry in entries] == ["arr_0.npy", "arr_1.npy"]
    assert all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    assert all(entry.date_time == (1980, 1, 1, 0, 0, 0) for entry in entries)
    values = COLOURED.permute(0, 2, 3, 1).numpy().tobytes()
    mapped = np.memmap(path, np.uint8, "r", path.read_bytes().index(values), (5, 8, 8, 3))
    assert np.array_equal(mapped, COLOURED.permute(0, 2, 3, 1).numpy())


def test_arrays_have_their_record_and_sheet_beside_them(tmp_path: Path) -> None:
    path = array_file(tmp_path / "s.npz")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s-sheet.png", "s.json", "s.npz"]
    record = json.loads((tmp_path / "s.json").read_text())
    assert record["run"] == "digits" and record["format"] == "npz"
    assert record["seeds"] == [9, 10, 11, 12, 13] and record["class_names"] == NAMES
    content = COLOURED.permute(0, 2, 3, 1).numpy().tobytes()
    assert record["pixels_sha256"] == hashlib.sha256(content).hexdigest()
    assert record["labels_sha256"] == hashlib.sha256(np.array(LABELS).tobytes()).hexdigest()
    assert record["bytes"] == path.stat().st_size
    sheet = pixels(tmp_path / "s-sheet.png")
    assert torch.equal(sheet[8:72:8, 8:72:8], COLOURED[0].permute(1, 2, 0))


def test_the_same_images_give_the_same_bytes(tmp_path: Path) -> None:
    one, other = (array_file(tmp_path / name).read_bytes() for name in ("a.npz", "b.npz"))
    assert one == other
    one, other = (shards(tmp_path / name) for name in ("a", "b"))
    assert tree_of(one) == tree_of(other)


def test_arrays_replace_arrays_and_nothing_else(tmp_path: Path) -> None:
    array_file(tmp_path / "s.npz")
    array_file(tmp_path / "s.npz", COLOURED[:2])
    with np.load(tmp_path / "s.npz") as found:
        assert len(found["arr_0"]) == 2
    for missing in ("s.npz", "s-sheet.png"):  # killed in between: the rest is ours all the same
        (tmp_path / missing).unlink()
        array_file(tmp_path / "s.npz")
    before = tree(tmp_path)
    with pytest.raises(TypeError, match="JSON serializable"):
        array_file(tmp_path / "t.npz", bad=object())
    assert tree(tmp_path) == before


def foreign_array(path: Path) -> str:
    np.savez(path / "s.npz", arr_0=np.zeros(3))
    return "s.npz"


def foreign_record(path: Path) -> str:
    array_file(path / "s.npz")
    (path / "s.json").write_text('{"format": "npz"}')
    return "s.npz"


def foreign_text(path: Path) -> str:
    (path / "s.json").write_text("[]")
    return "s.json"


def foreign_sheet(path: Path) -> str:
    (path / "s-sheet.png").touch()
    return "s-sheet.png"


def folder_of_its_name(path: Path) -> str:
    array_file(path / "s.npz")
    (path / "s.npz").unlink()
    (path / "s.npz").mkdir()
    return "s.npz"


@pytest.mark.parametrize(
    "change", [foreign_array, foreign_record, foreign_text, foreign_sheet, folder_of_its_name]
)
def test_arrays_never_replace_anything_else(change: Callable[[Path], str], tmp_path: Path) -> None:
    named = change(tmp_path)
    before = tree(tmp_path)
    for attempt in (output_of("npz", None).refuse, array_file):
        with pytest.raises(StorageError, match=f"^{named} was not written by a sampling"):
            attempt(tmp_path / "s.npz")
    assert tree(tmp_path) == before


def test_a_linked_array_is_not_replaced(tmp_path: Path) -> None:
    array_file(tmp_path / "s.npz").rename(tmp_path / "there.npz")
    (tmp_path / "s.npz").symlink_to("there.npz")
    with pytest.raises(StorageError, match="cannot replace a link"):
        array_file(tmp_path / "s.npz")


def own_file(path: Path) -> None:
    """A user's own array where samples were once: of the same size, or of another."""
    np.savez(path, arr_0=np.zeros((5, 8, 8, 3), np.uint8), arr_1=np.array(LABELS))


def other_sampling(path: Path) -> None:
    other = path.with_name("other") / path.name
    shutil.copy(array_file(other, 255 - COLOURED), path)
    shutil.rmtree(other.parent)


def other_labels(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    write_samples(path, COLOURED, LABELS[::-1], range(5), STAMP, "npz")
    assert len(content) == path.stat().st_size and content != path.read_bytes()


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


OTHER_ARRAYS = [own_file, other_sampling, other_labels, cut_off, flipped]


@pytest.mark.parametrize("change", OTHER_ARRAYS)
def test_an_array_that_its_record_does_not_describe_is_not_replaced(
    change: Callable[[Path], None], tmp_path: Path
) -> None:
    path, output = array_file(tmp_path / "s.npz", request="r"), output_of("npz", None)
    assert output.is_written(path, "r") and not output.is_written(path, "q")
    assert is_as_recorded(path) is True
    text = (tmp_path / "s.json").read_text()
    change(path)
    (tmp_path / "s.json").write_text(text)
    assert is_as_recorded(path) is False and not output.is_written(path, "r")
    before = tree(tmp_path)
    for attempt in (output.refuse, array_file):
        with pytest.raises(StorageError, match=r"^s\.npz is not what s\.json describes") as caught:
            attempt(path)
        assert "remove it" in str(caught.value)
    assert tree(tmp_path) == before


def test_an_array_without_a_record_of_a_sampling_is_told_from_a_wrong_one(tmp_path: Path) -> None:
    path = array_file(tmp_path / "s.npz")
    assert is_as_recorded(tmp_path / "s.json") is None  # no images
    for text in ("{", "[]", '{"format": "npz"}'):
        (tmp_path / "s.json").write_text(text)
        assert is_as_recorded(path) is None
    (tmp_path / "s.json").unlink()
    assert is_as_recorded(path) is None and is_as_recorded(tmp_path / "none.npz") is None
    array_file(tmp_path / "t.npz").unlink()
    assert is_as_recorded(tmp_path / "t.npz") is False


class Full:
    """Stands for a function that finds the disk full when it is called the n-th time."""

    def __init__(self, honest: Callable[..., Any], number: int) -> None:
        self.honest, self.left = honest, number

    def __call__(self, *given: Any, **more: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.honest(*given, **more)


@pytest.mark.parametrize(
    ("module", "name", "number"),
    [
        ("sampling.output.arrays", "_write_arrays", 0),
        ("sampling.output.arrays", "_sheet", 0),
        ("sampling.output.arrays", "write_record", 0),
        ("checkpoint.files", "flush", 0),
        ("checkpoint.files", "flush", 2),
        ("checkpoint.files", "_new_aside", 2),
    ],
)
def test_a_full_disk_keeps_the_array_of_before(
    module: str, name: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array_file(tmp_path / "s.npz")
    before = tree(tmp_path)
    place = sys.modules[f"diffmoe.{module}"]
    monkeypatch.setattr(place, name, Full(getattr(place, name), number))
    with pytest.raises(StorageError, match=r"cannot write s\.npz \(No space left on device\)"):
        array_file(tmp_path / "s.npz", 255 - COLOURED)
    assert tree(tmp_path) == before and is_as_recorded(tmp_path / "s.npz") is True


def killed_at_rename(number: int, path: Path, images: Tensor) -> None:
    """Write arrays in a child that is killed before its n-th rename."""

    def work(_: int) -> None:
        honest, left = Path.replace, [number]

        def rename(source: Path, target: Path) -> Path:
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return honest(source, target)

        Path.replace = rename  # type: ignore[assignment,method-assign]
        array_file(path, images)

    child, pipe = fork(work)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    read_all(pipe)


@pytest.mark.parametrize("older", [False, True], ids=["new", "replaced"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_kill_between_the_three_files_of_an_array_is_seen_and_mended(
    number: int, older: bool, tmp_path: Path
) -> None:
    path, wanted = tmp_path / "a" / "s.npz", tmp_path / "b" / "s.npz"
    if older:
        array_file(path)
    killed_at_rename(number, path, 255 - COLOURED)
    seen = is_as_recorded(path)
    assert seen is ((number == 0) if older else None)  # the old one stands, or none does
    killed_at_rename(0, path, COLOURED[:2])  # and once more, as it is mended by another
    output_of("npz", None).refuse(path)
    array_file(path, 255 - COLOURED)
    array_file(wanted, 255 - COLOURED)
    assert tree_of(path.parent) == tree_of(wanted.parent) and is_as_recorded(path) is True


def test_a_record_set_aside_is_no_leave_to_replace_another_file(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    killed_at_rename(0, path, COLOURED)
    assert not path.exists()
    own_file(path)
    before = tree(tmp_path)
    with pytest.raises(StorageError, match=r"^s\.npz is not what s\.json describes"):
        array_file(path)
    path.unlink()
    (tmp_path / "s.json").write_text("{}")
    with pytest.raises(StorageError, match=r"^s\.json was not written by a sampling"):
        array_file(path)
    (tmp_path / "s.json").unlink()
    own_file(path)
    assert tree(tmp_path) == before


def test_a_part_that_lacks_an_image_makes_no_array(tmp_path: Path) -> None:
    asked, output = ImageRequest([1, 2], [0, 1], NAMES), output_of("npz", None)
    (tmp_path / "part").mkdir()
    output.write_part(tmp_path / "part", COLOURED[:1], range(1), asked)
    part = DrawnPart(tmp_path / "part", range(2))
    with pytest.raises(StorageError, match="a part holds 1 images instead of 2"):
        output.assemble(tmp_path / "s.npz", [part], asked, STAMP)
    assert [path.name for path in tmp_path.iterdir()] == ["part"]


# --- shards --------------------------------------------------------------------------------------


def tree_of(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.iterdir()}


def shards(path: Path, images: Tensor = COLOURED) -> Path:
    labels = (LABELS * 201)[: len(images)]
    write_samples(path, images, labels, range(9, 9 + len(images)), STAMP, "webdataset", 150)
    return path


def test_a_shard_holds_picture_class_and_facts_of_each_image(tmp_path: Path) -> None:
    path = shards(tmp_path / "s")
    assert sorted(tree_of(path)) == ["samples.json", "shard-000000.tar", "sheet.png"]
    with tarfile.open(path / "shard-000000.tar") as shard:
        members = shard.getmembers()
        content = {m.name: shard.extractfile(m).read() for m in members}  # type: ignore[union-attr]
    keys = [f"{image:06d}" for image in range(5)]
    assert list(content) == [f"{key}.{end}" for key in keys for end in ("png", "cls", "json")]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in members} == {(0, 0, 0, "", 0o644)}
    for image, key in enumerate(keys):
        (tmp_path / "one.png").write_bytes(content[f"{key}.png"])
        assert torch.equal(pixels(tmp_path / "one.png"), COLOURED[image].permute(1, 2, 0))
        label = LABELS[image]
        assert content[f"{key}.cls"] == str(label).encode()
        facts = {"label": label, "seed": 9 + image, "class_name": f"no. {label}"}
        assert json.loads(content[f"{key}.json"]) == facts


def test_a_shard_holds_a_thousand_images(tmp_path: Path) -> None:
    path = shards(tmp_path / "s", COLOURED[:1, :1, :1, :1].expand(1003, -1, -1, -1))
    record = json.loads((path / "samples.json").read_text())
    assert [entry["images"] for entry in record["shards"]] == [1000, 3]
    for number, entry in enumerate(record["shards"]):
        assert entry["file"] == f"shard-{number:06d}.tar"
        content = (path / entry["file"]).read_bytes()
        assert entry["bytes"] == len(content)
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
    with tarfile.open(path / "shard-000001.tar") as shard:
        assert shard.getnames()[0] == "001000.png" and len(shard.getnames()) == 9


def test_folders_of_samples_replace_each_other(tmp_path: Path) -> None:
    for make in (shards, written, shards):
        make(tmp_path / "s")
    note(tmp_path / "s")
    with pytest.raises(StorageError, match=r"^notes\.txt was not written by a sampling"):
        shards(tmp_path / "s")


# --- folders as they were recorded ---------------------------------------------------------------


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def gone(path: Path) -> None:
    path.unlink()


def in_its_place(path: Path) -> None:
    """Another file of the sampling, of the same size for shards of nothing but their classes."""
    other = next(p for p in sorted(path.parent.glob(f"*{path.suffix}")) if p != path)
    path.write_bytes(other.read_bytes())


@pytest.mark.parametrize("form", ["png", "webdataset"])
@pytest.mark.parametrize("change", [emptied, gone, in_its_place, cut_off, flipped])
def test_a_folder_that_is_not_as_recorded_is_not_written_and_is_replaced(
    change: Callable[[Path], None], form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["diffmoe.sampling.output.folders"], "_SHARD", 2)
    path, output = tmp_path / "s", output_of(form, None)

    def write() -> None:
        write_samples(path, COLOURED, LABELS, range(5), STAMP | {"request": "r"}, form)

    write()
    assert is_as_recorded(path) is True
    assert output.is_written(path, "r") and not output.is_written(path, "q")
    before = tree(path)
    change(sorted(path.glob("0*" if form == "png" else "*.tar"))[1])
    assert is_as_recorded(path) is False and not output.is_written(path, "r")
    write()
    assert tree(path) == before


def test_a_look_at_a_large_folder_reads_some_files_and_a_verification_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    module = sys.modules["diffmoe.sampling.output.checks"]
    honest = module.digest  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "digest", lambda file: (read.append(file.name), honest(file))[1])
    images = torch.zeros(200, 1, 1, 1).byte()
    write_samples(tmp_path / "s", images, [0] * 200, range(200), {"request": "r"})
    assert output_of("png", None).is_written(tmp_path / "s", "r")
    assert len(set(read)) == len(read) == 64
    assert (read[0][:6], read[-1][:6]) == ("000000", "000199")
    read.clear()
    assert is_as_recorded(tmp_path / "s") is True and len(set(read)) == 200


def test_a_folder_of_other_things_has_no_record(tmp_path: Path) -> None:
    assert is_as_recorded(tmp_path) is None and is_as_recorded(tmp_path / "none") is None
    path = shards(tmp_path / "s")
    (path / "more.tar").write_bytes(b"")  # would be read with the others
    assert is_as_recorded(path) is False
    path = written(tmp_path / "p")
    note(path)  # beside pictures, which are taken by name
    assert is_as_recorded(path) is True
    record = json.loads((path / "samples.json").read_text())
    for entry in record["images"]:
        del entry["sha256"]
    (path / "samples.json").write_text(json.dumps(record))
    assert is_as_recorded(path) is None  # it does not tell
    record_of_another(path)
    assert is_as_recorded(path) is None


def test_a_part_that_does_not_say_what_its_pictures_are_is_one_sentence(tmp_path: Path) -> None:
    asked, output = ImageRequest([1, 2], [0, 1], NAMES), output_of("png", None)
    (tmp_path / "part").mkdir()
    output.write_part(tmp_path / "part", IMAGES[:2], range(2), asked)
    part = DrawnPart(tmp_path / "part", range(2))
    for break_it in (emptied, gone):
        break_it(tmp_path / "part" / "pictures.json")
        with pytest.raises(StorageError, match="a part does not say what its pictures are"):
            output.assemble(tmp_path / "s", [part], asked, STAMP)
    assert [path.name for path in tmp_path.iterdir()] == ["part"]


# --- formats -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "out", "found"),
    [
        (None, None, "png"),
        (None, "here", "png"),
        (None, "here.npz", "npz"),
        (None, "v1.5", "png"),
        ("npz", None, "npz"),
        ("npz", "here.NPZ", "npz"),
        ("webdataset", "here", "webdataset"),
    ],
)
def test_a_format_is_named_or_told_by_the_suffix(
    name: str | None, out: str | None, found: str
) -> None:
    assert output_of(name, out and Path(out)).name == found  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "out", "said"),
    [
        (
            "npz",
            "here",
            "format npz writes one file, and here is not called so — use --out here.npz",
        ),
        ("png", "here.npz", "format png writes a folder, and here.npz is called as a file — use"),
        ("webdataset", "here.tar", "format webdataset writes a folder, and here.tar is called"),
        ("jpeg", None, "format jpeg is unknown — use png, npz, webdataset"),
    ],
)
def test_a_format_that_contradicts_the_place_is_refused(
    name: str, out: str | None, said: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        output_of(name, out and Path(out))  # type: ignore[arg-type]


# --- the stamp -----------------------------------------------------------------------------------


def loaded(path: Path, config: RunConfig) -> LoadedRun:
    known = {"codec": "pixels", "data": "digits of 1998"}
    return LoadedRun(
        RunFolder(path / "demo"), config, trained.network(config), 1300, "ema", "abc", known
    )


def test_the_stamp_says_how_an_image_was_made(tmp_path: Path) -> None:
    config = trained.config(sampler="heun", steps=125, guidance=1.5)
    facts = stamp(loaded(tmp_path, config), config.sampling, images=3, decoder="pixels")
    assert facts["run"] == "demo" and facts["step"] == 1300
    assert facts["weights"] == "ema" and facts["weights_sha256"] == "abc"
    assert facts["trained_on"] == {"codec": "pixels", "data": "digits of 1998"}
    assert facts["decoder"] == "pixels" and facts["count"] == 3
    assert facts["evaluations"] == 250
    for field in ("sampler", "steps", "guidance", "guidance_pool", "selection", "policy", "batch"):
        assert facts["sampling"][field] == getattr(config.sampling, field)
    assert facts["torch"] == torch.__version__ and facts["diffmoe"]
    assert facts["numpy"] == np.__version__ and facts["pillow"] == PIL.__version__
    assert not facts.keys() & {"diffusers", "device", "device_name"}
    json.dumps(facts)


def test_the_stamp_says_what_computed_an_image(tmp_path: Path) -> None:
    config = replace(trained.config(), codec=SD_VAE)
    run, machine = loaded(tmp_path, trained.config()), {"device": "cuda", "device_name": "a GPU"}
    facts = stamp(replace(run, config=config), config.sampling, machine=machine)
    assert facts["device"] == "cuda" and facts["device_name"] == "a GPU"
    assert facts["diffusers"] == version("diffusers")
    assert set(MACHINE) <= facts.keys()


@pytest.mark.parametrize(
    ("settings", "images", "pool"),
    [
        ({"selection": "pool", "batch": 6, "pool_images": 2}, 100, 2),
        ({"selection": "pool", "batch": 6}, 100, 6),
        ({"selection": "pool", "batch": 6}, 4, 4),
        ({"selection": "pool", "batch": 6}, None, 6),
        ({"selection": "token", "batch": 6}, 100, None),
        ({"selection": "image", "batch": 6}, 100, None),
    ],
    ids=str,
)
def test_the_stamp_says_how_many_images_competed(
    settings: dict[str, Any], images: int | None, pool: int | None, tmp_path: Path
) -> None:
    config = trained.config(**settings)
    assert stamp(loaded(tmp_path, config), config.sampling, images=images)["pool_images"] == pool


def test_the_stamped_pool_is_the_one_that_competed(monkeypatch: pytest.MonkeyPatch) -> None:
    """`pool` selection without a size: all images of a batch, however many were asked for."""
    plans: list[RoutingPlan] = []

    def planned(*args: Any, **more: Any) -> RoutingPlan:
        plans.append(sampling_plan(*args, **more))
        return plans[-1]

    monkeypatch.setattr(sys.modules["diffmoe.sampling.generate"], "sampling_plan", planned)
    config = trained.config(selection="pool", batch=4, steps=1)
    generate(trained.network(config), config, [1] * 6, range(6))
    pools = [plan.pool_of_image for plan in plans if len(plan.pool_of_image or ()) in (4, 2)]
    assert (0, 0, 0, 0) in pools and (0, 0) in pools
