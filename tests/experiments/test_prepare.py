"""Images encoded once: the same training, whoever did the work and however often it was killed."""

import errno
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from autoencoders import autoencoder, codec_config
from children import fork, kill
from diffmoe.checkpoint import load
from diffmoe.cli import main
from diffmoe.codec import Autoencoder, open_autoencoder
from diffmoe.config import FolderData, RunConfig
from diffmoe.data import CacheSource, ImageSource, open_pictures, open_source
from diffmoe.errors import (
    ConfigError,
    DataError,
    DiffMoEError,
    ExitCode,
    StoppedError,
    StorageError,
)
from diffmoe.experiments import PreparedCache, prepare, sample
from diffmoe.experiments.loss import DenoisingLoss
from diffmoe.experiments.preparing import work as work_module
from diffmoe.training import train
from runs import newest_tensors, run_config

# A machine with one core is warned that two workers are many.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")

COUNTS = {"bird": 20, "cat": 23, "dog": 7}  # 50 images: shards of 16 are 3 and a small one
TOTAL = sum(COUNTS.values())


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("network") / "autoencoder"
    autoencoder().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures") / "photos"
    for label, (name, count) in enumerate(COUNTS.items()):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            random = np.random.default_rng([label, number])
            pixels = random.integers(0, 256, (9, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02d}.png")
    return folder


@pytest.fixture
def copied(pictures: Path, tmp_path: Path) -> Path:
    """Images to damage."""
    shutil.copytree(pictures, tmp_path / "copied")
    return tmp_path / "copied"


@pytest.fixture
def make(pictures: Path, network: str, tmp_path: Path) -> Callable[..., PreparedCache]:
    """Prepares the images into a folder."""

    def run(name: str = "cache", data: Path = pictures, **changes: Any) -> PreparedCache:
        options = {"side": 8, "shard": 16, "device": "cpu", "progress": False} | changes
        return prepare(data, network, out=tmp_path / name, **options)

    return run


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """An autoencoder that takes its time, for processes to meet in it."""
    quick = Autoencoder.moments

    def moments(self: Autoencoder, pixels: torch.Tensor) -> torch.Tensor:
        time.sleep(0.1)
        return quick(self, pixels)

    monkeypatch.setattr(Autoencoder, "moments", moments)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def run_on(data: Path, network: str, **changes: Any) -> RunConfig:
    small = {
        "model__input_size": 4,
        "model__channels": 5,
        "model__out_channels": 5,
        "model__num_classes": 3,
        "loop__steps": 3,
        "loop__checkpoint_every": 1,
    }
    return replace(
        run_config(**small | changes), data=FolderData(path=data), codec=codec_config(network)
    )


# ---- the same training


@pytest.mark.parametrize(("micro", "workers", "error"), [(16, 0, 0), (16, 2, 0), (8, 0, 1e-6)])
def test_training_from_a_cache_is_training_from_its_images(
    micro: int, workers: int, error: float, make, pictures: Path, network: str, tmp_path: Path
) -> None:
    """Bit for bit where training encodes as many images at once as the cache did."""
    cache = make().path
    both = {"from images": pictures, "from cache": cache}
    for name, data in both.items():
        config = run_on(data, network, machine__workers=workers, machine__micro_batch=micro)
        train(config, tmp_path / name, progress=False)
    found, expected = (newest_tensors(tmp_path / name) for name in reversed(both))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=error)
    assert load(tmp_path / "from cache").trained_on == load(tmp_path / "from images").trained_on


