"""Images to numbers: the whole way, shared by processes, with its protocol and its refusals."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffmoe.cli import main
from diffmoe.config import SamplingConfig
from diffmoe.data import DigitsSource
from diffmoe.errors import (
    ConfigError,
    DataError,
    DiffMoEError,
    ExitCode,
    StoppedError,
    StorageError,
)
from diffmoe.evaluation import Features
from diffmoe.experiments import compare, evaluate, make_statistics, sample
from diffmoe.experiments.evaluation.classes import Classes
from diffmoe.training import train
from runs import run_config

SOURCE = DigitsSource()
GREY = ((SOURCE.images[:, 0] + 1) * 127.5).round().byte().numpy()
WIDE = torch.from_numpy(np.random.default_rng(0).normal(size=(192, 2048))) / 50


class Quick:
    """In the place of Inception, as wide as that or narrow, for roots are slow."""

    name, side, fingerprint = "inception", None, "6726825d" + "0" * 56

    def __init__(self, width: int = 48) -> None:
        self.width = width

    def features(self, images: Tensor) -> Features:
        flat = (images.flatten(1).double() / 255 @ WIDE[:, : self.width]).tanh()
        spatial = flat[:, : min(2023, self.width - 3)].float()
        return Features(flat.float(), spatial, (9 * flat[:, :10]).softmax(dim=1))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIFFMOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


LOADER = "diffmoe.experiments.evaluation.subject.load_inception_network"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LOADER, lambda *_, **__: Quick())


def folder(place: Path, numbers: range, named: bool = True, skip: int | None = None) -> Path:
    """Scans as PNG files, a sub-folder for each class if `named`."""
    for number in numbers:
        label = int(SOURCE.labels[number])
        if label == skip:
            continue
        below = place / f"digit {label}" if named else place
        below.mkdir(parents=True, exist_ok=True)
        Image.fromarray(GREY[number]).save(below / f"{number:04d}.png")
    return place


def npz(place: Path, numbers: range, labels: bool = True) -> Path:
    chosen = np.repeat(GREY[numbers.start : numbers.stop, ..., None], 3, axis=3)
    more = {"arr_1": SOURCE.labels[numbers.start : numbers.stop].numpy()} if labels else {}
    np.savez(place, arr_0=chosen, **more)
    return place


@pytest.mark.usefixtures("quick")
def test_images_against_images(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples, reference = npz(home / "s.npz", range(300)), folder(home / "r", range(300, 900))
    assert main(["evaluate", str(samples), "--reference", str(reference), "--quiet"]) == 0
    said = capsys.readouterr().out
    (place,) = home.glob("s-inception-*.json")
    content = json.loads(place.read_text())
    values, protocol = content["values"], content["protocol"]
    for name in ("fd_inception@300", "sfd_inception@300", "precision", "recall", "kid"):
        assert name in values and name in said
    assert 0.5 < values["precision"] <= 1 and content["deviations"]["inception_score"] >= 0
    assert content["cautions"] == []
    assert protocol["samples"]["count"] == 300 and protocol["reference"]["count"] == 600
    assert protocol["network"]["sha256"] == Quick().fingerprint
    assert protocol["settings"]["subset_size"] == 300
    assert {"diffmoe", "torch"} <= protocol["versions"].keys()
    assert "300 images of 8 x 8" in said and place.name in said
    assert {path.name for path in home.iterdir()} == {"s.npz", "r", place.name}
    before = place.read_bytes(), place.stat().st_mtime_ns
    again = evaluate(samples, reference, progress=False)  # reads what stands there
    assert (again.path.read_bytes(), again.path.stat().st_mtime_ns) == before


@pytest.mark.usefixtures("quick")
def test_a_set_against_itself_is_no_distance_away(home: Path) -> None:
    place = npz(home / "s.npz", range(200))
    found = evaluate(place, place, progress=False).values
    assert found["fd_inception@200"] == pytest.approx(0, abs=1e-9)
    assert found["precision"] == found["recall"] == 1


@pytest.mark.usefixtures("quick")
def test_statistics_are_a_reference_as_good_as_their_images(home: Path) -> None:
    samples, reference = npz(home / "s.npz", range(300)), folder(home / "r", range(300, 900))
    words = ["evaluate", str(reference), "--statistics", "r.npz", "--quiet"]
    assert main(words) == 0
    direct = evaluate(samples, reference, progress=False).values
    found = evaluate(samples, home / "r.npz", progress=False)
    assert found.values == pytest.approx(direct, rel=1e-12)
    assert found.content["protocol"]["reference"]["count"] == 600
    before = (home / "r.npz").read_bytes()
    assert main(words) == 0  # once more: nothing to do
    assert (home / "r.npz").read_bytes() == before
    (home / "r.npz").write_bytes(b"")
    with pytest.raises(DiffMoEError):
        make_statistics(reference, home / "r.npz", progress=False)


def test_a_reference_batch_of_adm_loads_directly(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LOADER, lambda *_, **__: Quick(2048))
    own = folder(home / "r", range(300, 900))
    make_statistics(own, home / "own.npz", progress=False)
    with np.load(home / "own.npz") as made:
        arrays = {name: made[name] for name in ("mu", "sigma", "mu_s", "sigma_s")}
    batch = np.repeat(GREY[300:400, ..., None], 3, axis=3)
    np.savez(home / "VIRTUAL.npz", arr_0=batch, **arrays)
    samples = npz(home / "s.npz", range(300))
    found = evaluate(samples, home / "VIRTUAL.npz", progress=False)
    assert found.values["fd_inception@300"] > 0 and found.values["sfd_inception@300"] > 0
    told = found.content["protocol"]["reference"]
    assert told["features"] == 100 and told["adm256"] is False and len(told["sha256"]) == 64


def test_the_small_network_reads_classes(home: Path) -> None:
    samples, reference = folder(home / "s", range(0, 1797, 3)), folder(home / "r", range(1797))
    found = evaluate(samples, reference, network="small", progress=False)
    assert {"fd_small@599", "fd_pixels@599", "agreement", "precision"} <= found.values.keys()
    assert found.values["agreement"] > 0.97
    assert found.content["protocol"]["network"]["held_out_accuracy"] > 0.97
    assert len(list((home / "cache" / "networks").iterdir())) == 1  # trained once, and kept
    lacking = folder(home / "l", range(0, 1797, 3), skip=4)
    other = evaluate(lacking, reference, network="small", progress=False)
    assert any("no sample is of class 'digit 4'" in said for said in other.cautions)
    assert other.values["agreement"] > 0.97  # by name: numbers have moved
    with pytest.raises(ConfigError, match="statistics of the small network"):
        make_statistics(reference, home / "x.npz", network="small", progress=False)


def test_classes_are_matched_by_name_or_by_number() -> None:
    pets, numbers = ("cat", "dog", "eel"), ("0", "1", "2")
    labels = torch.tensor([2, 0, 2])
    both = Classes(torch.arange(3), pets)
    assert both.unknown(Classes(labels, pets)) == (
        "the reference has no image of class 'dog', but samples are"
    )
    assert Classes(labels, pets).unknown(both) == ""
    assert Classes(labels, pets).missing(both) == "no sample is of class 'dog'"
    assert Classes(labels, numbers).missing(both) == "no sample is of class 'dog'"
    assert Classes(labels, ("dog", "cow", "eel")).missing(both) == "no sample is of class 'cat'"
    assert Classes(torch.arange(3), pets).missing(both) == ""
    assert Classes(None, ()).missing(both) == "" == both.missing(Classes(None, ()))
    many = Classes(torch.arange(9), tuple("abcdefghi"))
    assert Classes(torch.tensor([0]), ("a",)).missing(many).endswith("'b', 'c', 'd' and 5 more")
    assert Classes(labels, pets).as_in(both, labels).tolist() == [2, 0, 2]  # type: ignore[union-attr]
    assert Classes(labels, numbers).as_in(both, labels).tolist() == [2, 0, 2]  # type: ignore[union-attr]
    moved = Classes(labels, ("eel", "x", "cat"))
    assert moved.as_in(both, labels).tolist() == [0, 2, 0]  # type: ignore[union-attr]
    assert Classes(labels, ("ant", "x", "cat")).as_in(both, labels) is None
    assert Classes(torch.tensor([3]), ()).as_in(both, torch.tensor([3])) is None


@pytest.mark.usefixtures("quick")
def test_what_images_were_is_counted_and_said(home: Path) -> None:
    reference, samples = folder(home / "r", range(100)), folder(home / "s", range(100), named=False)
    Image.new("RGBA", (8, 8), (9, 9, 9, 40)).save(samples / "z.png")
    Image.fromarray(GREY[3]).save(samples / "zz.png")
    found = evaluate(samples, reference, progress=False)
    assert found.content["counted"]["samples"] == {
        "count": 102,
        "duplicates": 1,
        "grey": 102,
        "alpha": 1,
        "converted": 0,
    }
    said = " ".join(found.cautions)
    colours = npz(home / "c.npz", range(100), labels=False)
    with np.load(colours) as grey:
        pixels = grey["arr_0"].copy()
    pixels[..., 0] //= 2
    np.savez(colours, arr_0=pixels)
    (grey_said,) = evaluate(reference, colours, progress=False).cautions
    assert grey_said == "100 of 100 samples are grey, and none of the others"
    assert "1 of 102 samples equal earlier ones" in said
    assert "1 of 102 samples had transparency, laid on white" in said


WORK = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from experiments import test_evaluate as t
from diffmoe.experiments.evaluation import subject
subject.load_inception_network = lambda *_, **__: t.Quick()
print(t.evaluate("s.npz", "r", out=Path(sys.argv[1]), progress=False).path)
"""


