"""The self-test holds here, leaves nothing, and each of its drills notices a broken product."""

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffmoe.checkpoint import RunFolder, choice, files, folder, manifest, released_file, store
from diffmoe.cli import main
from diffmoe.data import ImageSource, loader
from diffmoe.errors import ConfigError, DataError, StorageError
from diffmoe.experiments import self_test
from diffmoe.experiments.selftest import (
    DRILLS,
    NotTriedError,
    Outcome,
    Trial,
    children,
    faults,
    filesystem,
    inputs,
    run,
    tiny,
)
from diffmoe.model import BatchPoolRouter, DiT, Prediction, routers, selection
from diffmoe.training import loop, new_state, resume, saving, step, stops, watch
from long_record import hold

Patch = pytest.MonkeyPatch
_MISTAKE = re.compile(r"the drill|\b(Attribute|Type|Name|Import)Error\b")
KNOWN = {drill.name: drill for drill in DRILLS}
# So few of each that the whole takes seconds.
FEW = {
    "kills-saving": 8,
    "kills-training": 1,
    "flipped-bits": 40,
    "full-disk": 1,
    "resume": 1,
    "state": 3,
    "signals": 1,
    "second-signal": 0,
    "damaged-samples": 1,
    "misspelt-keys": 20,
    "hostile-files": 6,
    "batch-invariance": 1,
    "strict-sampling": 0,
    "hostile-neighbours": 2,
}