def test_a_run_may_move_to_the_cache_of_its_images_but_not_to_a_rounded_one(
    make, pictures: Path, network: str, tmp_path: Path
) -> None:
    train(run_on(pictures, network, loop__steps=1), tmp_path / "moved", progress=False)
    half = make("half", dtype="float16").path
    with pytest.raises(ConfigError, match=r"data of this run changed .* as float16 posteriors"):
        train(run_on(half, network), tmp_path / "moved", progress=False)
    train(run_on(make().path, network), tmp_path / "moved", progress=False)
    train(run_on(pictures, network), tmp_path / "stayed", progress=False)
    found, expected = (newest_tensors(tmp_path / name) for name in ("moved", "stayed"))
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_the_loss_of_a_run_is_that_on_its_images(
    make, pictures: Path, network: str, tmp_path: Path
) -> None:
    config = run_on(make().path, network, loop__steps=1)
    train(config, tmp_path / "run", progress=False)
    sources = [open_source(one) for one in (config, run_on(pictures, network))]
    found, expected = (DenoisingLoss.of(load(tmp_path / "run"), source).x for source in sources)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_kept_is_the_posterior_of_an_image_and_of_its_mirror_image(
    dtype: str, make, pictures: Path, network: str
) -> None:
    source = CacheSource(make(dtype=dtype).path)
    images = ImageSource(open_pictures(pictures), channels=3, side=8)
    encoder = open_autoencoder(network, "cpu", flag="autoencoder")
    assert source.labels.tolist() == images.labels.tolist()
    assert source.class_names == images.class_names and len(source) == TOTAL
    for index in (0, 15, 16, 37, 49):
        for flip in (False, True):
            expected = encoder.moments(images.load(index, flip)[None])[0]
            error = (
                {"rtol": 1e-5, "atol": 1e-6} if dtype == "float32" else {"rtol": 2e-3, "atol": 1e-4}
            )
            torch.testing.assert_close(source.load(index, flip), expected, **error)


def test_without_flip_there_are_no_mirror_images(make) -> None:
    whole, half = make(), make("half", flip=False)
    assert half.record.bytes < 0.6 * whole.record.bytes
    one, other = CacheSource(whole.path), CacheSource(half.path)
    assert torch.equal(one.load(20, False), other.load(20, False))


def test_sampling_with_another_autoencoder_is_told(
    make, network: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "run"
    config = run_on(make().path, network, loop__steps=1)
    train(config, path, progress=False)
    autoencoder(seed=1).save_pretrained(tmp_path / "other")
    words = {"settings": config.sampling, "device": "cpu", "progress": False}
    sample(path, [1], [0], out=tmp_path / "same", **words)
    assert "codec.path is not" not in caplog.text
    text = (path / "config.yaml").read_text()
    (path / "config.yaml").write_text(text.replace(network, str(tmp_path / "other")))
    sample(path, [1], [0], out=tmp_path / "another", **words)
    assert caplog.text.count("codec.path is not what the run was trained with") == 1


# ---- many processes, some of them killed


def test_the_same_bytes_whoever_does_the_work(make) -> None:
    alone, helped = make("alone"), make("helped", workers=2)
    assert (alone.made, helped.made) == (TOTAL, TOTAL)
    assert content(alone.path) == content(helped.path)


def test_a_killed_command_goes_on_and_ends_with_the_same_bytes(
    make, slow: None, tmp_path: Path
) -> None:
    expected = content(make("undisturbed").path)
    parts = tmp_path / "cache.parts"
    for wanted in (1, 2):
        child, _ = fork(lambda _: make())
        while not (parts / f"part-{wanted:06d}").exists():
            time.sleep(0.005)
        kill(child)
        assert not (tmp_path / "cache").exists()
    done = len(list(parts.glob("part-*")))
    found = make()
    assert found.made == TOTAL - 16 * done and done >= 2
    assert content(found.path) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "undisturbed"]


def test_processes_share_the_work_and_all_see_it_end(make, slow: None, tmp_path: Path) -> None:
    def report(pipe: int) -> None:
        os.write(pipe, str(make().made).encode())

    children = [fork(report) for _ in range(3)]
    made = []
    for child, pipe in children:
        assert os.waitpid(child, 0)[1] == 0
        with os.fdopen(pipe) as stream:
            made.append(int(stream.read()))
    assert sum(made) == TOTAL and max(made) < TOTAL  # nothing twice, and not by one alone
    assert content(tmp_path / "cache") == content(make("alone").path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "cache"]