@pytest.mark.usefixtures("quick")
def test_any_number_of_processes_gives_the_same_file(home: Path) -> None:
    npz(home / "s.npz", range(1797)), folder(home / "r", range(300, 1500))
    alone = evaluate("s.npz", "r", out=Path("alone.json"), progress=False)
    script = WORK.format(tests=str(Path(__file__).parents[1]))
    words = [sys.executable, "-c", script, "shared.json"]
    alike = {**os.environ, "OMP_NUM_THREADS": "1"}  # sums of other threads have other last digits
    jobs = [subprocess.Popen(words, env=alike, cwd=home) for _ in range(2)]
    assert [job.wait(120) for job in jobs] == [0, 0]
    assert (home / "shared.json").read_bytes() == alone.path.read_bytes()
    assert not list(home.glob("*.parts"))


@pytest.mark.usefixtures("quick")
def test_what_does_not_go_together_is_refused(home: Path) -> None:
    samples, small = npz(home / "s.npz", range(50)), folder(home / "r", range(50))
    for number, path in enumerate(sorted(small.rglob("*.png"))):
        with Image.open(path) as image:
            image.resize((16, 16)).save(home / "big.png")
        if number < 3:
            (home / "b").mkdir(exist_ok=True)
            (home / "big.png").rename(home / "b" / f"{number}.png")
    (home / "thesis.json").write_text('{"my": "thesis"}')
    cases: list[tuple[type[DiffMoEError], str, dict[str, Any]]] = [
        (ConfigError, "nothing to compare the images with", {"reference": None}),
        (ConfigError, "samples are 8 x 8 pixels and the reference 16", {"reference": home / "b"}),
        (ConfigError, r"count 51 is not in \[2, 50\]", {"count": 51}),
        (ConfigError, "the path does not exist", {"reference": home / "nowhere"}),
        (ConfigError, r"count 1 is not in \[2, 50\]", {"count": 1}),
        (ConfigError, r"count 0 is not in \[2, 50\]", {"count": 0}),
        (ConfigError, "trained on a reference of images with classes", {"network": "small"}),
        (StorageError, "thesis.json was not written by an eval", {"out": home / "thesis.json"}),
        (ConfigError, "compares images with their captions", {"network": "clip"}),
    ]
    for kind, said, change in cases:
        options: dict[str, Any] = {"reference": samples, "progress": False} | change
        if change.get("network") == "small":
            options["reference"] = npz(home / "u.npz", range(50), labels=False)
        with pytest.raises(kind, match=said):
            evaluate(samples, **options)
    assert evaluate(samples, home / "b", crop=True, progress=False).values  # cropped, they do
    assert json.loads((home / "thesis.json").read_text()) == {"my": "thesis"}
    assert not list(home.glob("*.parts"))


