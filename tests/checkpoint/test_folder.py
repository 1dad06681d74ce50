"""A run folder belongs to one config and one job, and loads what it vouches for."""

import errno
import fcntl
import json
import logging
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

import children
from diffmoe.checkpoint import Content, RunFolder, load, load_tensors, verify, write
from diffmoe.config import RunConfig, read_config, to_dict, to_yaml
from diffmoe.errors import ConfigError, DiffMoEError, ExitCode, NoRunError, StorageError
from diffmoe.training import new_state, state_parts
from runs import changed, run_config
from tiny import stir

TRAINED_ON = {"codec": "pixels", "data": "3 digits sha256:0123"}


def made(path: Path, *steps: int, config: RunConfig | None = None) -> RunFolder:
    """A run folder with checkpoints whose raw and averaged weights differ."""
    folder, config = RunFolder(path), config or run_config()
    state = new_state(config, torch.device("cpu"))
    with folder.locked():
        folder.claim(config)
        for step in steps:
            stir(state.model, seed=step)
            state.average.load_state_dict(state.model.state_dict())
            stir(state.model, seed=step + 1)
            parts, content = state_parts(state), to_dict(config)
            write(folder.checkpoints, Content(step, 16 * step, parts, content, TRAINED_ON))
    return folder


def damaged(folder: RunFolder, step: int, name: str = "model.safetensors") -> None:
    victim = folder.checkpoints / f"step-{step:08d}" / name
    victim.write_bytes(victim.read_bytes()[:-1])


# ---- whose folder it is


def test_a_claimed_folder_holds_the_config_and_can_be_claimed_again(tmp_path: Path) -> None:
    folder = made(tmp_path / "run")
    assert read_config(folder.config) == run_config()
    made(tmp_path / "run")
    assert sorted(p.name for p in folder.path.iterdir()) == [".lock", "checkpoints", "config.yaml"]