def test_a_process_takes_over_what_another_was_killed_at(make, slow: None, tmp_path: Path) -> None:
    child, _ = fork(lambda _: make())
    while not (tmp_path / "cache.parts" / "part-000000").exists():
        time.sleep(0.005)
    other, _ = fork(lambda _: make())
    time.sleep(0.1)
    kill(child)
    assert os.waitpid(other, 0)[1] == 0
    assert len(CacheSource(tmp_path / "cache")) == TOTAL


# ---- the same command on a finished cache


def test_a_sound_cache_is_verified_and_left_alone(make) -> None:
    path = make().path
    before = {file.name: file.stat().st_ino for file in path.iterdir()}
    again = make()
    assert again.verified and again.made == 0
    assert again.lines()[1] == "nothing left to do: every file is as it was written"
    assert {file.name: file.stat().st_ino for file in path.iterdir()} == before


def flip_a_bit(folder: Path) -> None:
    path = folder / "shard-000001.safetensors"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def cut(folder: Path) -> None:
    os.truncate(folder / "shard-000003.safetensors", 700)


def lose(folder: Path) -> None:
    (folder / "shard-000000.safetensors").unlink()


def spoil_labels(folder: Path) -> None:
    (folder / "labels.npy").write_bytes(b"spoilt")


@pytest.mark.parametrize(
    ("damage", "images"), [(flip_a_bit, 16), (cut, 2), (lose, 16), (spoil_labels, 0)]
)
def test_what_is_damaged_is_made_anew_and_nothing_else(
    damage: Callable[[Path], None], images: int, make
) -> None:
    path = make().path
    before = content(path)
    damage(path)
    found = make()
    assert (found.made, found.verified) == (images, False)
    assert content(path) == before
    assert make().verified