@pytest.mark.usefixtures("quick")
def test_a_damaged_image_is_named_and_what_was_found_is_kept(home: Path) -> None:
    reference, samples = folder(home / "r", range(50)), folder(home / "s", range(600), named=False)
    broken = samples / "0590.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:40])
    with pytest.raises(DataError, match="image 590 cannot be read") as caught:
        evaluate(samples, reference, out=home / "o.json", progress=False)
    assert str(broken) in str(caught.value)
    assert not (home / "o.json").exists()
    parts = home / "o.json.parts"
    assert sorted(p.name for p in parts.glob("part-*")) == ["part-000000", "part-000001"]


def test_missing_weights_are_told_in_one_sentence(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(home / "hub"))
    monkeypatch.delenv("DIFFMOE_INCEPTION", raising=False)
    place = npz(home / "s.npz", range(50))
    assert main(["evaluate", str(place), "--reference", str(place)]) == ExitCode.BAD_INPUT
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "weights-inception-2015-12-05-6726825d.pth" in said


@pytest.mark.usefixtures("quick")
def test_changed_images_are_evaluated_anew(home: Path) -> None:
    samples, reference = folder(home / "s", range(300), named=False), folder(home / "r", range(99))
    before = evaluate(samples, reference, progress=False)
    path = samples / "0150.png"
    with Image.open(path) as image:
        size, pixels = path.stat().st_size, np.array(image)
    Image.fromarray(255 - pixels).save(path)
    after = evaluate(samples, reference, progress=False)
    assert after.path != before.path and after.values != before.values
    assert size  # whatever became of it


