"""Images to files: whole folders in one rename, with the stamp that says how to make them."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

import trained
from diffmoe.checkpoint import LoadedRun, RunFolder
from diffmoe.errors import StorageError
from diffmoe.sampling import contact_sheet, stamp, to_picture, write_samples

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
    assert sheet.shape == (8 * (8 + 4), 8 * (3 * 10 + 2))
    assert torch.equal(sheet[::8, ::8][2:10, 12:20], IMAGES[1, 0])


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


def test_samples_never_replace_anything_else(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    (tmp_path / "file").write_text("a file")
    for name in ("thesis", "file"):
        with pytest.raises(StorageError, match=f"something else than samples .* {name}|{name}"):
            write_samples(tmp_path / name, IMAGES, [3, 3, 7], [0, 1, 2], STAMP)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"
    assert (tmp_path / "file").read_text() == "a file"
    (tmp_path / "empty").mkdir()
    write_samples(tmp_path / "empty", IMAGES, [3, 3, 7], [0, 1, 2], STAMP)


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        write_samples(tmp_path / "file" / "s", IMAGES, [3, 3, 7], [0, 1, 2], STAMP)


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


def test_the_stamp_says_how_an_image_was_made(tmp_path: Path) -> None:
    config = trained.config(sampler="heun", steps=125, guidance=1.5)
    run = LoadedRun(
        RunFolder(tmp_path / "demo"), config, trained.network(config), 1300, "ema", "abc"
    )
    facts = stamp(run, config.sampling)
    assert facts["run"] == "demo" and facts["step"] == 1300
    assert facts["weights"] == "ema" and facts["weights_sha256"] == "abc"
    assert facts["evaluations"] == 250
    for field in ("sampler", "steps", "guidance", "guidance_pool", "selection", "policy", "batch"):
        assert facts["sampling"][field] == getattr(config.sampling, field)
    assert facts["torch"] == torch.__version__ and facts["diffmoe"]
    json.dumps(facts)