def test_a_command_killed_while_it_puts_parts_together_leaves_nothing(
    make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its links would keep every shard on the disk."""
    for name in (".tmp-cache-2-abcdefgh", ".tmp-cache-abcdefgh.old"):  # those of others
        (tmp_path / name).mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(
            "diffmoe.experiments.preparing.assembly.write_record", lambda *_: time.sleep(60)
        )
        child, _ = fork(lambda _: make())
        while not list(tmp_path.glob(".tmp-cache-*/labels.npy")):
            time.sleep(0.005)
        kill(child)
    assert make().made == 0
    assert len(list(tmp_path.iterdir())) == 2 and (tmp_path / ".tmp-cache-2-abcdefgh").exists()


def test_a_command_killed_at_the_very_end_needs_no_more_work(
    make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("whole")

    def die(*_: object, **more: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("diffmoe.experiments.preparing.run.assemble", die)
        with pytest.raises(StoppedError, match="interrupted: 50 of 50 images are encoded"):
            make()
    assert not (tmp_path / "cache").exists()
    assert make().made == 0
    assert content(tmp_path / "cache") == content(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"side": 16}, "side lies here: 8, not 16"),
        ({"dtype": "float16"}, "dtype lies here: float32, not float16"),
        ({"flip": False}, "flip lies here: True, not False"),
        ({"shard": 8}, "shard lies here: 16, not 8"),
    ],
)
def test_another_cache_is_never_replaced(
    changes: dict[str, Any], what: str, make, tmp_path: Path
) -> None:
    before = content(make().path)
    with pytest.raises(ConfigError, match=f"a cache of another {what} — .* — choose another --out"):
        make(**changes)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert content(make().path) == before


def test_data_or_an_autoencoder_that_changed_are_named(
    make, copied: Path, network: str, tmp_path: Path
) -> None:
    make(data=copied)
    shutil.copyfile(copied / "dog" / "00.png", copied / "dog" / "99.png")
    with pytest.raises(ConfigError, match=r"a cache of another data lies here: 50 .* not 51 "):
        make(data=copied)
    autoencoder(seed=1).save_pretrained(tmp_path / "other")
    (copied / "dog" / "99.png").unlink()
    with pytest.raises(ConfigError, match="a cache of another autoencoder lies here: Auto"):
        prepare(copied, str(tmp_path / "other"), out=tmp_path / "cache", side=8, shard=16)


# ---- damaged images


@pytest.fixture
def one_damaged(copied: Path) -> Path:
    (copied / "cat" / "03.png").write_bytes(b"")
    return copied


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named_and_finished_shards_stay(
    workers: int, make, one_damaged: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"image 23 cannot be read \(the file is empty\)") as caught:
        make(data=one_damaged, workers=workers)
    assert "03.png" in str(caught.value) and caught.value.exit_code == ExitCode.BAD_DATA
    assert [path.name for path in (tmp_path / "cache.parts").glob("part-*")] == ["part-000000"]
    found = make(data=one_damaged, skip_damaged=True)  # goes on
    assert found.made == TOTAL - 16 - 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_left_out_where_that_is_asked_for(
    workers: int, make, one_damaged: Path
) -> None:
    found = make(data=one_damaged, skip_damaged=True, workers=workers)
    (skipped,) = found.record.skipped
    assert skipped.index == 23 and "the file is empty" in skipped.error
    assert "left out, as they cannot be read: 1 images" in found.lines()[-1]
    whole = make("whole")
    source, other = CacheSource(found.path), CacheSource(whole.path)
    assert len(source) == TOTAL - 1 and source.fingerprint.startswith("50 images sha256:")
    assert " without 1:" in source.fingerprint
    labels = other.labels.tolist()
    assert source.labels.tolist() == labels[:23] + labels[24:]
    for index in (22, 23, 48):
        beside = index + (index >= 23)
        torch.testing.assert_close(source.load(index, True), other.load(beside, True))
    index = load_file(found.path / "shard-000001.safetensors")["index"].tolist()
    assert index == [*range(16, 23), *range(24, 32)]
    with pytest.raises(DataError, match=r"1 of 50 images are damaged, and 0 may .*--skip-damaged"):
        spoil_labels(found.path)
        make(data=one_damaged)


def test_many_damaged_images_are_too_many(make, one_damaged: Path) -> None:
    for number in range(7):
        (one_damaged / "dog" / f"{number:02d}.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"\d of 50 images are damaged, and 1 may be left out"):
        make(data=one_damaged, skip_damaged=True)


def test_a_shard_of_damaged_images_only_is_an_empty_one(make, copied: Path, monkeypatch) -> None:
    import diffmoe.experiments.preparing.run as run_module

    monkeypatch.setattr(run_module, "refuse_damaged", lambda *_: None)
    monkeypatch.setattr("diffmoe.experiments.preparing.assembly.refuse_damaged", lambda *_: None)
    for number in range(16):
        (copied / "bird" / f"{number:02d}.png").write_bytes(b"no picture")
    source = CacheSource(make(data=copied, skip_damaged=True).path)
    assert len(source) == TOTAL - 16
    torch.testing.assert_close(source.load(0, True), CacheSource(make("w").path).load(16, True))


def test_a_posterior_that_is_no_number_is_refused(make, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = Autoencoder.moments

    def moments(self: Autoencoder, pixels: torch.Tensor) -> torch.Tensor:
        found = quick(self, pixels)
        found[min(5, len(found) - 1), 1] = 1e5
        return found

    monkeypatch.setattr(Autoencoder, "moments", moments)
    with pytest.raises(DataError, match=r"posterior of image 5 holds NaN or infinity as float16"):
        make(dtype="float16")
    assert make().made == TOTAL


# ---- images that change before the work is done


def picture(path: Path, seed: int) -> None:
    """A readable image of another size than the others."""
    pixels = np.random.default_rng(seed).integers(0, 256, (14, 11, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def in_folder(data: Path, tmp_path: Path) -> Path:
    return data


def in_zip(data: Path, tmp_path: Path) -> Path:
    return Path(shutil.make_archive(str(tmp_path / "packed"), "zip", data))


@pytest.mark.parametrize("packed", [in_folder, in_zip])
def test_a_damaged_image_is_replaced_and_the_same_command_goes_on(
    packed: Callable[[Path, Path], Path], make, one_damaged: Path, tmp_path: Path, caplog
) -> None:
    with pytest.raises(DataError, match="image 23 cannot be read"):
        make(data=packed(one_damaged, tmp_path))
    picture(one_damaged / "cat" / "03.png", 0)
    caplog.set_level("INFO", logger="diffmoe")
    data = packed(one_damaged, tmp_path)
    found = make(data=data)
    assert found.made == TOTAL - 16 and "encoded again" not in caplog.text
    assert content(found.path) == content(make("at once", data=data).path)
    assert found.record.source.fingerprint == open_pictures(one_damaged).fingerprint


def test_only_shards_whose_own_images_changed_are_made_again(
    make, one_damaged: Path, tmp_path: Path, caplog
) -> None:
    (one_damaged / "dog" / "06.png").write_bytes(b"no picture")
    (one_damaged / "cat" / "03.png").unlink()
    picture(one_damaged / "cat" / "03.png", 0)
    with pytest.raises(DataError, match="image 49 cannot be read"):
        make(data=one_damaged)
    assert len(list((tmp_path / "cache.parts").glob("part-*"))) == 3
    picture(one_damaged / "dog" / "06.png", 1)
    picture(one_damaged / "bird" / "17.png", 2)
    caplog.set_level("INFO", logger="diffmoe")
    found = make(data=one_damaged)
    assert found.made == 16 + 2
    assert caplog.text.count("1 shards are encoded again, as their images changed") == 1
    assert content(found.path) == content(make("at once", data=one_damaged).path)


def test_an_image_that_was_left_out_is_taken_once_it_is_mended(
    make, copied: Path, tmp_path: Path
) -> None:
    """Restored from another disk it has the size it had."""
    good = (copied / "bird" / "03.png").read_bytes()
    (copied / "bird" / "03.png").write_bytes(bytes(len(good)))
    (copied / "cat" / "09.png").write_bytes(b"")
    (copied / "cat" / "10.png").write_bytes(b"")
    with pytest.raises(DataError, match="damaged, and 1 may be left out"):
        make(data=copied, skip_damaged=True)
    assert [path.name for path in (tmp_path / "cache.parts").glob("part-*")] == ["part-000000"]
    (copied / "bird" / "03.png").write_bytes(good)
    for name in ("09", "10"):
        picture(copied / "cat" / f"{name}.png", int(name))
    found = make(data=copied, skip_damaged=True)
    assert (found.made, found.record.skipped) == (TOTAL, ())
    assert content(found.path) == content(make("at once", data=copied).path)


def add(folder: Path) -> None:
    picture(folder / "dog" / "99.png", 0)


def remove(folder: Path) -> None:
    (folder / "cat" / "03.png").unlink()


def rename(folder: Path) -> None:
    (folder / "cat" / "03.png").rename(folder / "cat" / "03a.png")


def move(folder: Path) -> None:
    (folder / "bird" / "19.png").rename(folder / "cat" / "000.png")  # of the same number


@pytest.mark.parametrize("change", [add, remove, rename, move])
def test_images_that_are_others_are_not_mixed_in(
    change: Callable[[Path], None], make, one_damaged: Path
) -> None:
    with pytest.raises(DataError, match="image 23 cannot be read"):
        make(data=one_damaged)
    change(one_damaged)
    said = (
        r"^images were added, removed or renamed since .*: 50 .* — .*cache\.parts — put them back"
    )
    with pytest.raises(ConfigError, match=said) as caught:
        make(data=one_damaged)
    assert "\n" not in str(caught.value)


def test_what_changed_while_the_others_were_encoded_is_made_again(
    make, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick, calls = Autoencoder.moments, []

    def moments(self: Autoencoder, pixels: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 5:  # two a shard: of the third
            picture(copied / "bird" / "02.png", 0)
        return quick(self, pixels)

    with monkeypatch.context() as patched:
        patched.setattr(Autoencoder, "moments", moments)
        with pytest.raises(DataError, match=r"images of 1 of 4 shards changed .* the same command"):
            make(data=copied)
    found = make(data=copied)
    assert found.made == 16
    assert content(found.path) == content(make("at once", data=copied).path)


def test_an_image_that_changes_while_its_shard_is_encoded_is_noticed(
    make, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = Autoencoder.moments

    def moments(self: Autoencoder, pixels: torch.Tensor) -> torch.Tensor:
        picture(copied / "bird" / "00.png", 0)  # which was read, as this is its own shard
        return quick(self, pixels)

    with monkeypatch.context() as patched:
        patched.setattr(Autoencoder, "moments", moments)
        with pytest.raises(DataError, match=r"images of 1 of 4 shards changed"):
            make(data=copied)
    assert make(data=copied).made == 16
    assert content(make(data=copied).path) == content(make("at once", data=copied).path)


# ---- stopped by a user or a disk


def test_an_interrupted_command_tells_what_is_kept(
    pictures: Path, network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    quick, calls = Autoencoder.moments, []

    def moments(self: Autoencoder, pixels: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return quick(self, pixels)

    monkeypatch.setattr(Autoencoder, "moments", moments)
    words = f"--autoencoder {network} --side 8 --shard 16 --device cpu --quiet"
    command = ["prepare", str(pictures), *words.split(), "--out", str(tmp_path / "cache")]
    assert main(command) == ExitCode.RESUMABLE
    said = capsys.readouterr().err.splitlines()
    place = tmp_path / "cache.parts"
    assert said == [
        "diffmoe: interrupted: 16 of 50 images are encoded — "
        f"{place} — the same command goes on from there"
    ]
    assert main(command) == 0
    assert "34 of them encoded here" in capsys.readouterr().out


def test_a_full_disk_is_one_sentence_and_keeps_finished_shards(
    make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import diffmoe.data.cache.shard as shard

    quick = shard.save_file

    def save_file(content: Any, path: Path) -> None:
        if "000001" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        quick(content, path)

    with monkeypatch.context() as patched:
        patched.setattr(shard, "save_file", save_file)
        with pytest.raises(StorageError, match=r"\(No space left .* no half-written file was left"):
            make()
    left = sorted(path.name for path in (tmp_path / "cache.parts").iterdir())
    assert left == [".lock", "part-000000", "work.json"]
    assert make().made == TOTAL - 16


# ---- refused before any work


@pytest.fixture
def _untouched(tmp_path: Path) -> Iterator[None]:
    before = sorted(tmp_path.rglob("*"))
    yield
    assert sorted(tmp_path.rglob("*")) == before


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "side": ({"side": 9}, "side 9 is not a multiple of the autoencoder's factor, 2 — use 8 or 10"),
    "no side": ({"side": 0}, r"side 0 is not in 1\.\.1000000"),
    "no shard": ({"shard": 0}, r"shard 0 is not in 1\.\.1000000"),
    "dtype": ({"dtype": "int8"}, "dtype 'int8' is unknown"),
    "no data": ({"data": Path("nowhere")}, "^the path does not exist .* — give a folder of"),
    "device": ({"device": "abacus"}, "machine.device abacus cannot be used"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.usefixtures("_untouched")
def test_bad_settings_are_refused(changes: dict[str, Any], message: str, make) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make(**changes)
    assert "\n" not in str(caught.value)


def test_images_without_labels_are_refused(make, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "loose").mkdir()
    shutil.copyfile(pictures / "dog" / "00.png", tmp_path / "loose" / "0.png")
    with pytest.raises(DataError, match="the path holds 1 images but no class sub-folder"):
        make(data=tmp_path / "loose")


def test_an_autoencoder_that_is_not_there_is_refused(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"autoencoder 'none' does not exist .* set --autoencoder"
    ):
        prepare(pictures, "none", out=tmp_path / "cache", side=8)


def test_without_a_place_the_cache_lies_beside_its_images(
    copied: Path, network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = prepare(copied, network, side=8, device="cpu", progress=False)
    assert found.path == copied.with_name("copied-latents")
    monkeypatch.chdir(copied)
    with pytest.raises(ConfigError, match="the cache would lie among the data"):
        prepare(".", network, side=8, device="cpu", progress=False)


def test_what_lies_in_the_place_is_never_lost(make, tmp_path: Path, copied: Path) -> None:
    place = tmp_path / "cache"
    place.mkdir()
    (place / "thesis.tex").touch()
    with pytest.raises(StorageError, match=r"thesis\.tex was not written here before"):
        make()
    (place / "thesis.tex").unlink()
    path = make().path
    (path / "thesis.tex").touch()
    with pytest.raises(StorageError, match=r"thesis\.tex was not written here before"):
        make()
    (path / "thesis.tex").unlink()
    (path / "cache.json").write_text("{")
    with pytest.raises(DataError, match=r"cache\.json cannot be read .*remove the folder and run"):
        make()
    (tmp_path / "b.parts").mkdir()
    (tmp_path / "b.parts" / "thesis.tex").touch()
    with pytest.raises(StorageError, match="lies where parts are to be kept"):
        make("b")
    for inside in ("copied", "copied/dog/cache"):
        with pytest.raises(ConfigError, match="the cache would lie among the data"):
            make(inside, data=copied)


def test_a_disk_that_is_too_small_is_told_before(make, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 10_000})
    monkeypatch.setattr(work_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match=r"50 images need 0\.061 MiB, and 0\.00954 MiB are free"):
        make()


def test_an_unfinished_work_of_other_settings_is_not_mixed_in(make, one_damaged: Path) -> None:
    with pytest.raises(DiffMoEError):
        make(data=one_damaged)
    with pytest.raises(ConfigError, match=r"unfinished work of other settings .* side 8 -> 16"):
        make(data=one_damaged, side=16)


# ---- the verb


def test_the_verb_tells_the_next_command(
    pictures: Path, network: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    words = f"--autoencoder {network} --side 8 --shard 16 --out my/cache --device cpu --quiet"
    assert main(["prepare", str(pictures), *words.split()]) == 0
    first, second, following = capsys.readouterr().out.splitlines()
    assert first.startswith("50 images of 3 classes and their mirror images, 0.0")
    assert first.endswith("MiB: my/cache")
    assert second.startswith("50 of them encoded here, ") and second.endswith(" images/s")
    trained = following.split(" train ")[1].split()
    small = "--model.width 16 --model.depth 2 --model.heads 2 --model.pool-images 8 --loop.steps 1"
    small += " --training.global-batch 8 --quiet --run mine --machine.device cpu"
    assert main(["train", *trained, *small.split()]) == 0
    assert load("mine").trained_on["codec"].startswith("AutoencoderKL sha256:")


def test_only_the_first_of_several_processes_speaks(
    pictures: Path, network: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("RANK", "1")
    words = f"--autoencoder {network} --side 8 --out {tmp_path / 'cache'} --device cpu --no-flip"
    assert main(["prepare", str(pictures), *words.split()]) == 0
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("RANK", "0")
    assert main(["prepare", str(pictures), *words.split()]) == 0
    said = capsys.readouterr()
    assert "nothing left to do" in said.out and "--data.no-flip" in said.out