@pytest.fixture(autouse=True)
def _warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the first optimizer imports, forked children should not import again."""
    new_state(tiny.tiny_run(tmp_path_factory.mktemp("warm")), torch.device("cpu"))


def performed(name: str, place: Path, count: int | None = None) -> Outcome:
    """What came of a drill, of all its trials or fewer."""
    drill = KNOWN[name]
    return run._performed(replace(drill, count=drill.count if count is None else count), place, 0)


# ---- it holds, and leaves nothing


def test_promises_hold_here_and_the_folder_is_as_it_was(
    tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").write_text("untouched")
    chosen = [replace(drill, count=FEW.get(drill.name, drill.count)) for drill in DRILLS]
    drills = tuple(drill for drill in chosen if drill.count)
    monkeypatch.setattr(run, "DRILLS", drills)
    place, out = tmp_path / "mine", tmp_path / "figures.json"
    words = ["selftest", "--folder", str(tmp_path), "--out", str(out), "--quiet"]
    assert main(words) == 0, capsys.readouterr()
    told = json.loads(out.read_text())
    assert [each["name"] for each in told["outcomes"]] == [drill.name for drill in drills]
    assert all(each["tried"] == each["held"] > 0 for each in told["outcomes"])
    assert told["machine"]["file system"] and told["machine"]["versions"]
    said = capsys.readouterr().out
    about = said.splitlines()[: said.splitlines().index("")]
    values = [*told["machine"].values(), str(told["seed"])]
    assert len({line.index(each) for line, each in zip(about, values, strict=True)}) == 1, about
    assert "tried   held  what was seen" in said and f"{len(drills)} of {len(drills)} prom" in said
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "figures.json"}
    assert place.read_text() == "untouched"


@pytest.mark.long
def test_every_promise_holds_at_the_counts_of_the_verb(tmp_path: Path) -> None:
    def measure() -> dict[str, Any]:
        found = self_test(tmp_path, progress=False)
        assert not found.broken, found.broken
        return {each.name: f"{each.held} of {each.tried}" for each in found.outcomes}

    hold("selftest", "every drill of diffmoe selftest holds", len(DRILLS), measure)


def test_a_break_is_a_line_and_an_exit_code(
    tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    words = ["selftest", "--folder", str(tmp_path), "--only", "flock", "order", "--quiet"]
    assert main(words) == 5
    found = capsys.readouterr()
    assert "1 of 2 promises held" in found.out
    assert found.err.startswith("diffmoe: error: a lock on a file shuts out a second process: it")
    assert "open to a second process" in found.err and len(found.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_only_a_break_of_storage_has_its_code(tmp_path: Path, monkeypatch: Patch) -> None:
    words = ["selftest", "--folder", str(tmp_path), "--only", "capacity-edges", "--quiet"]
    assert main(words) == 0
    no_number_takes_all(monkeypatch)
    assert main(words) == 1


def test_a_lock_that_a_file_system_has_not_is_not_tried(tmp_path: Path, monkeypatch: Patch) -> None:
    def without(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", without)
    found = performed("flock", tmp_path)
    assert "No locks available" in found.not_tried
    assert not found.is_broken and found.held == found.tried == 0


def test_names_and_folders_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no drill 'sginals' — did you mean signals\? there are"):
        self_test(tmp_path, only=["sginals"], progress=False)
    with pytest.raises(ConfigError, match="there is no such folder"):
        self_test(tmp_path / "nowhere", progress=False)
    assert not list(tmp_path.iterdir())


def test_figures_without_a_place_are_refused_before_a_drill(
    tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "_performed", None)  # no drill may be begun
    words = ["selftest", "--folder", str(tmp_path), "--only", "order", "--quiet", "--out"]
    for place in (tmp_path / "none" / "f.json", tmp_path, Path("/dev/null"), Path("/proc/f")):
        assert main([*words, str(place)]) in (2, 5)
    assert capsys.readouterr().out == "" and not list(tmp_path.iterdir())


def test_the_table_is_printed_though_the_figures_cannot_be_kept(
    tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(run, "write_text", full)
    words = ["selftest", "--folder", str(tmp_path), "--only", "order", "--quiet", "--out"]
    assert main([*words, str(tmp_path / "f.json")]) == 5
    found = capsys.readouterr()
    assert "1 of 1 promises held" in found.out and "the disk is full" in found.err


def test_a_closed_folder_that_root_may_write_is_told_as_left_out(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    found = performed("unwritable", tmp_path)
    assert found.tried == found.held == 2 and "a closed folder is left out" in found.seen


def test_strict_trials_count_one_by_one(tmp_path: Path) -> None:
    found = performed("strict-sampling", tmp_path)
    if not found.not_tried:
        assert found.held == found.tried > 100
        assert found.seen == f"{found.tried} x held bit for bit"


def test_an_interrupted_self_test_leaves_nothing(tmp_path: Path) -> None:
    def tried() -> None:
        self_test(tmp_path, only=["kills-training"], progress=False)

    child = children.begin(tried)
    assert child.wait_for(lambda: list(tmp_path.glob(".diffmoe-selftest-*/kills-training/run/*")))
    os.kill(child.pid, signal.SIGINT)
    assert child.answer().error == "KeyboardInterrupt"
    assert not list(tmp_path.iterdir())


# ---- an outcome is what was seen


def of(work: Callable[..., Iterator[Trial]], place: Path, monkeypatch: Patch) -> Outcome:
    """What came of a drill of one's own."""
    drill = replace(KNOWN["order"], name="own", work=work)
    monkeypatch.setattr(run, "_PATIENCE", 0.5)
    return run._performed(drill, place, 0)


def nothing(*_: Any) -> Iterator[Trial]:
    yield from ()


def raises(*_: Any) -> Iterator[Trial]:
    yield Trial(True, "fine")
    raise KeyError("lost")


def hangs(*_: Any) -> Iterator[Trial]:
    time.sleep(60)
    yield Trial(True, "late")


def dies(*_: Any) -> Iterator[Trial]:
    os.kill(os.getpid(), signal.SIGKILL)
    yield Trial(True, "never")