@pytest.mark.usefixtures("quick")
def test_a_record_of_other_images_is_left_out(home: Path) -> None:
    train(run_config(), home / "run", progress=False)
    for name, seed in (("a", 0), ("b", 40)):
        sample(
            home / "run",
            [0, 1] * 10,
            range(seed, seed + 20),
            settings=SamplingConfig(steps=1),
            out=home / f"{name}.npz",
            progress=False,
        )
    found = evaluate(home / "a.npz", home / "b.npz", progress=False)
    made = found.content["protocol"]["samples"]["made"]
    assert made["seeds"] == "0..19" and made["sampling"]["steps"] == 1 and made["device"] == "cpu"
    assert made["thresholds"].startswith("tracked") and made["capacity"] > 0
    shutil.copyfile(home / "b.npz", home / "a.npz")
    other = evaluate(home / "a.npz", home / "b.npz", progress=False)
    assert other.content["protocol"]["samples"]["made"] is None
    assert any("is not of these images, and was left out" in said for said in other.cautions)


@pytest.mark.usefixtures("quick")
def test_some_images_are_drawn_from_all_of_a_folder(home: Path) -> None:
    samples, reference = folder(home / "s", range(600)), folder(home / "r", range(600, 900))
    found = evaluate(samples, reference, count=100, progress=False)
    assert found.content["protocol"]["samples"]["count"] == 100
    assert not any("no sample is of" in said for said in found.cautions)  # of every class


@pytest.mark.usefixtures("quick")
def test_a_small_reference_is_cautioned_of(home: Path) -> None:
    found = evaluate(
        npz(home / "s.npz", range(300)), npz(home / "r.npz", range(30)), progress=False
    )
    assert any("against a reference of only 30 images" in said for said in found.cautions)


