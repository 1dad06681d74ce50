"""A run folder belongs to one config and one job, and loads what it vouches for."""

import errno
import fcntl
import logging
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

import children
from diffmoe.checkpoint import RunFolder, load, load_tensors, verify, write
from diffmoe.config import RunConfig, read_config, to_dict, to_yaml
from diffmoe.errors import ConfigError, StorageError
from diffmoe.training import new_state, state_parts
from runs import changed, run_config
from tiny import stir


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
            write(folder.checkpoints, step, 16 * step, state_parts(state), to_dict(config))
    return folder


# ---- whose folder it is


def test_a_claimed_folder_holds_the_config_and_can_be_claimed_again(tmp_path: Path) -> None:
    folder = made(tmp_path / "run")
    assert read_config(folder.config) == run_config()
    made(tmp_path / "run")
    assert sorted(p.name for p in folder.path.iterdir()) == [".lock", "checkpoints", "config.yaml"]


def test_a_change_of_identity_is_refused_with_old_and_new_value(tmp_path: Path) -> None:
    folder = made(tmp_path / "run")
    before = folder.config.read_bytes()
    other = changed(run_config(), {"model.pool_images": 4, "training.seed": 7})
    with folder.locked(), pytest.raises(ConfigError) as caught:
        folder.claim(other)
    said = str(caught.value)
    assert "model.pool_images 8 -> 4" in said and "training.seed 0 -> 7" in said
    assert str(folder.path) in said and "--run" in said
    assert folder.config.read_bytes() == before


def test_what_may_change_is_taken_over(tmp_path: Path) -> None:
    made(tmp_path / "run")
    longer = changed(run_config(), {"loop.steps": 90, "machine.micro_batch": 8})
    folder = made(tmp_path / "run", config=longer)
    assert read_config(folder.config) == longer


def test_claiming_sweeps_what_a_killed_job_left_and_spares_a_report(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", 2)
    for place in (folder.checkpoints / ".tmp-step-00000004-x", folder.path / ".tmp-config-x.yaml"):
        place.mkdir()
    report = folder.path / ".tmp-report-x.html"
    report.touch()
    made(tmp_path / "run")
    assert [p.name for p in folder.checkpoints.iterdir()] == ["step-00000002"]
    assert not list(folder.path.glob(".tmp-config*")) and report.exists()


@pytest.mark.parametrize("text", ["model: [", "[]", "model: {widht: 3}"])
def test_a_folder_with_an_unreadable_config_is_not_taken_over(text: str, tmp_path: Path) -> None:
    folder = made(tmp_path / "run")
    folder.config.write_text(text)
    with folder.locked(), pytest.raises(ConfigError):
        folder.claim(run_config())
    assert folder.config.read_text() == text


# ---- one job at a time


def test_a_second_job_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        with pytest.raises(StorageError, match="another job"), folder.locked():
            pass
        assert children.outcome(lambda: folder.locked().__enter__())[0] == "StorageError"
    with folder.locked():
        pass


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


def test_a_damaged_newest_checkpoint_falls_back_loudly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = made(tmp_path / "run", 2, 4)
    victim = folder.checkpoints / "step-00000004" / "model.safetensors"
    victim.write_bytes(victim.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        assert load(folder.path).step == 2
    assert "model.safetensors is damaged" in caplog.text


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="this folder is no run"):
        load(tmp_path)
    with pytest.raises(StorageError, match="this folder is no run"):
        load(tmp_path / "nowhere")


def test_a_run_without_a_checkpoint_says_how_to_get_one(tmp_path: Path) -> None:
    folder = made(tmp_path / "run")
    with pytest.raises(StorageError, match="no checkpoint yet") as caught:
        load(folder.path)
    assert f"diffmoe train {folder.path}" in str(caught.value)


def test_a_run_of_damaged_checkpoints_is_refused(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", 2)
    (folder.checkpoints / "step-00000002" / "manifest.json").unlink()
    with pytest.raises(StorageError, match="none of the 1 checkpoints can be read"):
        load(folder.path)


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
        ({"weight": whole["weight"]}, "lacks 1 tensors, among them bias"),
        (whole | {"more": whole["bias"]}, "has unknown 1 tensors, among them more"),
        (whole | {"bias": torch.zeros(3)}, "has misshapen 1 tensors, among them bias"),
    ):
        with pytest.raises(StorageError, match=said):
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