@pytest.mark.parametrize(
    ("work", "seen"),
    [(nothing, ""), (raises, "KeyError"), (hangs, "no answer within"), (dies, "SIGKILL")],
)
def test_a_drill_that_tries_nothing_raises_hangs_or_dies_is_broken(
    work: Callable[..., Iterator[Trial]], seen: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    found = of(work, tmp_path, monkeypatch)
    assert found.is_broken and seen in found.seen
    assert not list(tmp_path.iterdir())


def test_what_was_seen_is_counted_and_breaks_come_first(tmp_path: Path, monkeypatch: Patch) -> None:
    def mixed(*_: Any) -> Iterator[Trial]:
        yield from [Trial(True, "fine")] * 3 + [Trial(False, "lost")] * 2

    found = of(mixed, tmp_path, monkeypatch)
    assert (found.tried, found.held, found.seen) == (5, 3, "2 x lost")

    def absent(*_: Any) -> Iterator[Trial]:
        raise NotTriedError("no such thing here")
        yield

    assert of(absent, tmp_path, monkeypatch).not_tried == "no such thing here"


# ---- each drill notices a product that breaks its promise

Break = Callable[[Patch], object]
BREAKS: dict[str, tuple[str, int | None, Break]] = {}


def breaks(drill: str, count: int | None = None) -> Callable[[Break], Break]:
    """Register a planted break that a drill, of so many trials, has to notice."""

    def register(plant: Break) -> Break:
        BREAKS[f"{drill}: {plant.__name__}"] = (drill, count, plant)
        return plant

    return register


@breaks("renames")
def written_in_place(patch: Patch) -> None:
    def write(path: Path, text: str) -> None:
        with path.open("w") as stream:
            for part in (text[: len(text) // 2], text[len(text) // 2 :]):
                stream.write(part)
                stream.flush()
                time.sleep(0.02)  # a reader is due every few milliseconds

    patch.setattr(filesystem, "write_text", write)


@breaks("renames")
def appearing_in_pieces(patch: Patch) -> None:
    @contextlib.contextmanager
    def new_folder(path: Path, **_: Any) -> Iterator[Path]:
        path.mkdir(parents=True, exist_ok=True)
        time.sleep(0.02)
        yield path

    patch.setattr(store, "new_folder", new_folder)


@breaks("order")
def newest_by_date(patch: Patch) -> None:
    def by_date(parent: Path) -> list[Path]:
        return sorted(parent.glob("step-*"), key=lambda path: path.stat().st_mtime)

    patch.setattr(choice, "_by_step", by_date)


@breaks("order")
def newest_by_name(patch: Patch) -> None:
    patch.setattr(choice, "_by_step", lambda parent: sorted(parent.glob("step-*")))


@breaks("flock")
def locks_that_do_nothing(patch: Patch) -> None:
    patch.setattr(fcntl, "flock", lambda *_: None)


@breaks("byte-locks")
def byte_locks_that_do_nothing(patch: Patch) -> None:
    patch.setattr(fcntl, "lockf", lambda *_: None)


@breaks("kills-saving", 8)
def old_ones_removed_first(patch: Patch) -> None:
    honest = faults.write

    def write(parent: Path, content: Any, group: Any = None) -> Path:
        for path in parent.glob("step-*"):
            shutil.rmtree(path)
        return honest(parent, content)

    patch.setattr(faults, "write", write)


@breaks("kills-training", 2)
def called_saved_before_it_is(patch: Patch) -> None:
    honest = saving.write

    def write(parent: Path, content: Any, group: Any = None) -> Path:
        RunFolder(parent.parent).note_saved(content.step)
        time.sleep(0.3)
        return honest(parent, content)

    patch.setattr(saving, "write", write)


@breaks("flipped-bits", 40)
def hashes_of_nothing(patch: Patch) -> None:
    patch.setattr(store, "digest", lambda path: "0" * 64)


@breaks("flipped-bits", 40)
def a_manifest_without_its_own_digest(patch: Patch) -> None:
    def trusting(path: Path) -> manifest.Manifest:
        try:
            content = json.loads((path / "manifest.json").read_text())
            return manifest.Manifest(**{k: v for k, v in content.items() if k != "sha256"})
        except (ValueError, TypeError) as error:
            raise StorageError("no manifest") from error

    patch.setattr(store, "read_manifest", trusting)


@breaks("damaged-files")
def forged_manifests_taken(patch: Patch) -> None:
    patch.setattr(manifest, "_is_plain", lambda _: True)


@breaks("damaged-files")
def no_fall_back(patch: Patch) -> None:
    patch.setattr(choice, "entries", lambda parent: sorted(parent.iterdir())[-1:])


@breaks("full-disk", 1)
def leftovers_stay(patch: Patch) -> None:
    patch.setattr(files.shutil, "rmtree", lambda *_, **__: None)


@breaks("full-disk", 1)
def space_is_not_asked_for(patch: Patch) -> None:
    patch.setattr(loop, "refuse_small_disk", lambda *_: None)


@breaks("full-disk", 1)
def a_failed_save_is_swallowed(patch: Patch) -> None:
    honest = saving.write

    def write(parent: Path, content: Any, group: Any = None) -> Path:
        with contextlib.suppress(StorageError):
            return honest(parent, content)
        return parent

    patch.setattr(saving, "write", write)
    patch.setattr(saving, "prune", lambda *_: None)


@breaks("unwritable")
def bare_errors_of_the_system(patch: Patch) -> None:
    patch.setattr(folder, "storage_errors", lambda *_: contextlib.nullcontext())


@breaks("two-jobs", 1)
def a_folder_without_a_lock(patch: Patch) -> None:
    patch.setattr(RunFolder, "_hold", lambda *_: None)


def restored_but(change: Callable[[Any], object]) -> Break:
    def plant(patch: Patch) -> None:
        honest = resume.restore

        def restore(state: Any, *others: Any) -> None:
            honest(state, *others)
            change(state)

        patch.setattr(resume, "restore", restore)

    return plant


@breaks("resume", 1)
def averages_forgotten(patch: Patch) -> None:
    restored_but(lambda s: s.average.load_state_dict(s.model.state_dict()))(patch)


@breaks("resume", 1)
def moments_forgotten(patch: Patch) -> None:
    restored_but(lambda s: s.optimizer.state.clear())(patch)


@breaks("resume", 1)
def the_place_in_the_data_forgotten(patch: Patch) -> None:
    restored_but(lambda s: setattr(s.counters, "position", 0))(patch)


@breaks("state", 6)
def the_place_in_the_data_recomputed(patch: Patch) -> None:
    restored_but(lambda s: setattr(s.counters, "position", 16 * s.step))(patch)


@breaks("signals", 1)
def sigterm_unheard(patch: Patch) -> None:
    patch.setattr(stops, "_SIGNALS", (signal.SIGINT,))


@breaks("signals", 2)
def readers_die_of_signals(patch: Patch) -> None:
    patch.setattr(loader, "_leave_signals", lambda *_: None)


@breaks("second-signal")
def the_second_one_unheard(patch: Patch) -> None:
    patch.setattr(stops.Stop, "_ask", lambda stop, number, _: setattr(stop, "_signal", number))


@breaks("end-of-time")
def nothing_saved_at_the_end(patch: Patch) -> None:
    patch.setattr(saving.Saver, "save", lambda *_: None)


@breaks("bad-steps", 1)
def every_step_is_sound(patch: Patch) -> None:
    honest = step._apply
    patch.setattr(step, "_apply", lambda s, c, n, sound: honest(s, c, n, torch.ones_like(sound)))


@breaks("bad-steps", 1)
def averages_of_bad_steps(patch: Patch) -> None:
    honest = step.average_weights
    patch.setattr(step, "average_weights", lambda a, m, share: honest(a, m, share * 0 + 0.5))


@breaks("bad-steps", 1)
def thresholds_of_bad_steps(patch: Patch) -> None:
    honest = step._update_routers
    patch.setattr(step, "_update_routers", lambda m, s, sound: honest(m, s, torch.ones_like(sound)))


@breaks("divergence")
def divergence_goes_on(patch: Patch) -> None:
    deaf = property(lambda watch: None, lambda watch, sample: None)
    patch.setattr(watch.StepWatch, "past", deaf, raising=False)


@breaks("router-scores")
def nan_comes_first(patch: Patch) -> None:
    def none(affinity: Tensor, *_: Any) -> Tensor:
        return torch.zeros(affinity.shape[:-1], dtype=torch.bool)

    patch.setattr(selection, "unsound_last", lambda values: values)
    patch.setattr(selection, "poisoned_rows", none)
    patch.setattr(routers, "poisoned_rows", none)


@breaks("damaged-samples", 1)
def damaged_images_are_black(patch: Patch) -> None:
    honest = ImageSource.load

    def load(source: ImageSource, *others: Any) -> Tensor:
        try:
            return honest(source, *others)
        except DataError:
            return torch.zeros(source.shape)

    patch.setattr(ImageSource, "load", load)


@breaks("misspelt-keys", 5)
def unknown_keys_are_passed_over(patch: Patch) -> None:
    patch.setattr(inputs, "from_dict", lambda *_, **__: None)


@breaks("hostile-files")
def pickles_are_loaded(patch: Patch) -> None:
    trusting: dict[str, Any] = {"weights_only": False}
    patch.setattr(released_file, "_load", lambda path: torch.load(path, **trusting))
    patch.setattr(inputs, "corpus", of_pickles)


def of_pickles(command: str) -> Iterator[Any]:
    return (each for each in inputs_corpus(command) if each.place == "released")


inputs_corpus = inputs.corpus


@breaks("batch-invariance", 1)
@breaks("hostile-neighbours", 1)
def mixing(patch: Patch) -> None:
    honest = DiT.forward

    def forward(model: DiT, *others: Any) -> Prediction:
        found = honest(model, *others)
        return replace(found, sample=found.sample + 1e-3 * found.sample.mean(dim=0))

    patch.setattr(DiT, "forward", forward)


_MIXING = """
import sys
import diffmoe.sampling
drawing = sys.modules["diffmoe.sampling.generate"]
honest = drawing._batch
def batch(*others):
    found = honest(*others)
    return found + 1e-6 * found.mean(dim=0)
drawing._batch = batch
"""


@breaks("strict-sampling")
def a_last_bit_of_its_mates(patch: Patch) -> None:
    """What a new Python imports first is on its path."""
    place = Path(os.environ["SELFTEST_PLACE"])
    (place / "sitecustomize.py").write_text(_MIXING)
    known = os.environ.get("PYTHONPATH", "")
    patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(place), known])))


@breaks("capacity-edges")
def no_number_takes_all(patch: Patch) -> None:
    def wanted(router: BatchPoolRouter, affinity: Tensor, demand: Tensor, plan: Any) -> Tensor:
        return ~(demand.sigmoid() <= plan.thresholds[router.layer])

    patch.setattr(BatchPoolRouter, "_wanted", wanted)


@breaks("capacity-edges")
def thresholds_taken_unmeasured(patch: Patch) -> None:
    patch.setattr(BatchPoolRouter, "check", lambda *_: None)


@pytest.mark.parametrize("name", BREAKS)
def test_a_planted_break_is_noticed(name: str, tmp_path: Path, monkeypatch: Patch) -> None:
    drill, count, plant = BREAKS[name]
    (tmp_path / "product").mkdir()
    monkeypatch.setenv("SELFTEST_PLACE", str(tmp_path / "product"))
    plant(monkeypatch)
    found = performed(drill, tmp_path, count)
    monkeypatch.undo()
    assert found.is_broken and found.held < found.tried, found
    assert not _MISTAKE.search(found.seen), found  # the drill saw it, and the break did as it says


def test_every_drill_has_a_planted_break() -> None:
    assert {drill for drill, _, _ in BREAKS.values()} == KNOWN.keys()
