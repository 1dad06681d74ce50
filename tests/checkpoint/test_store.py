"""Checkpoints are written whole or not at all, and no damage goes unseen."""

import hashlib
import json
import logging
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import children
from diffmoe.checkpoint import (
    Content,
    abandon_later,
    append_text,
    find_checkpoint,
    newest_checkpoint,
    newest_good,
    prune,
    read_part,
    set_aside_later,
    verify,
    write,
)
from diffmoe.checkpoint.choice import held
from diffmoe.checkpoint.files import digest, new_folder, sweep, write_text
from diffmoe.errors import ExitCode, StorageError
from diffmoe.experiments.selftest.faults import flip, killed_while_saving
from long_record import hold

PARTS = ("ema", "model", "optimizer")


def parts(step: int, size: int = 3) -> dict[str, dict[str, Tensor]]:
    """Tensors that tell their step and their part."""
    return {
        name: {"a": torch.full((size,), step + offset / 4), "b": torch.tensor(step)}
        for offset, name in enumerate(PARTS)
    }


def saved(parent: Path, *steps: int) -> list[Path]:
    return [write(parent, Content(step, 16 * step, parts(step))) for step in steps]


def newest(parent: Path) -> int:
    found = newest_checkpoint(parent)
    assert found is not None
    return found[1].step


