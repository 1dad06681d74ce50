"""Images to files: whole folders in one rename, with the stamp that says how to make them."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import trained
from diffmoe.checkpoint import LoadedRun, RunFolder
from diffmoe.config import RunConfig
from diffmoe.errors import StorageError
from diffmoe.model import RoutingPlan
from diffmoe.sampling import (
    contact_sheet,
    generate,
    refuse_place,
    sampling_plan,
    stamp,
    to_picture,
    write_samples,
)

IMAGES = torch.arange(3 * 64).view(3, 1, 8, 8).to(torch.uint8)
STAMP = {"run": "digits", "sampling": {"steps": 4}}


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
    assert record["images"][2] == {"file": names[2], "label": 7, "seed": 2}
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
    with pytest.raises(ValueError, match="zip"):
        write_samples(tmp_path / "s", IMAGES, [3, 3], [0, 1, 2], STAMP)
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
    ["", "[]", "{}", '{"images": []}', '{"images": 3}', '{"images": [{}]}', '{"images": [[]]}',
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
    json.dumps(facts)


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