def test_a_change_of_identity_is_refused_with_old_and_new_value(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", 2)
    before = folder.config.read_bytes()
    other = changed(run_config(), {"model.pool_images": 4, "training.seed": 7})
    with folder.locked(), pytest.raises(ConfigError) as caught:
        folder.claim(other)
    said = str(caught.value)
    assert "model.pool_images 8 -> 4" in said and "training.seed 0 -> 7" in said
    assert str(folder.path) in said and "--run" in said
    assert folder.config.read_bytes() == before


def test_a_run_that_left_nothing_makes_room_for_another_config(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = made(tmp_path / "run")
    folder.metrics.write_text('{"step": 1, "loss": 1.0}\n')
    other = changed(run_config(), {"training.learning_rate": 0.1})
    with caplog.at_level(logging.INFO, logger="diffmoe"):
        made(tmp_path / "run", config=other)
    assert "begins anew: training.learning_rate 0.003 -> 0.1" in caplog.text
    assert read_config(folder.config) == other and not folder.metrics.exists()


def test_a_run_whose_checkpoint_was_lost_makes_no_room(tmp_path: Path) -> None:
    folder = made(tmp_path / "run")
    folder.metrics.write_text('{"step": 2, "loss": 1.0}\n')
    folder.note_saved(2)
    other = changed(run_config(), {"training.learning_rate": 0.1})
    with pytest.raises(ConfigError, match=r"learning_rate 0\.003 -> 0\.1"):
        made(tmp_path / "run", config=other)
    assert read_config(folder.config) == run_config() and folder.metrics.exists()


@pytest.mark.parametrize("name", ["notes.txt", "metrics.jsonl", "checkpoints/other.pt", "src/a.py"])
def test_a_folder_of_other_things_is_no_home(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(StorageError, match=f"other things, {name.split('/')[0]} for one") as caught:
        RunFolder(tmp_path).refuse_another(run_config())
    assert len(str(caught.value).splitlines()) == 1 and "--run" in str(caught.value)


def test_what_an_aborted_job_left_is_no_other_thing(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / ".tmp-step-00000002-x").mkdir(parents=True)
    for name in (".lock", ".tmp-config-x.yaml"):
        (tmp_path / name).touch()
    made(tmp_path)
    assert read_config(tmp_path / "config.yaml") == run_config()


def test_what_may_not_be_read_is_not_called_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made(tmp_path / "run", 2)

    def closed(path: Path, *others: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    said = r"the folder cannot be read \(Permission denied\) — "
    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", closed)
        with pytest.raises(StorageError, match=said + ".*run/checkpoints — check"):
            load(folder.path)
    monkeypatch.setattr(Path, "is_file", closed)
    with pytest.raises(StorageError, match=said + ".*run — check"):
        load(folder.path)


def test_what_may_change_is_taken_over(tmp_path: Path) -> None:
    made(tmp_path / "run")
    longer = changed(run_config(), {"loop.steps": 90, "machine.micro_batch": 8})
    folder = made(tmp_path / "run", config=longer)
    assert read_config(folder.config) == longer


def test_a_lock_sweeps_what_a_killed_job_left_and_spares_a_report(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", 2)
    for place in (folder.checkpoints / ".tmp-step-00000004-x", folder.path / ".tmp-config-x.yaml"):
        place.mkdir()
    report = folder.path / ".tmp-report-x.html"
    report.touch()
    made(tmp_path / "run")
    assert [p.name for p in folder.checkpoints.iterdir()] == ["step-00000002"]
    assert not list(folder.path.glob(".tmp-config*")) and report.exists()


def test_a_lock_puts_back_the_checkpoint_whose_successor_never_came(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", 2)
    (path,) = folder.checkpoints.iterdir()
    path.rename(path.with_name(f".tmp-{path.name}-abc_1234.old"))
    with folder.locked():
        assert load(folder.path).step == 2
    assert list(folder.checkpoints.iterdir()) == [path]


# ---- a folder that was never claimed


@pytest.mark.parametrize("below", ["run", "runs/deep/run"])
def test_a_folder_made_for_a_job_that_cannot_begin_goes_again(below: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / below)
    with pytest.raises(KeyError), folder.locked():
        assert (folder.path / ".lock").exists()
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_a_claim_that_fails_half_way_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*others: object) -> None:
        raise StorageError("cannot write config.yaml (No space left on device)")

    monkeypatch.setattr("diffmoe.checkpoint.folder.write_text", full)
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(StorageError, match="No space left"), folder.locked():
        folder.claim(run_config())
    assert not list(tmp_path.iterdir())


def test_what_was_there_before_a_job_that_cannot_begin_stays(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "note.txt").write_text("mine")
    for path, left in ((tmp_path / "run", ["note.txt"]), (tmp_path / "run" / "below", [])):
        with pytest.raises(KeyError), RunFolder(path).locked():
            raise KeyError
        assert [p.name for p in path.iterdir()] == left if left else not path.exists()
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["note.txt"]
    folder = made(tmp_path / "mine", 2)
    with pytest.raises(KeyError), folder.locked():
        raise KeyError
    assert load(folder.path).step == 2


def test_a_lock_file_that_was_just_removed_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, folder = fcntl.flock, RunFolder(tmp_path / "run")

    def late(handle: int, how: int) -> None:
        (folder.path / ".lock").unlink()  # by the job that held it, between opening and locking
        honest(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(StorageError, match="another job"), folder.locked():
        pass


@pytest.mark.parametrize("text", ["model: [", "[]", "model: {widht: 3}"])
def test_a_folder_with_an_unreadable_config_is_not_taken_over(text: str, tmp_path: Path) -> None:
    folder = made(tmp_path / "run")
    folder.config.write_text(text)
    with folder.locked(), pytest.raises(ConfigError):
        folder.claim(run_config())
    assert folder.config.read_text() == text


# ---- what its classes are called


NAMES = (
    *("tench, Tinca tinca", 'a "quoted" <name>', "日本 é", "", " spaces ", "1"),
    *("two\nlines", "a\r\nb\x85c\u2028d", "back\\slash", r"\n \u000a \\", "tab\tand\0null"),
)


def test_class_names_come_back_as_they_were(tmp_path: Path) -> None:
    folder = made(tmp_path / "run")
    assert folder.class_names == ()
    folder.keep_class_names(NAMES)
    assert folder.class_names == NAMES
    lines = (folder.path / "classes.txt").read_bytes().decode("utf-8").splitlines()
    assert len(lines) == len(NAMES) and lines[0] == NAMES[0]
    for names in ((), ("",), ("a", ""), ("", "a")):
        folder.keep_class_names(names)
        assert folder.class_names == names


def test_class_names_written_by_hand(tmp_path: Path) -> None:
    for content, names in (
        (b"cat\ndog", ("cat", "dog")),
        (b"caf\xe9\nb\n", ("caf\ufffd", "b")),
        (b"a\\b\n\\ud800\n", ("a\\b", "\\ud800")),
        (b"", ()),
    ):
        (tmp_path / "classes.txt").write_bytes(content)
        assert RunFolder(tmp_path).class_names == names


def test_a_class_name_that_is_no_text_is_kept_as_far_as_it_is(tmp_path: Path) -> None:
    folder = made(tmp_path / "run")
    folder.keep_class_names(["caf\udce9"])
    (name,) = folder.class_names
    assert name.startswith("caf") and name.encode("utf-8")


def test_a_lock_sweeps_half_written_class_names(tmp_path: Path) -> None:
    folder = made(tmp_path / "run")
    folder.keep_class_names(["a"])
    (folder.path / ".tmp-classes-x.txt").touch()
    made(tmp_path / "run")
    assert not list(folder.path.glob(".tmp-classes*")) and folder.class_names == ("a",)


# ---- one job at a time


def test_a_second_job_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        with pytest.raises(StorageError, match="another job"), folder.locked():
            pass
        assert children.outcome(lambda: folder.locked().__enter__())[0] == "StorageError"
    with folder.locked():
        pass


def test_a_child_of_the_job_does_not_hold_its_lock(tmp_path: Path) -> None:
    """Readers outlive a killed job for some seconds, and would keep the next one out."""
    folder = made(tmp_path)

    def job(pipe: int) -> None:
        with folder.locked():
            reader, _ = children.fork(lambda _: time.sleep(60))
            os.write(pipe, str(reader).encode())
            time.sleep(60)

    child, pipe = children.fork(job)
    reader = int(os.read(pipe, 100))
    children.kill(child)
    try:
        with folder.locked():
            os.kill(reader, 0)  # it is there
    finally:
        os.kill(reader, signal.SIGKILL)


def test_the_lock_ends_with_the_process_that_held_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")

    def hold_it(pipe: int) -> None:
        with folder.locked():
            os.write(pipe, b"held")
            time.sleep(60)

    child, pipe = children.fork(hold_it)
    assert os.read(pipe, 4) == b"held"
    with pytest.raises(StorageError), folder.locked():
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(pipe)
    with folder.locked():
        pass


def test_a_file_system_without_locks_is_not_taken_for_another_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(handle: object, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", cannot)
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(OSError, match="No locks available"), folder.locked():
        pass


@pytest.mark.parametrize("below", ["", "below", "below/deeper"])
def test_a_run_below_a_file_is_one_sentence(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = RunFolder(tmp_path / "file" / below)
    with pytest.raises(StorageError, match="cannot write to the run") as caught, folder.locked():
        pass
    assert len(str(caught.value).splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# ---- loading


def test_averaged_weights_are_loaded_unless_raw_ones_are_asked_for(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", 2)
    averaged, raw = load(folder.path), load(str(folder.path), weights="raw")
    manifest = verify(folder.checkpoints / "step-00000002")
    for run, name in ((averaged, "ema"), (raw, "model")):
        assert (run.step, run.config) == (2, run_config())
        assert run.fingerprint == manifest.files[f"{name}.safetensors"]["sha256"]
        assert not run.model.training
        assert not any(p.requires_grad for p in run.model.parameters())
    weight = "final.weight"
    assert not torch.equal(averaged.model.state_dict()[weight], raw.model.state_dict()[weight])
    wanted = new_state(run_config(), torch.device("cpu")).model
    stir(wanted, seed=2)
    assert torch.equal(averaged.model.state_dict()[weight], wanted.state_dict()[weight])


def test_a_run_tells_what_it_was_trained_on_as_far_as_its_checkpoint_knows(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", 2)
    assert load(folder.path).trained_on == TRAINED_ON
    tensors = state_parts(new_state(run_config(), torch.device("cpu")))
    write(folder.checkpoints, Content(4, 64, tensors, to_dict(run_config())))
    assert load(folder.path).trained_on == {}


def test_a_checkpoint_of_a_certain_step_can_be_asked_for(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", 2, 4)
    assert [load(folder.path, step=step).step for step in (2, 4, None)] == [2, 4, 4]
    with pytest.raises(StorageError, match=r"no checkpoint of step 3 — .* — use one of 2, 4"):
        load(folder.path, step=3)


@pytest.mark.parametrize("name", ["model.safetensors", "manifest.json"])
def test_a_damaged_newest_checkpoint_is_refused_and_the_sound_one_named(
    name: str, tmp_path: Path
) -> None:
    folder = made(tmp_path / "run", 2, 4, 6)
    damaged(folder, 6, name)
    with pytest.raises(StorageError, match=r"step-00000006 cannot be used: .* damaged") as caught:
        load(folder.path)
    assert "use step 4, the newest that is sound" in str(caught.value)
    assert "load(RUN, step=4)" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert load(folder.path, step=4).step == 4
    with pytest.raises(StorageError, match="step-00000006 cannot be used"):
        load(folder.path, step=6)


def test_a_damaged_older_checkpoint_is_refused_only_if_it_is_asked_for(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", 2, 4)
    damaged(folder, 2)
    assert load(folder.path).step == 4
    with pytest.raises(StorageError, match=r"step-00000002 cannot be used.*use step 4"):
        load(folder.path, step=2)


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(NoRunError, match="this folder is no run") as caught:
            load(path)
        assert caught.value.exit_code is ExitCode.BAD_INPUT


def test_a_run_without_a_checkpoint_says_how_to_get_one(tmp_path: Path) -> None:
    folder = made(tmp_path / "run")
    with pytest.raises(StorageError, match="no checkpoint yet") as caught:
        load(folder.path)
    assert f"diffmoe train {folder.path}" in str(caught.value)


def test_a_run_of_damaged_checkpoints_is_refused(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", 2)
    (folder.checkpoints / "step-00000002" / "manifest.json").unlink()
    with pytest.raises(StorageError, match="the only checkpoint cannot be read"):
        load(folder.path)


def test_a_run_of_several_damaged_checkpoints_is_one_sentence(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", 2, 4)
    damaged(folder, 2)
    damaged(folder, 4)
    for step in (2, None):
        with pytest.raises(StorageError, match="none of the 2 checkpoints can be read") as caught:
            load(folder.path, step=step)
        assert len(str(caught.value).splitlines()) == 1


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", 2)
    other = changed(run_config(), {"model.depth": 4})
    folder.config.write_text(to_yaml(other))
    with pytest.raises(StorageError, match=r"model.depth is 2 there and 4") as caught:
        load(folder.path)
    assert "belongs to another model" in str(caught.value)


def test_missing_extra_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    whole = dict(model.state_dict())
    for tensors, said in (
        ({"weight": whole["weight"]}, "the checkpoint lacks 1 tensor, e.g. bias — here"),
        ({}, "the checkpoint lacks 2 tensors, e.g. bias — here"),
        (whole | {"more": whole["bias"]}, "has 1 tensor that the model has not, e.g. more — here"),
        (
            whole | {"bias": torch.zeros(3)},
            "1 tensor has another shape than the model's, e.g. bias is [3] there and [2] here",
        ),
        (
            {"bias": torch.zeros(()), "weight": torch.zeros(2, 3)},
            "2 tensors have another shape than the model's, e.g. bias is [] there and [2] here",
        ),
    ):
        with pytest.raises(StorageError, match=re.escape(said)):
            load_tensors(model, tensors, where="here")


def test_a_copied_run_loads_from_its_new_place(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", 2)
    shutil.copytree(folder.path, tmp_path / "copy")
    assert load(tmp_path / "copy").fingerprint == load(folder.path).fingerprint


def test_a_checkpoint_of_another_model_of_the_same_shapes_is_refused(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", 4)
    folder.config.write_text(to_yaml(changed(run_config(), {"model.heads": 4})))
    with pytest.raises(StorageError, match=r"model.heads is 2 there and 4 in config.yaml"):
        load(folder.path)


@pytest.mark.parametrize("content", [[3], "x", {"model": 3}, {"a": "deep"}], ids=str)
def test_a_manifest_with_a_strange_config_is_one_sentence(content: object, tmp_path: Path) -> None:
    folder = made(tmp_path / "run")
    tensors = state_parts(new_state(run_config(), torch.device("cpu")))
    if content == {"a": "deep"}:
        content = json.loads('{"a": ' * 220 + "1" + "}" * 220)
    write(folder.checkpoints, Content(2, 32, tensors, content))  # type: ignore[arg-type]
    with pytest.raises(DiffMoEError) as caught:
        load(folder.path)
    assert len(str(caught.value).splitlines()) == 1 and "step-00000002" in str(caught.value)
