"""Samples of any number, drawn by any number of processes, stopped and gone on with."""

import hashlib
import json
import os
import signal
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from children import fork, kill, read_all
from diffmoe.checkpoint import Parts, load
from diffmoe.cli import main
from diffmoe.codec import Pixels
from diffmoe.config import SamplingConfig
from diffmoe.errors import ConfigError, NonFiniteError, StorageError
from diffmoe.experiments import draw_samples, request, sample
from diffmoe.sampling import balanced_labels, check_request, decode, generate
from diffmoe.training import train
from runs import run_config

COUNT, SIZE = 50, 8  # images, and those of a part
LABELS, SEEDS = balanced_labels(COUNT, 10), range(COUNT)
SETTINGS = SamplingConfig(steps=2, batch=4)
POOL = replace(SETTINGS, selection="pool", guidance=2.0, pool_images=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("samples") / "run"
    train(run_config(), path, progress=False)
    return path


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffmoe.experiments.samples._PART", SIZE)


def drawn(run: Path, out: Path | None, **changes: Any) -> Any:
    options: dict[str, Any] = {"settings": SETTINGS, "progress": False, "device": "cpu"}
    labels, seeds = changes.pop("labels", LABELS), changes.pop("seeds", SEEDS)
    return draw_samples(run, labels, seeds, out=out, **options | changes)


def tree(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def record(path: Path) -> dict[str, Any]:
    return json.loads((path / "samples.json").read_text())


def pixels(path: Path) -> list[Tensor]:
    """The pictures of a folder in order, each (H, W)."""
    found = []
    for entry in record(path)["images"]:
        with Image.open(path / entry["file"]) as picture:
            found.append(torch.from_numpy(np.array(picture)))
    return found


def generated(run: Path, settings: SamplingConfig) -> Tensor:
    """The same images by one call that holds them all."""
    loaded = load(run)
    latents = generate(loaded.model, loaded.config, LABELS, SEEDS, settings=settings)
    return torch.cat(list(decode(Pixels(), latents, torch.device("cpu"))))


# --- who draws them ------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [SETTINGS, POOL], ids=["token", "pool"])
def test_parts_are_the_images_of_one_call(
    settings: SamplingConfig, run: Path, tmp_path: Path
) -> None:
    found = drawn(run, tmp_path / "s", settings=settings)
    assert (found.path, found.count) == (tmp_path / "s", COUNT)
    assert torch.equal(torch.stack(pixels(found.path)), generated(run, settings)[:, 0])
    told = record(found.path)
    assert [(one["label"], one["seed"]) for one in told["images"]] == list(
        zip(LABELS, SEEDS, strict=True)
    )
    assert told["class_names"] == [str(label) for label in range(10)]
    assert told["labels"] == "given" and told["count"] == COUNT
    assert [path.name for path in tmp_path.iterdir()] == ["s"]  # its parts are gone


@pytest.fixture(scope="module")
def alone(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, bytes]]:
    """What one process writes that nobody disturbs."""

    def alone(settings: SamplingConfig) -> dict[str, bytes]:
        path = tmp_path_factory.mktemp("alone") / "s"
        return tree(drawn(run, path, settings=settings).path)

    return alone


@pytest.mark.parametrize("settings", [SETTINGS, POOL], ids=["token", "pool"])
def test_three_processes_write_what_one_does(
    settings: SamplingConfig, run: Path, tmp_path: Path, alone: Any
) -> None:
    def work(pipe: int) -> None:
        found = drawn(run, tmp_path / "s", settings=settings)
        os.write(pipe, json.dumps(found.path.is_dir()).encode())

    jobs = [fork(work) for _ in range(3)]
    assert [os.waitpid(child, 0)[1] for child, _ in jobs] == [0, 0, 0]
    assert all(json.loads(read_all(pipe)) for _, pipe in jobs)  # no one returns before the end
    assert tree(tmp_path / "s") == alone(settings)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def killed_at(run: Path, out: Path, parts: int, **changes: Any) -> None:
    """Draw in a child that is killed once so many parts are there."""

    def slowly(pipe: int) -> None:
        honest = Parts.claimed
        sys.modules["diffmoe.experiments.samples"].Parts.claimed = (  # type: ignore[attr-defined]
            lambda *given: (time.sleep(0.05), honest(*given))[1]
        )
        drawn(run, out, **changes)

    child, pipe = fork(slowly)
    folder = out.with_name(out.name + ".parts")
    while len(list(folder.glob("part-*"))) < parts:
        time.sleep(0.002)
    kill(child)
    read_all(pipe)
    assert not out.exists()


@pytest.mark.parametrize("form", ["png", "npz", "webdataset"])
def test_a_job_killed_twice_goes_on_and_leaves_no_trace_of_it(
    form: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, again = (tmp_path / name / ("s.npz" if form == "npz" else "s") for name in ("a", "b"))
    for parts in (2, 4):
        killed_at(run, out, parts, format=form)
    drawn_now = []
    honest = sys.modules["diffmoe.sampling.generate"]._batch  # type: ignore[attr-defined]
    monkeypatch.setattr(
        sys.modules["diffmoe.sampling.generate"],
        "_batch",
        lambda *given: (drawn_now.extend(given[-2]), honest(*given))[1],
    )
    drawn(run, out, format=form)
    assert len(drawn_now) <= COUNT - 4 * SIZE and drawn_now[-1] == COUNT - 1
    drawn(run, again, format=form)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_what_a_killed_process_was_at_is_drawn_by_another_and_order_changes_nothing(
    run: Path, tmp_path: Path, alone: Any
) -> None:
    ready = tmp_path / "ready"

    def hold(pipe: int) -> None:
        """A process that has begun a part and never ends it."""

        def stuck(*_: Any) -> None:
            ready.touch()
            time.sleep(60)

        sys.modules["diffmoe.sampling.generate"]._batch = stuck  # type: ignore[attr-defined]
        drawn(run, tmp_path / "s")

    child, pipe = fork(hold)
    while not ready.exists():
        time.sleep(0.01)
    other, told = fork(lambda _: drawn(run, tmp_path / "s"))
    parts = -(-COUNT // SIZE)
    while len(list((tmp_path / "s.parts").glob("part-*"))) < parts - 1:
        time.sleep(0.01)
    assert os.waitpid(other, os.WNOHANG) == (0, 0)  # it waits for what is not its own
    kill(child)
    assert os.waitpid(other, 0)[1] == 0
    assert read_all(pipe) == read_all(told) == b""
    assert tree(tmp_path / "s") == alone(SETTINGS)  # the first part was drawn last


def test_a_part_whose_holder_dies_is_taken_over(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second round finds what the first had to leave to another."""
    honest, left = Parts.claimed, [0, 3]

    def claimed(parts: Parts, number: int) -> Any:
        if number in left:
            left.remove(number)
            return honest(SimpleNamespace(_held=_busy), number)  # type: ignore[arg-type]
        return honest(parts, number)

    monkeypatch.setattr(Parts, "claimed", claimed)
    drawn(run, tmp_path / "s")
    assert not left
    assert len(record(tmp_path / "s")["images"]) == COUNT


def _busy(_: int) -> Any:
    class Busy:
        def __enter__(self) -> bool:
            return False

        def __exit__(self, *_: object) -> None:
            return None

    return Busy()


def test_a_kill_while_parts_are_put_together_costs_nothing(
    run: Path, tmp_path: Path, alone: Any
) -> None:
    for form, name in (("png", "s"), ("npz", "t.npz")):

        def work(pipe: int, form: str = form, name: str = name) -> None:
            for module in ("folders", "arrays"):
                sys.modules[f"diffmoe.sampling.output.{module}"].write_record = (  # type: ignore[attr-defined]
                    lambda *_: os.kill(os.getpid(), signal.SIGKILL)
                )
            drawn(run, tmp_path / name, format=form)

        child, pipe = fork(work)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        read_all(pipe)
        left = [path.name for path in tmp_path.glob(f".tmp-{name[0]}-*")]
        assert left and not (tmp_path / name).exists()
        drawn(run, tmp_path / name, format=form)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"s", "t.npz", "t.json", "t-sheet.png"}
    assert tree(tmp_path / "s") == alone(SETTINGS)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_only_the_first_process_shows_a_bar_that_counts_what_is_there(
    rank: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RANK", rank)
    killed_at(run, tmp_path / "s", 3)
    drawn(run, tmp_path / "s", progress=True)
    said = capsys.readouterr().err
    if rank == "1":
        assert "sample" not in said
    else:
        assert f"| {3 * SIZE}/{COUNT}" in said or f"| {4 * SIZE}/{COUNT}" in said
        assert f"| {COUNT}/{COUNT}" in said and f"| 0/{COUNT}" not in said


# --- stopped -------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_job_says_how_far_it_came_and_goes_on(
    way: signal.Signals,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = sys.modules["diffmoe.sampling.generate"]
    honest = module._batch  # type: ignore[attr-defined]

    def batch(*given: Any) -> Tensor:
        if given[-2].start == 2 * SIZE + 4:  # in the middle of a part
            os.kill(os.getpid(), way)
            time.sleep(1)
        return honest(*given)

    words = ["sample", str(run), "--count", str(COUNT), "--steps", "2", "--batch", "4", "--quiet"]
    words += ["--out", str(tmp_path / "s")]
    with monkeypatch.context() as patch:
        patch.setattr(module, "_batch", batch)
        assert main(words) == 75
    said = capsys.readouterr().err
    assert f"interrupted: {2 * SIZE} of {COUNT} images are there — " in said
    assert "the same command goes on from there" in said and len(said.splitlines()) == 1
    parts = tmp_path / "s.parts"
    assert sorted(p.name for p in parts.glob("*")) == [
        ".lock",
        "part-000000",
        "part-000001",
        "work.json",
    ]
    assert main(words) == 0
    assert capsys.readouterr().out.startswith(f"{COUNT} images: ")
    assert len(record(tmp_path / "s")["images"]) == COUNT


def test_parts_of_another_request_are_refused_by_the_field_that_differs(
    run: Path, tmp_path: Path
) -> None:
    killed_at(run, tmp_path / "s", 2)
    for changes, named in (
        ({"settings": replace(SETTINGS, steps=3)}, "sampling.steps 2 -> 3"),
        ({"labels": LABELS[1:], "seeds": SEEDS[1:]}, "count 50 -> 49"),
        ({"labels": LABELS[::-1]}, r"labels \w+ -> \w+"),
        ({"seeds": range(1, COUNT + 1)}, r"seeds \w+ -> \w+"),
        ({"format": "webdataset"}, "format png -> webdataset"),
        ({"settings": replace(SETTINGS, batch=16)}, "part_images 8 -> 16"),
        ({"settings": POOL}, "sampling.guidance 1.0 -> 2.0"),
    ):
        with pytest.raises(ConfigError, match=f"unfinished work of other .* lies here: {named}"):
            drawn(run, tmp_path / "s", **changes)
    drawn(run, tmp_path / "s", settings=replace(SETTINGS, batch=2))  # of no consequence
    assert len(record(tmp_path / "s")["images"]) == COUNT


def test_an_image_that_is_no_number_is_named_by_its_number(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["diffmoe.experiments.draw"]
    honest = module.load  # type: ignore[attr-defined]

    def broken(*given: Any, **more: Any) -> Any:
        loaded = honest(*given, **more)
        loaded.model.labels.table.weight[4] = torch.nan
        return loaded

    monkeypatch.setattr(module, "load", broken)
    labels = [1] * 11 + [4] + [1] * 4
    with pytest.raises(NonFiniteError, match=r"image 11 \(label 4, seed 11\) is not finite"):
        drawn(run, tmp_path / "s", labels=labels, seeds=range(16))
    assert not (tmp_path / "s").exists()


# --- what is there already -----------------------------------------------------------------------


@pytest.mark.parametrize("form", ["png", "npz", "webdataset"])
def test_what_is_there_is_not_drawn_again(
    form: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / ("s.npz" if form == "npz" else "s")
    places = (out, None)
    before = [drawn(run, place, format=form) for place in places]
    old = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    files = sorted(p for p in (run / "samples").rglob("*"))

    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("the weights were read")

    monkeypatch.setattr("diffmoe.experiments.draw.load", loaded)
    for place, first in zip(places, before, strict=True):
        began = time.perf_counter()
        other = replace(SETTINGS, batch=25)  # of no consequence
        assert drawn(run, place, format=form, settings=other) == first
        assert time.perf_counter() - began < 1
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == old
    assert files == sorted(p for p in (run / "samples").rglob("*"))
    with pytest.raises(AssertionError, match="weights"):
        drawn(run, out, format=form, settings=replace(SETTINGS, steps=1))
    victim = out if form == "npz" else next(p for p in out.iterdir() if p.name[:3] in "000 shard")
    victim.write_bytes(victim.read_bytes()[:-1])  # less than it was
    named, said = {"npz": (StorageError, "is not what s.json describes")}.get(
        form, (AssertionError, "weights")
    )
    with pytest.raises(named, match=said):
        drawn(run, out, format=form)


def test_an_array_copied_over_another_is_not_taken_for_it(run: Path, tmp_path: Path) -> None:
    """Of the same number and size, with the record of the other beside it."""
    one = drawn(run, tmp_path / "one.npz").path
    other = drawn(run, tmp_path / "other.npz", seeds=range(COUNT, 2 * COUNT)).path
    assert one.stat().st_size == other.stat().st_size
    one.write_bytes(other.read_bytes())
    with pytest.raises(StorageError, match=r"one\.npz is not what one\.json describes"):
        drawn(run, one)
    assert one.read_bytes() == other.read_bytes()


def test_an_emptied_picture_is_drawn_again(run: Path, tmp_path: Path) -> None:
    path = drawn(run, tmp_path / "s").path
    before = tree(path)
    (path / record(path)["images"][7]["file"]).write_bytes(b"")
    drawn(run, path)
    assert tree(path) == before


def elsewhere(_: torch.device) -> dict[str, str]:
    return {"device": "cuda", "device_name": "a GPU"}


def test_what_another_machine_drew_is_taken_and_told(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = record(drawn(run, tmp_path / "here").path)
    assert told["device"] == "cpu" and told["device_name"]
    killed_at(run, tmp_path / "both", 2)
    monkeypatch.setattr("diffmoe.experiments.draw.machine_of", elsewhere)
    drawn(run, tmp_path / "here")
    assert record(tmp_path / "here") == told  # nothing is left to do
    both = record(drawn(run, tmp_path / "both").path)
    assert [machine["device"] for machine in both["machines"]] == ["cpu", "cuda"]
    assert not both.keys() & {"device", "device_name", "numpy"}
    assert both["request"] == told["request"]
    assert record(drawn(run, tmp_path / "there").path)["device_name"] == "a GPU"


@pytest.mark.parametrize("rank", ["0", "1"])
def test_only_the_first_process_says_where_the_images_are(
    rank: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RANK", rank)
    words = ["sample", str(run), "--count", "4", "--steps", "1", "--out", str(tmp_path / "s")]
    assert main([*words, "--quiet"]) == 0
    assert capsys.readouterr().out.startswith("4 images: ") == (rank == "0")


def test_other_weights_are_another_request(tmp_path: Path) -> None:
    train(run_config(), tmp_path / "run", progress=False)
    first = drawn(tmp_path / "run", None).path
    train(run_config(loop__steps=6), tmp_path / "run", progress=False)
    second = drawn(tmp_path / "run", None).path
    assert first.name.startswith("step-00000004-") and second.name.startswith("step-00000006-")
    drawn(tmp_path / "run", tmp_path / "s", settings=replace(SETTINGS, weights="raw"))
    raw = tree(tmp_path / "s")
    drawn(tmp_path / "run", tmp_path / "s")
    assert tree(tmp_path / "s").keys() == raw.keys() and tree(tmp_path / "s") != raw


def test_a_kill_at_the_very_end_leaves_parts_that_the_next_command_removes(
    run: Path, tmp_path: Path
) -> None:
    def work(pipe: int) -> None:
        sys.modules["diffmoe.checkpoint.parts"].remove_folder = (  # type: ignore[attr-defined]
            lambda _: os.kill(os.getpid(), signal.SIGKILL)
        )
        drawn(run, tmp_path / "s")

    child, pipe = fork(work)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    read_all(pipe)
    before = tree(tmp_path / "s")
    assert (tmp_path / "s.parts").exists() and len(record(tmp_path / "s")["images"]) == COUNT
    drawn(run, tmp_path / "s")
    assert [path.name for path in tmp_path.iterdir()] == ["s"] and tree(tmp_path / "s") == before
    (tmp_path / ".tmp-s.parts-01234567" / "part-000000").mkdir(parents=True)  # or a little later
    drawn(run, tmp_path / "s")
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


# --- refused before anything is drawn ------------------------------------------------------------


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("minutes of work")

    monkeypatch.setattr("diffmoe.experiments.draw.load", loaded)


@pytest.mark.parametrize(
    ("make", "out", "form", "said"),
    [
        ("s/notes.txt", "s", None, "notes.txt was not written by a sampling"),
        ("s.npz", "s.npz", None, "s.npz was not written by a sampling"),
        ("s.json", "s.npz", None, "s.json was not written by a sampling"),
        ("s/notes.txt", "s", "webdataset", "notes.txt was not written by a sampling"),
        ("s.parts/thesis.tex", "s", None, "thesis.tex lies where parts are to be kept"),
        ("file", "file/s", None, "nothing can be written here"),
    ],
)
def test_a_place_of_other_things_is_refused(
    make: str, out: str, form: str | None, said: str, run: Path, tmp_path: Path, unread: None
) -> None:
    (tmp_path / make).parent.mkdir(exist_ok=True)
    (tmp_path / make).touch()
    before = tree(tmp_path)
    with pytest.raises(StorageError, match=said):
        drawn(run, tmp_path / out, format=form)
    assert tree(tmp_path) == before


def test_a_place_is_refused_even_where_the_run_says_nothing_of_itself(tmp_path: Path) -> None:
    train(run_config(), tmp_path / "run", progress=False)
    for manifest in (tmp_path / "run").glob("checkpoints/*/manifest.json"):
        manifest.write_text("{}")
    (tmp_path / "s").touch()
    with pytest.raises(StorageError, match="s was not written by a sampling"):
        drawn(tmp_path / "run", tmp_path / "s")
    for out in (tmp_path / "new", None):
        with pytest.raises(StorageError, match="none of the 2 checkpoints can be read"):
            drawn(tmp_path / "run", out)
    assert {path.name for path in tmp_path.iterdir()} == {"run", "s"}


def test_a_disk_too_small_is_refused(
    run: Path, tmp_path: Path, unread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = COUNT * 8 * 8 * 3 * 2
    free = needed - 1
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(StorageError, match=r"50 images need 0.0192 MB and 0.0192 MB are free — "):
        drawn(run, tmp_path / "new" / "s.npz")
    assert not list(tmp_path.iterdir())
    free = needed
    with pytest.raises(AssertionError, match="minutes"):
        drawn(run, tmp_path / "new" / "s.npz")
    free = 0
    with pytest.raises(AssertionError, match="minutes"):
        drawn(run, tmp_path / "s")  # nobody knows how large pictures will be


def test_room_that_parts_have_taken_is_not_asked_for_again(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_at(run, tmp_path / "s.npz", 4)
    left = COUNT * 8 * 8 * 3 * 2 - 4 * SIZE * 8 * 8 * 3
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=left - 4000))
        with pytest.raises(StorageError, match="are free"):
            drawn(run, tmp_path / "s.npz")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=left))
    assert drawn(run, tmp_path / "s.npz").path.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--format npz --out DIR", "format npz writes one file, and DIR is not called so"),
        ("--format png --out a.npz", "format png writes a folder, and a.npz is called as a file"),
        ("--law random --labels 3", "law random does not go with 1 label — leave one of them out"),
        ("--seed 5 --seeds 3", "seed 5 does not go with 1 seed — leave one of them out"),
        ("--seed -1", "seed -1 is out of range"),
        (f"--seed {2**63 - 3} --count 4", f"seed {2**63} is out of range"),
        ("--law random --count 0", "count 0 is not in [1, 1000000]"),
        ("--law fair", "--law"),
        ("--format jpeg", "--format"),
    ],
)
def test_words_that_contradict_each_other_are_one_sentence(
    words: str,
    said: str,
    run: Path,
    tmp_path: Path,
    unread: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sample", str(run), "--quiet", *words.split()]) == 2
    sentence = capsys.readouterr().err
    assert said in sentence and len(sentence.splitlines()) == 1
    assert not list(tmp_path.iterdir())


# --- formats -------------------------------------------------------------------------------------


def test_every_format_holds_the_same_pixels(run: Path, tmp_path: Path) -> None:
    png = drawn(run, tmp_path / "s")
    npz = drawn(run, tmp_path / "s.npz")
    tar = drawn(run, tmp_path / "t", format="webdataset")
    assert npz.sheet == tmp_path / "s-sheet.png" and tar.sheet == tmp_path / "t" / "sheet.png"
    assert png.sheet.exists() and npz.sheet.exists() and tar.sheet.exists()
    with np.load(npz.path) as found:
        images, labels = found["arr_0"], found["arr_1"]
    wanted = torch.stack(pixels(png.path)).numpy()
    assert images.shape == (COUNT, 8, 8, 3) and labels.tolist() == LABELS
    assert all(np.array_equal(images[..., channel], wanted) for channel in range(3))
    with tarfile.open(tar.path / "shard-000000.tar") as shard:
        for entry in record(png.path)["images"]:
            member = shard.extractfile(entry["file"][:6] + ".png")
            assert member is not None
            assert member.read() == (png.path / entry["file"]).read_bytes()
    said = [record(png.path), json.loads((tmp_path / "s.json").read_text()), record(tar.path)]
    assert len({one["capacity"] for one in said}) == 1
    assert len({one["request"] for one in said}) == 3  # a format is part of what is asked for
    assert said[1]["seeds"] == list(SEEDS)
    digest = hashlib.sha256(images.tobytes()).hexdigest()
    assert said[1]["pixels_sha256"] == digest


def test_below_the_run_a_format_has_its_own_place(run: Path) -> None:
    paths = [drawn(run, None, format=form).path for form in (None, "npz", "webdataset")]
    assert len(set(paths)) == 3 and {path.parent for path in paths} == {run / "samples"}
    assert [path.suffix for path in paths] == ["", ".npz", ""]


def test_the_verb_writes_what_its_words_say(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = "--count 12 --seed 7 --law random --steps 2 --out s.npz --quiet"
    assert main(["sample", str(run), *words.split()]) == 0
    assert capsys.readouterr().out == "12 images: s.npz\nall at a glance: s-sheet.png\n"
    told = json.loads(Path("s.json").read_text())
    assert told["seeds"] == list(range(7, 19)) and told["labels"] == "random"
    with np.load("s.npz") as found:
        assert found["arr_1"].tolist() == request((), told["seeds"], None, 10, law="random")[0]


def test_an_image_may_be_asked_for_twice(run: Path, tmp_path: Path) -> None:
    found = drawn(run, tmp_path / "s", labels=[3] * 12, seeds=[5] * 12)
    first, *others = pixels(found.path)
    assert len(others) == 11 and all(torch.equal(first, other) for other in others)


# --- which images --------------------------------------------------------------------------------


def test_a_random_label_is_a_function_of_its_seed_alone() -> None:
    labels, seeds = request((), (), 2000, 10, law="random", first_seed=3)
    assert list(seeds) == list(range(3, 2003)) and set(labels) == set(range(10))
    for some in ([1999, 3, 70], [70], [3, 3]):
        assert request((), some, None, 10, law="random")[0] == [labels[s - 3] for s in some]
    counts = np.bincount(labels, minlength=10)
    assert ((counts - 200) ** 2 / 200).sum() < 27.9  # chi-squared, 9 degrees: 1 in 1000 above
    assert list(labels) != balanced_labels(2000, 10)


def test_what_is_left_out_is_filled_in() -> None:
    assert request((), (), None, 10) == (balanced_labels(16, 10), range(16))
    assert request((4, 2), (), None, 10, first_seed=5) == ((4, 2), range(5, 7))
    assert request((), (8, 9, 9), 3, 2) == ([0, 1, 0], (8, 9, 9))
    assert request((1,), (8,), 1, 2, law="balanced") == ((1,), (8,))
    assert request((4, 2), (), 5, 10, first_seed=3) == ([4, 2, 4, 2, 4], range(3, 8))
    assert request((4, 2, 2), (7, 8, 9, 9), 4, 10) == ([4, 2, 2, 4], (7, 8, 9, 9))


def test_fifty_thousand_are_checked_in_a_moment() -> None:
    config = run_config()
    began = time.perf_counter()
    labels, seeds = request((), (), 50_000, 10)
    check_request(config, labels, seeds)
    check_request(config, np.array(labels), torch.tensor(list(seeds)))  # type: ignore[arg-type]
    assert time.perf_counter() - began < 0.5
    labels = [*labels[:-1], 10]
    with pytest.raises(ConfigError, match="label 10 is the null class"):
        check_request(config, labels, seeds)


# --- what they cost ------------------------------------------------------------------------------


def test_what_a_cap_left_out_is_told(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shares = []
    for capacity in (None, 0.25):
        settings = replace(
            run_config().sampling, max_capacity=capacity, policy="constant", gamma=0.2
        )
        with caplog.at_level("INFO"):
            path = sample(run, [1, 2], [0, 1], settings=settings, device="cpu", progress=False)
        shares.append(record(path).get("dropped"))
    assert shares[0] is None and 0 < shares[1] < 1
    assert caplog.text.count("max_capacity left out") == 1


def test_memory_does_not_grow_with_the_number_of_images(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more images are held than those of a part."""
    honest, most = torch.cat, [0]

    def cat(tensors: Any, *given: Any, **more: Any) -> Tensor:
        found = honest(tensors, *given, **more)
        if found.dtype == torch.uint8:
            most[0] = max(most[0], len(found))
        return found

    monkeypatch.setattr(torch, "cat", cat)
    drawn(run, tmp_path / "s.npz")
    assert most[0] == SIZE