def test_only_adm_itself_gives_its_name(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way, with a batch of fewer images and samples than there really are."""
    monkeypatch.setattr(LOADER, lambda *_, **__: Quick(2048))
    for module, name, value in (
        ("sets.reference", "ADM_IMAGES", 6),
        ("measure", "ADM_SAMPLES", 12),
        ("measure", "frechet_caution", lambda *_: ""),
    ):
        monkeypatch.setattr(sys.modules[f"diffmoe.evaluation.{module}"], name, value)
    monkeypatch.setattr(Quick, "features", lambda self, images: _few_features(images))
    big = np.random.default_rng(0).integers(0, 256, (12, 256, 256, 3), dtype=np.uint8)
    eye = {"mu": np.zeros(2048), "sigma": np.eye(2048)}
    eye |= {"mu_s": np.zeros(2023), "sigma_s": np.eye(2023)}
    np.savez(home / "samples.npz", arr_0=big)
    for name in ("VIRTUAL_imagenet256_labeled.npz", "VIRTUAL_lsun_bedroom256.npz"):
        np.savez(home / name, arr_0=big[:6], **eye)
        found = evaluate("samples.npz", name, progress=False)
        assert ("fid_adm50k" in found.values) == ("imagenet" in name)
        assert ("sfid_adm50k" in found.values) == ("imagenet" in name)
        assert ("fd_inception@12" in found.values) == ("lsun" in name)


def _few_features(images: Tensor) -> Features:
    flat = images[:, 0, :2, :4].flatten(1).float() / 255
    pooled = torch.cat([flat, torch.zeros(len(images), 2040)], dim=1)
    return Features(pooled, pooled[:, :2023].contiguous(), flat.double().softmax(dim=1))


@pytest.mark.usefixtures("quick")
def test_a_full_disk_is_one_sentence_before_any_feature(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = npz(home / "s.npz", range(50))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(StorageError, match=r"features need 0\.0. GB and 0\.00 GB are free"):
        evaluate(place, place, progress=False)


@pytest.mark.usefixtures("quick")
def test_interruption_says_how_far_it_came(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, reference = npz(home / "s.npz", range(1200)), npz(home / "r.npz", range(30))
    honest, asked = Quick.features, []

    def features(self: Quick, images: Tensor) -> Features:
        asked.append(len(images))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return honest(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(Quick, "features", features)
        with pytest.raises(StoppedError, match="2 of 4 parts of the features are there"):
            evaluate(samples, reference, progress=False)
    assert evaluate(samples, reference, progress=False).values
    assert not list(home.glob("*.parts"))


def changed(place: Path, out: Path, **changes: Any) -> Path:
    content = json.loads(place.read_text())
    for name, value in changes.items():
        at: Any = content
        *above, last = name.split("__")
        for step in above:
            at = at[step]
        at[last] = value
    out.write_text(json.dumps(content))
    return out


@pytest.mark.usefixtures("quick")
def test_two_evaluations_side_by_side(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = evaluate(npz(home / "s.npz", range(100)), npz(home / "r.npz", range(99)), progress=False)
    made = {"protocol__samples__made": {"weights_sha256": "ab", "sampling": {"steps": 9}}}
    b = changed(a.path, home / "b.json", values__precision=0.25, **made)
    assert main(["compare", str(a.path), str(b)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("protocol: the same") and "sampling" in said
    (kernel,) = (line for line in said.splitlines() if line.startswith("inception_score"))
    assert kernel.count("±") == 2
    assert compare(a.path, b).is_fair
    apart = {"protocol__reference__sha256": "00", "protocol__settings__neighbours": 5}
    c = changed(a.path, home / "c.json", **apart)
    assert main(["compare", str(a.path), str(c)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "the protocols differ: these numbers are not comparable:"
    assert any("settings.neighbours" in line and "3 -> 5" in line for line in lines[1:4])
    d = changed(a.path, home / "d.json", values__precision="0.5")
    with pytest.raises(DataError, match="values that are no numbers"):
        compare(a.path, d)
    for words in ([], ["x.json"], ["x.json", "y.json"], [str(a.path), "s.npz"]):
        assert main(["compare", *words]) in (ExitCode.BAD_INPUT, ExitCode.BAD_DATA)
    assert main(["compare", "--help"]) == 0


def test_images_against_their_captions(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffmoe.evaluation import ClipScores

    class Clip:
        fingerprint = "cd"

    where = "diffmoe.experiments.evaluation."
    monkeypatch.setattr(f"{where}run.load_clip", lambda *_, **__: Clip())

    def scored(images: Tensor, captions: list[str], _: Clip) -> ClipScores:
        return ClipScores(torch.tensor([float(len(c)) for c in captions], dtype=torch.float64), 1)

    monkeypatch.setattr(f"{where}captions.clip_scores", scored)
    place = folder(home / "s", range(3), named=False)
    with pytest.raises(ConfigError, match="the images have no captions"):
        evaluate(place, network="clip", progress=False)
    entries = [{"file": f"{n:04d}.png", "caption": "x" * (n + 1)} for n in range(3)]
    record = {"weights_sha256": "ab", "images": entries}
    (place / "samples.json").write_text(json.dumps(record))
    found = evaluate(place, network="clip", progress=False)
    assert found.values == {"clip_score@3": 2.0}
    assert found.cautions == ["1 of 3 captions were longer than the network reads, and cut"]
    entries[1]["caption"] = "x"
    below = [{**entry, "file": f"below/{entry['file']}"} for entry in reversed(entries)]
    (home / "t" / "below").mkdir(parents=True)
    for number in range(3):
        (place / f"{number:04d}.png").rename(home / "t" / "below" / f"{number:04d}.png")
    (home / "t" / "samples.json").write_text(json.dumps(record | {"images": below}))
    seen: list[int] = []

    def noted(images: Tensor, captions: list[str], _: Clip) -> ClipScores:
        seen.extend(int(image.sum()) for image in images)
        return scored(images, captions, _)

    monkeypatch.setattr(f"{where}captions.clip_scores", noted)
    evaluate(home / "t", network="clip", progress=False)
    assert seen == [3 * int(GREY[number].sum()) for number in (2, 1, 0)]  # as the record has them
    entries[1]["caption"] = " "
    (place / "samples.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="image 1 has no caption"):
        evaluate(place, network="clip", progress=False)