def edit_manifest(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((path / "manifest.json").read_text())
    change(content)
    (path / "manifest.json").write_text(json.dumps(content, indent=2) + "\n")


def sealed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Edit a manifest and give it the digest that a forger would."""

    def forge(content: dict[str, Any]) -> None:
        del content["sha256"]
        change(content)
        content["sha256"] = hashlib.sha256(json.dumps(content).encode()).hexdigest()

    edit_manifest(path, forge)


# ---- written whole


def test_what_is_written_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, 7)
    manifest = verify(path)
    assert (manifest.step, manifest.samples) == (7, 112)
    assert manifest.torch == torch.__version__
    for name in PARTS:
        found = read_part(path, name)
        assert found.keys() == parts(7)[name].keys()
        assert all(torch.equal(found[key], value) for key, value in parts(7)[name].items())


def test_the_manifest_lists_every_file_with_digest_and_size(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, 1)
    files = verify(path).files
    assert sorted(files) == [f"{name}.safetensors" for name in PARTS]
    for name, facts in files.items():
        assert facts == {"sha256": digest(path / name), "bytes": (path / name).stat().st_size}
    assert {p.name for p in path.iterdir()} == {*files, "manifest.json"}


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = saved(tmp_path / "a", 1), saved(tmp_path / "b", 1)
    for file in first[0].iterdir():
        assert file.read_bytes() == (second[0] / file.name).read_bytes()


def test_every_byte_is_flushed_before_the_rename_and_the_rename_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def watched_fsync(handle: int) -> None:
        done.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    def watched_rename(path: Path, target: Path) -> Path:
        done.append(f"rename to {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "rename", watched_rename)
    (path,) = saved(tmp_path / "checkpoints", 1)
    at = done.index(f"rename to {path.name}")
    assert {f"{name}.safetensors" for name in PARTS} | {"manifest.json"} <= set(done[:at])
    assert done[at - 1].startswith(".tmp-step")
    assert done[at + 1 :] == ["checkpoints"]


def test_a_sound_checkpoint_is_not_written_twice_and_a_damaged_one_is(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, 1)
    before = (path / "manifest.json").stat().st_mtime_ns
    saved(tmp_path, 1)
    assert (path / "manifest.json").stat().st_mtime_ns == before
    flip(path / "ema.safetensors", -1)
    saved(tmp_path, 1)
    assert verify(path).step == 1


# ---- damage is seen


def refused(path: Path) -> str:
    with pytest.raises(StorageError) as caught:
        verify(path)
    assert caught.value.exit_code is ExitCode.STORAGE
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_flipped_bit_in_any_byte_of_any_file_is_detected(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, 4)
    tried = 0
    for file in sorted(path.iterdir()):
        sound = file.read_bytes()
        for position in range(len(sound)):
            flip(file, position, bit=position % 8)
            with pytest.raises(StorageError):
                verify(path)
            tried += 1
        file.write_bytes(sound)
    assert verify(path).step == 4
    assert tried > 1000


@pytest.mark.parametrize("name", PARTS)
def test_a_damaged_file_is_named_with_both_digests(name: str, tmp_path: Path) -> None:
    (path,) = saved(tmp_path, 4)
    wanted = digest(path / f"{name}.safetensors")[:16]
    flip(path / f"{name}.safetensors", 50)
    found = digest(path / f"{name}.safetensors")[:16]
    said = refused(path)
    assert f"{name}.safetensors is damaged: sha256 {found}, expected {wanted}" in said


@pytest.mark.parametrize("name", [*(f"{part}.safetensors" for part in PARTS), "manifest.json"])
def test_a_file_cut_off_anywhere_or_gone_is_detected(name: str, tmp_path: Path) -> None:
    (path,) = saved(tmp_path, 4)
    sound = (path / name).read_bytes()
    for length in (0, 1, len(sound) // 2, len(sound) - 1):
        (path / name).write_bytes(sound[:length])
        refused(path)
    (path / name).unlink()
    refused(path)
    (path / name).mkdir()
    refused(path)


def test_a_file_of_another_step_or_part_is_detected(tmp_path: Path) -> None:
    old, new = saved(tmp_path, 4, 8)
    shutil.copy(old / "ema.safetensors", new / "ema.safetensors")
    assert "ema.safetensors is damaged" in refused(new)
    shutil.copy(old / "ema.safetensors", old / "model.safetensors")
    assert "model.safetensors is damaged" in refused(old)


def test_a_file_that_the_manifest_does_not_list_is_never_read(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, 4)
    shutil.copy(path / "ema.safetensors", path / "extra.safetensors")
    assert "does not list extra.safetensors" in refused(path)


EMA = "ema.safetensors"
FORGERIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "parent": lambda m: m["files"].update({"../ema.safetensors": m["files"][EMA]}),
    "deep": lambda m: m["files"].update({"a/b": m["files"][EMA]}),
    "absolute": lambda m: m["files"].update({"/etc/hostname": m["files"][EMA]}),
    "dots": lambda m: m["files"].update({"..": m["files"][EMA]}),
    "dot": lambda m: m["files"].update({".": m["files"][EMA]}),
    "nameless": lambda m: m["files"].update({"": m["files"][EMA]}),
    "no digest": lambda m: m["files"][EMA].pop("sha256"),
    "null digest": lambda m: m["files"][EMA].update(sha256=None),
    "facts no record": lambda m: m["files"].update({EMA: "x"}),
    "files no record": lambda m: m.update(files=[EMA]),
    "files null": lambda m: m.update(files=None),
    "no files": lambda m: m.pop("files"),
    "unlisted": lambda m: m["files"].pop(EMA),
    "more": lambda m: m.update(more=1),
    "schema 1": lambda m: m.update(schema=1),
    "schema null": lambda m: m.update(schema=None),
    "schema list": lambda m: m.update(schema=[1]),
    "step text": lambda m: m.update(step="4"),
    "step half": lambda m: m.update(step=4.5),
    "step true": lambda m: m.update(step=True),
    "step below 0": lambda m: m.update(step=-1),
    "samples null": lambda m: m.update(samples=None),
    "step beyond counting": lambda m: m.update(step=10**30),
    "samples beyond counting": lambda m: m.update(samples=10**30),
    "origin null": lambda m: m.update(trained_on=None),
    "origin list": lambda m: m.update(trained_on=["pixels"]),
    "state null": lambda m: m.update(state=None),
    "state text": lambda m: m.update(state={"bad_steps": "1"}),
    "state true": lambda m: m.update(state={"bad_steps": True}),
    "size text": lambda m: m["files"][EMA].update(bytes="1"),
    "tensors list": lambda m: m.update(tensors=[]),
    "tensor no row": lambda m: m["tensors"]["ema"].update(a=None),
    "row too short": lambda m: m["tensors"]["ema"].update(a=["float32", [3]]),
    "tensor in no file": lambda m: m["tensors"]["ema"].update(a=["float32", [3], {}]),
    "tensor elsewhere": lambda m: m["tensors"]["ema"].update(a=["float32", [3], {"x": [0]}]),
    "offsets of other axes": lambda m: m["tensors"]["ema"].update(a=["float32", [3], {EMA: []}]),
    "offset below 0": lambda m: m["tensors"]["ema"].update(a=["float32", [3], {EMA: [-1]}]),
    "name of NUL": lambda m: m["files"].update({"a\0": m["files"][EMA]}),
    "name of half a letter": lambda m: m["files"].update({"\ud800": m["files"][EMA]}),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_hostile_manifest_is_refused_even_with_the_right_digest(
    name: str, tmp_path: Path
) -> None:
    (path,) = saved(tmp_path, 4)
    shutil.copy(path / EMA, tmp_path / EMA)
    sealed(path, FORGERIES[name])
    refused(path)


@pytest.mark.parametrize("depth", [100, 200, 300, 400, 600, 900, 100_000])
def test_a_deep_manifest_is_refused(depth: int, tmp_path: Path) -> None:
    (path,) = saved(tmp_path, 4)
    deep = '{"a": ' * depth + "1" + "}" * depth
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace('"config": {}', f'"config": {deep}'))
    refused(path)


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "3", "{}", "{" * 100_000, '{"schema": 1}', "NaN", '"text"', "\udcff"],
    ids=lambda text: repr(text[:12]),
)
def test_a_manifest_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    (path,) = saved(tmp_path, 4)
    (path / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    refused(path)


def test_an_honest_edit_of_the_manifest_is_refused_too(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, 4)
    edit_manifest(path, lambda content: content.update(step=5))
    assert "damaged" in refused(path)


def test_a_missing_part_is_a_storage_error(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, 4)
    with pytest.raises(StorageError, match="the checkpoint has no other"):
        read_part(path, "other")


def test_origin_and_counters_come_back(tmp_path: Path) -> None:
    origin, state = {"codec": "pixels", "data": "3 digits"}, {"bad_steps": 3, "mean": 0.1 + 0.2}
    path = write(tmp_path, Content(4, 64, parts(4), {}, origin, state))
    assert verify(path).trained_on == origin and verify(path).state == state


# ---- tensors in pieces, as several processes write them

WHOLE = torch.arange(24, dtype=torch.float64).view(4, 6)
CUT = {
    "left": (WHOLE[:, :2], [0, 0]),
    "up": (WHOLE[:3, 2:], [0, 2]),
    "low": (WHOLE[3:, 2:], [3, 2]),
}


def in_pieces(
    parent: Path, cut: dict[str, tuple[Tensor, list[int]]], shape: list[int] | None = None
) -> Path:
    """A checkpoint whose tensor lies in pieces, each in a file of its own."""
    (path,) = saved(parent, 4)
    for name, (piece, _) in cut.items():
        save_file({"a": piece.contiguous()}, path / f"{name}.safetensors")

    def place(content: dict[str, Any]) -> None:
        files = {f"{name}.safetensors": offsets for name, (_, offsets) in cut.items()}
        content["tensors"]["model"] = {"a": ["float64", shape or [4, 6], files]}
        for name in files:
            facts = {"sha256": digest(path / name), "bytes": (path / name).stat().st_size}
            content["files"][name] = facts

    sealed(path, place)
    return path


def test_a_tensor_in_pieces_is_put_together(tmp_path: Path) -> None:
    path = in_pieces(tmp_path, CUT)
    manifest = verify(path)
    assert torch.equal(read_part(path, "model")["a"], WHOLE)
    digests = [digest(path / f"{name}.safetensors") for name in sorted(CUT)]
    assert manifest.fingerprint("model") == hashlib.sha256("".join(digests).encode()).hexdigest()
    assert manifest.fingerprint("ema") == digest(path / EMA)


MISFITS: dict[str, tuple[dict[str, tuple[Tensor, list[int]]], list[int] | None]] = {
    "a gap": ({name: CUT[name] for name in ("left", "up")}, None),
    "an overlap": (CUT | {"low": (WHOLE[3:, 2:], [2, 2])}, None),
    "over the edge": (CUT | {"low": (WHOLE[3:, 2:], [3, 4])}, None),
    "other axes": (CUT | {"low": (WHOLE[3, 2:], [3, 2])}, None),
    "another dtype": (CUT | {"low": (WHOLE[3:, 2:].float(), [3, 2])}, None),
    "far more than there is": (CUT, [2**20, 2**20]),
    "one that is too small": ({"left": CUT["left"]}, None),
    "one that is moved": ({"left": (WHOLE, [0, 1])}, None),
}


@pytest.mark.parametrize("name", MISFITS)
def test_pieces_that_do_not_make_the_tensor_are_refused(name: str, tmp_path: Path) -> None:
    cut, shape = MISFITS[name]
    path = in_pieces(tmp_path, cut, shape)
    verify(path)
    with pytest.raises(
        StorageError, match=r"not as its manifest says: (the pieces of )?a "
    ) as caught:
        read_part(path, "model")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("change", [{"more": torch.ones(2)}, {}], ids=["more", "less"])
def test_a_file_of_other_tensors_than_the_manifest_names_is_refused(
    change: dict[str, Tensor], tmp_path: Path
) -> None:
    path = in_pieces(tmp_path, {"left": (WHOLE, [0, 0])})
    save_file({"a": WHOLE} | change if change else {"b": WHOLE}, path / "left.safetensors")
    with pytest.raises(StorageError, match=r"left\.safetensors (has more|lacks a)"):
        read_part(path, "model")


# ---- which checkpoint is the newest


def test_no_checkpoint_at_all_is_no_error(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "nowhere") is None


def test_the_newest_is_that_of_the_highest_step_whatever_its_name_or_date(tmp_path: Path) -> None:
    low, high = saved(tmp_path, 2, 10)
    low.rename(tmp_path / "step-9")
    high.rename(tmp_path / "step-00000001-copy")
    os.utime(tmp_path / "step-00000001-copy", (0, 0))
    assert newest(tmp_path) == 10
    saved(tmp_path, 10**8, 10**9 - 1)
    assert newest(tmp_path) == 10**9 - 1


def test_the_newest_falls_back_loudly_to_the_last_sound_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, middle, last = saved(tmp_path, 2, 4, 6)
    flip(last / "ema.safetensors", 60)
    (middle / "manifest.json").unlink()
    with caplog.at_level(logging.WARNING):
        assert newest(tmp_path) == 2
    said = " ".join(record.getMessage() for record in caplog.records)
    assert f"skipping a checkpoint: {EMA} is damaged" in said and str(last) in said
    assert f"no readable manifest — {middle}" in said


def test_who_wants_a_certain_checkpoint_gets_no_other(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path) is None and find_checkpoint(tmp_path, step=4) is None
    saved(tmp_path, 2, 4, 6)
    for step, wanted in ((None, 6), (2, 2), (4, 4)):
        found = find_checkpoint(tmp_path, step)
        assert found is not None and found[1].step == wanted
    flip(tmp_path / "step-00000006" / EMA, 60)
    with pytest.raises(StorageError, match="step-00000006 cannot be used: ema"):
        find_checkpoint(tmp_path)
    (tmp_path / "step-nonsense").mkdir()  # no step: not the newest, and not in the way
    with pytest.raises(StorageError, match="use step 4, the newest that is sound"):
        find_checkpoint(tmp_path)


def test_no_sound_checkpoint_among_some_is_an_error(tmp_path: Path) -> None:
    for path in saved(tmp_path, 2, 4):
        flip(path / "model.safetensors", 60)
    with pytest.raises(StorageError, match="none of the 2 checkpoints can be read"):
        newest_checkpoint(tmp_path)


# ---- which checkpoints stay


def names(parent: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in parent.glob("step-*"))


@pytest.mark.parametrize(
    ("keep", "left"), [(1, [8]), (2, [6, 8]), *((many, [4, 6, 8]) for many in (3, 4, 5, 9))]
)
def test_pruning_keeps_the_newest(keep: int, left: list[int], tmp_path: Path) -> None:
    last = saved(tmp_path, 4, 6, 8)[-1]
    prune(tmp_path, last, keep)
    assert names(tmp_path) == left


def test_pruning_never_prefers_a_damaged_later_one_to_what_was_just_written(
    tmp_path: Path,
) -> None:
    older, damaged = saved(tmp_path, 4, 8)
    flip(damaged / "ema.safetensors", 60)
    (written,) = saved(tmp_path, 5)
    prune(tmp_path, written, 1)
    assert names(tmp_path) == [5, 8]
    assert not older.exists() and newest(tmp_path) == 5


def test_pruning_keeps_milestones(tmp_path: Path) -> None:
    last = saved(tmp_path, 5, 10, 15, 20, 25, 30)[-1]
    prune(tmp_path, last, 1, 10)
    assert names(tmp_path) == [10, 20, 30]


def test_pruning_keeps_the_last_good_one(tmp_path: Path) -> None:
    saved(tmp_path, 2, 4)
    for step in (6, 8):
        last = write(tmp_path, Content(step, 0, parts(step), state={"bad_in_a_row": step - 5}))
    prune(tmp_path, last, 1)
    assert names(tmp_path) == [4, 8]
    found = newest_good(tmp_path)
    assert found is not None and found[1].step == 4 and newest(tmp_path) == 8
    flip(tmp_path / "step-00000004" / EMA, 60)
    assert newest_good(tmp_path) is None


def test_pruning_spares_what_is_being_read(tmp_path: Path) -> None:
    first, last = saved(tmp_path, 2, 4)
    with held(first):
        prune(tmp_path, last, 1)
        assert names(tmp_path) == [2, 4]
    prune(tmp_path, last, 1)
    assert names(tmp_path) == [4]


def test_what_lies_after_the_place_to_go_on_from_is_set_aside(tmp_path: Path) -> None:
    """It is damaged: it must not count among those that are kept."""
    *_, damaged = saved(tmp_path, 2, 4, 6)
    flip(damaged / EMA, 60)
    set_aside_later(tmp_path, 4)
    assert names(tmp_path) == [2, 4] and newest(tmp_path) == 4
    (aside,) = tmp_path.glob("damaged-step-00000006-*")
    assert (aside / EMA).exists()
    last = write(tmp_path, Content(8, 0, parts(8), state={"bad_in_a_row": 2}))
    prune(tmp_path, last, 2)
    assert names(tmp_path) == [4, 8]


def test_a_line_that_does_not_fit_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    append_text(tmp_path / "lines", "first\n")

    def starved() -> str:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
        append_text(tmp_path / "lines", "second\n")
        return "written"

    kind, said = children.outcome(starved)
    assert kind == "StorageError" and "no half-written file was left" in said
    assert (tmp_path / "lines").read_text() == "first\n"


def test_a_run_that_goes_back_gives_up_what_came_later(tmp_path: Path) -> None:
    saved(tmp_path, 2, 4, 6)
    abandon_later(tmp_path, 3)
    assert names(tmp_path) == [2]


def test_pruning_leaves_what_it_cannot_read(tmp_path: Path) -> None:
    unreadable, *_, last = saved(tmp_path, 2, 4, 6)
    (unreadable / "manifest.json").write_text("")
    prune(tmp_path, last, 1)
    assert names(tmp_path) == [2, 6]


def test_pruning_counts_what_it_can_read(tmp_path: Path) -> None:
    _, unreadable, last = saved(tmp_path, 2, 4, 6)
    (unreadable / "manifest.json").write_text("")
    prune(tmp_path, last, 2)
    assert names(tmp_path) == [2, 4, 6]


def test_a_kill_while_pruning_leaves_no_half_checkpoint(tmp_path: Path) -> None:
    *_, last = saved(tmp_path, 2, 4, 6)

    def killed(pipe: int) -> None:
        shutil.rmtree = lambda *others, **more: os._exit(9)  # type: ignore[assignment]
        prune(tmp_path, last, 2)

    child, _ = children.fork(killed)
    os.waitpid(child, 0)
    assert names(tmp_path) == [4, 6] and list(tmp_path.glob(".tmp-*"))
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000004", "step-00000006"}


def test_sweeping_removes_leftovers_and_nothing_else(tmp_path: Path) -> None:
    saved(tmp_path, 4)
    (tmp_path / ".tmp-step-00000006-x").mkdir()
    (tmp_path / ".tmp-step-00000006-x" / "ema.safetensors").touch()
    (tmp_path / ".tmp-config-x.yaml").touch()
    (tmp_path / ".tmp-report-x.html").touch()
    sweep(tmp_path, "config")
    assert (tmp_path / ".tmp-report-x.html").exists()
    assert not (tmp_path / ".tmp-config-x.yaml").exists()
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"]


# ---- a disk that fails


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, 2)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"cannot write .* \(No space left on device\)"):
        saved(tmp_path, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]
    assert newest(tmp_path) == 2


@pytest.mark.parametrize("limit", [0, 100, 5000, 9000])
def test_a_file_limit_is_one_sentence_and_leaves_nothing(limit: int, tmp_path: Path) -> None:
    saved(tmp_path, 2)

    def starved() -> str:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        return str(write(tmp_path, Content(4, 64, parts(4, size=2500))))

    kind, said = children.outcome(starved)
    assert kind == "StorageError"
    assert "File too large" in said and "no half-written file was left" in said
    assert len(said.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]
    assert newest(tmp_path) == 2


def test_a_place_below_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for make in (
        lambda: saved(tmp_path / "file" / "below", 2),
        lambda: write_text(tmp_path / "file" / "note", "text"),
    ):
        with pytest.raises(StorageError, match=r"\((Not a directory|a file is in the way)\)"):
            make()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_text_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "note.txt"
    write_text(path, "old")

    def broken(self: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", broken)
        with pytest.raises(StorageError):
            write_text(path, "new")
    assert path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["note.txt"]


def test_a_folder_appears_only_if_its_block_succeeds(tmp_path: Path) -> None:
    with pytest.raises(KeyError), new_folder(tmp_path / "made") as aside:
        (aside / "half").touch()
        raise KeyError
    assert not list(tmp_path.iterdir())
    with new_folder(tmp_path / "made") as aside:
        (aside / "whole").touch()
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["whole"]
    with pytest.raises(StorageError), new_folder(tmp_path / "made"):
        pass
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["whole"]


# ---- one folder in the place of another


def folder_of(path: Path, content: str) -> None:
    with new_folder(path, replace=True) as aside:
        (aside / content).touch()


def killed_at_rename(number: int, work: Callable[[], object]) -> None:
    """Do `work` in a child that dies just before its rename of that number."""

    def dying(pipe: int) -> None:
        honest, done = Path.rename, iter(range(number))

        def rename(path: Path, target: Path) -> Path:
            if next(done, None) is None:
                os._exit(9)
            return honest(path, target)

        Path.rename = rename  # type: ignore[method-assign, assignment]
        work()

    child, pipe = children.fork(dying)
    os.waitpid(child, 0)
    os.close(pipe)


def content_of(path: Path) -> list[str]:
    return [file.name for file in path.iterdir()]


def test_a_folder_is_replaced_whole_and_nothing_is_left(tmp_path: Path) -> None:
    for content in ("one", "two", "three"):
        folder_of(tmp_path / "made", content)
        assert content_of(tmp_path / "made") == [content]
    assert content_of(tmp_path) == ["made"]


@pytest.mark.parametrize("number", [0, 1])
def test_a_kill_between_the_renames_loses_neither_the_old_nor_later_the_new(
    number: int, tmp_path: Path
) -> None:
    path = tmp_path / "here" / "made [1]*"
    folder_of(path, "old")
    killed_at_rename(number, lambda: folder_of(path, "new"))
    assert path.exists() == (number == 0) and len(content_of(path.parent)) == 2
    shutil.copytree(path.parent, tmp_path / "again")
    sweep(path.parent)
    assert content_of(path) == ["old"] and content_of(path.parent) == [path.name]
    again = tmp_path / "again" / path.name
    folder_of(again, "newer")  # without a sweep
    assert content_of(again) == ["newer"]
    assert not list(again.parent.glob("*.old"))


def test_a_kill_after_the_renames_leaves_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "made"
    folder_of(path, "new")
    (tmp_path / ".tmp-made-abc_1234.old").mkdir()
    (tmp_path / ".tmp-made-abc_1234.old" / "old").touch()
    sweep(tmp_path)
    assert content_of(path) == ["new"] and content_of(tmp_path) == ["made"]


def test_a_rename_that_fails_puts_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "made"
    folder_of(path, "old")
    honest, tried = Path.rename, []

    def failing(source: Path, target: Path) -> Path:
        tried.append(target)
        if len(tried) == 2:
            raise OSError(5, "Input/output error")
        return honest(source, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(StorageError, match="Input/output error"):
        folder_of(path, "new")
    assert content_of(path) == ["old"] and content_of(tmp_path) == ["made"]


def test_a_file_or_a_link_is_not_replaced_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "mine").touch()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").touch()
    for name in ("link", "file"):
        with pytest.raises(StorageError, match="Not a directory"):
            folder_of(tmp_path / name, "new")
    assert sorted(content_of(tmp_path)) == ["file", "link", "real"]
    assert content_of(tmp_path / "real") == ["mine"]


# ---- killed at any moment


def survive_kills(parent: Path, kills: int, seed: int) -> dict[str, int]:
    """Kill a saving child again and again; every time its last acknowledged step must load."""
    found = list(killed_while_saving(parent, kills, seed))
    return {
        "kills": len(found),
        "unloadable": sum(not each.whole for each in found),
        "older_than_acknowledged": sum(each.stale for each in found),
        "acknowledged_saves": sum(each.acknowledged for each in found),
        "kills_in_the_middle_of_a_save": sum(each.amid for each in found),
    }


def assert_nothing_lost(found: dict[str, int]) -> dict[str, int]:
    assert found["unloadable"] == found["older_than_acknowledged"] == 0, found
    assert found["kills_in_the_middle_of_a_save"] > 0 < found["acknowledged_saves"], found
    return found


def test_a_kill_at_any_moment_loses_no_acknowledged_checkpoint(tmp_path: Path) -> None:
    assert_nothing_lost(survive_kills(tmp_path, 40, seed=0))


@pytest.mark.long
def test_five_hundred_kills_lose_no_acknowledged_checkpoint(tmp_path: Path) -> None:
    hold(
        "kills_while_saving",
        "after SIGKILL at a random moment the newest checkpoint loads and is never older than the"
        " last one acknowledged",
        500,
        lambda: assert_nothing_lost(survive_kills(tmp_path, 500, seed=1)),
    )
