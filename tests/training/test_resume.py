"""Resuming is the same command and gives the same run, bit for bit."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from diffmoe.checkpoint import (
    Content,
    RunFolder,
    load,
    newest_checkpoint,
    read_metrics,
    read_part,
    write,
)
from diffmoe.codec import Pixels
from diffmoe.config import AutoencoderCodec, FolderData, RunConfig, to_dict, to_yaml
from diffmoe.data import open_source, stream
from diffmoe.errors import ConfigError, DataError, ExitCode, NonFiniteError, StorageError
from diffmoe.model import DiT
from diffmoe.objective import build_objective
from diffmoe.sampling import generate
from diffmoe.training import Counters, loop, material, state, train, watch
from long_record import hold
from runs import (
    OBJECTIVES,
    ROUTER_KINDS,
    changed,
    newest_tensors,
    poisoned,
    run_config,
    stored_latents,
)

Tensors = dict[str, Tensor]
SPEED = {"images_per_second", "peak_memory_gib"}
# How a run computes, and where it stops: accumulation, recomputation, processes that read.
WAYS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "whole": ({"machine.background_saves": False}, (3,)),
    "accumulated, 2 readers": ({"machine.micro_batch": 8, "machine.workers": 2}, (4,)),
    "recomputed, chained": (
        {"machine.micro_batch": 8, "machine.activation_checkpointing": True},
        (1, 2, 6),
    ),
}


def until(config: RunConfig, path: Path, *stops: int) -> Tensors:
    """The newest checkpoint after training up to each stop by a command of its own."""
    for stop in stops:
        train(changed(config, {"loop.steps": stop}), path, progress=False)
    return newest_tensors(path)


def different(left: Tensors, right: Tensors) -> list[str]:
    """Names of tensors that are not bit for bit the same."""
    return [
        name
        for name in {**left, **right}
        if name not in left
        or name not in right
        or left[name].dtype != right[name].dtype
        or left[name].numpy().tobytes() != right[name].numpy().tobytes()
    ]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Grey images of 8 x 8 pixels in two classes."""
    for name in ("cat", "dog"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for grey in range(6):
            picture = Image.new("L", (8, 8), color=40 * grey)
            picture.putpixel((grey, 1), 255 if name == "cat" else 7)
            picture.save(tmp_path / "pictures" / name / f"{grey}.bmp")
    return tmp_path / "pictures"


def of(pictures: Path) -> dict[str, Any]:
    return {"data": FolderData(path=pictures), "model__num_classes": 2}


def whole(path: Path) -> dict[str, Any]:
    """The newest checkpoint but for its tensors, and the metrics but for their speed."""
    found = newest_checkpoint(RunFolder(path).checkpoints)
    assert found is not None
    kept = asdict(found[1])
    machine = kept["config"].pop("machine")
    assert machine and kept["files"]
    told = read_metrics(RunFolder(path).metrics)
    lines = [{k: v for k, v in line.items() if k not in SPEED} for line in told]
    return kept | {"metrics": lines}


def drawn(path: Path) -> Tensor:
    """Images drawn from the averaged weights of a run."""
    run = load(path)
    return generate(run.model, run.config, [1, 0], [3, 4])


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("router", ROUTER_KINDS)
def test_a_resumed_run_is_the_undisturbed_one(
    router: str, objective: str, way: str, tmp_path: Path, pictures: Path
) -> None:
    """24 of 24: whole checkpoints with tolerance 0, metrics, and images of the averaged weights.

    Twelve images an epoch and sixteen a step: every stop lies inside of an epoch, and of what a
    line of metrics is made of.
    """
    machine, stops = WAYS[way]
    every = {"loop.checkpoint_every": 5, "loop.log_every": 3}
    config = changed(run_config(router, objective, **of(pictures)), machine | every)
    straight = until(config, tmp_path / "straight", 8)
    assert not different(until(config, tmp_path / "resumed", *stops, 8), straight)
    assert whole(tmp_path / "resumed") == whole(tmp_path / "straight")
    assert torch.equal(drawn(tmp_path / "resumed"), drawn(tmp_path / "straight"))
    parts = {name.split("/")[0] for name in straight}
    assert parts == {"model", "ema", "optimizer", "window"}
    weights = [name for name in straight if name.startswith("model/") and "weight" in name]
    assert all(f"optimizer/{name.removeprefix('model/')}/exp_avg" in straight for name in weights)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_chained_resumes_are_the_undisturbed_run(objective: str, tmp_path: Path) -> None:
    config = run_config("batch_pool", objective)
    straight = until(config, tmp_path / "straight", 10)
    assert not different(until(config, tmp_path / "chained", 1, 2, 4, 7, 10), straight)


def test_a_resume_across_the_end_of_an_epoch_is_the_undisturbed_run(tmp_path: Path) -> None:
    config = run_config(training__global_batch=600, machine__micro_batch=200)
    straight = until(config, tmp_path / "straight", 5)
    for stop in (2, 3):  # 1,797 images: the end of the first epoch lies in step 3
        assert not different(until(config, tmp_path / f"at {stop}", stop, 5), straight)


def test_a_bfloat16_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    config = run_config(training__precision="bfloat16")
    straight = until(config, tmp_path / "straight", 10)
    assert not different(until(config, tmp_path / "resumed", 3, 10), straight)


def test_two_runs_of_a_config_are_the_same_and_of_another_seed_are_not(tmp_path: Path) -> None:
    config = run_config()
    first = until(config, tmp_path / "first", 4)
    assert not different(until(config, tmp_path / "second", 4), first)
    other = changed(config, {"training.seed": 1})
    assert "model/final.weight" in different(until(other, tmp_path / "other", 4), first)


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    config = run_config()
    before = until(config, tmp_path, 4)
    lines = (tmp_path / "metrics.jsonl").read_bytes()
    assert not different(until(config, tmp_path, 4, 4), before)
    assert (tmp_path / "metrics.jsonl").read_bytes() == lines


def files(path: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_fewer_steps_than_are_done_are_refused_and_change_nothing(tmp_path: Path) -> None:
    config = run_config()
    until(config, tmp_path, 4)
    before = files(tmp_path)
    with pytest.raises(ConfigError, match=r"loop\.steps 3 is less than the 4 steps") as caught:
        until(config, tmp_path, 3)
    assert "set --loop.steps 4 or more" in str(caught.value)
    assert files(tmp_path) == before


# ---- every item of the state counts: a resume without it is another run

State = dict[str, int | float]


def rewritten(
    path: Path,
    change: Callable[[dict[str, Tensors]], object] = lambda parts: None,
    state: Callable[[State], object] = lambda state: None,
    step: int = 4,
) -> None:
    """Make the newest checkpoint another one, with a manifest that vouches for it."""
    checkpoints = RunFolder(path).checkpoints
    found = newest_checkpoint(checkpoints)
    assert found is not None
    parts = {name: read_part(found[0], name) for name in found[1].tensors}
    shutil.rmtree(checkpoints)
    counters = dict(found[1].state)
    change(parts)
    state(counters)
    write(checkpoints, Content(step, 16 * step, parts, state=counters))


def forgotten(value: Tensor) -> Tensor:
    """What a resume that forgot a tensor would begin with."""
    return torch.zeros_like(value) if value.any() else torch.ones_like(value)


def resumed_without(config: RunConfig, path: Path, part: str, name: str) -> Tensors:
    """The state one step after a resume that forgot one tensor; none is forgotten for ""."""
    found = newest_checkpoint(RunFolder(path).checkpoints)
    assert found is not None
    run = state.new_state(config, torch.device("cpu"))
    state.restore(run, *found)
    if name:
        value = state.state_parts(run)[part][name]
        with torch.no_grad():
            value.copy_(forgotten(value))
    batches = stream(config, open_source(config), None, first=run.counters.position, device="cpu")
    loop.train_step(run, build_objective(config.objective), [next(batches)], config)
    parts = state.state_parts(run)
    return {f"{kind}/{key}": value for kind in parts for key, value in parts[kind].items()}


def kill_mutants(home: Path, every: int) -> dict[str, int]:
    """Forget every n-th tensor of the state in turn, and all thresholds; count what is noticed.

    Thresholds beside the averaged weights are no state: each step copies them from the model.
    """
    config = run_config()
    straight = until(config, home / "straight", 5)
    straight = {name: value for name, value in straight.items() if not name.startswith("window/")}
    until(config, home / "resumed", 4)
    assert not different(resumed_without(config, home / "resumed", "", ""), straight)
    copied = [name for name in straight if name.startswith("ema/") and "threshold" in name]
    tried = sorted({*list(straight)[::every], *(name for name in straight if "threshold" in name)})
    noticed = [
        name
        for name in tried
        if different(resumed_without(config, home / "resumed", *name.split("/", 1)), straight)
    ]
    assert sorted(set(tried) - set(noticed)) == sorted(copied) and len(copied) == 4
    return {"tensors": len(straight), "mutants": len(tried) - 4, "noticed": len(noticed)}


def test_a_resume_that_forgets_a_tensor_of_the_state_is_seen(tmp_path: Path) -> None:
    found = kill_mutants(tmp_path, every=6)
    assert found["noticed"] == found["mutants"] > 25


def test_a_resume_that_forgets_what_a_line_is_made_of_is_seen(tmp_path: Path) -> None:
    config = run_config(loop__log_every=6)
    until(config, tmp_path / "straight", 8)
    until(config, tmp_path / "honest", 4)
    shutil.copytree(tmp_path / "honest", tmp_path / "forgetful")
    rewritten(tmp_path / "honest")
    rewritten(tmp_path / "forgetful", lambda parts: parts["window"].clear())
    for kind in ("honest", "forgetful"):
        until(config, tmp_path / kind, 8)
    straight, honest, forgetful = (
        whole(tmp_path / kind)["metrics"] for kind in ("straight", "honest", "forgetful")
    )
    assert [line["step"] for line in straight] == [6, 8] and honest == straight
    assert forgetful[0]["loss"] != straight[0]["loss"]


@pytest.mark.long
def test_a_resume_that_forgets_any_tensor_of_the_state_is_seen(tmp_path: Path) -> None:
    promise = "a resume that forgets any one tensor of the state does not end like the straight run"
    hold("resume_mutants", promise, 186, lambda: kill_mutants(tmp_path, every=1))


def test_a_resume_that_forgets_the_step_is_seen(tmp_path: Path) -> None:
    config = run_config()
    straight = until(config, tmp_path / "straight", 8)
    until(config, tmp_path / "resumed", 4)
    rewritten(tmp_path / "resumed", step=3)
    assert different(until(config, tmp_path / "resumed", 8), straight)


COUNTERS = [entry.name for entry in fields(Counters) if entry.name != "bad_in_a_row"]


@pytest.mark.parametrize("name", COUNTERS)
def test_a_resume_that_forgets_a_counter_is_seen(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 1, 4 and 5 are bad; two in a row are one too many, so it goes back to step 2, once."""
    config = run_config(loop__max_bad_in_a_row=2, loop__rewinds=1, loop__spike_sigma=1e-3)

    def forget(state: State) -> None:
        state[name] = type(state[name])(0)

    monkeypatch.setattr(watch, "_ENOUGH", 1)
    monkeypatch.setattr(material, "stream", poisoned(material.stream, 0, 48, 64))
    until(config, tmp_path / "straight", 10)
    until(config, tmp_path / "honest", 8)
    shutil.copytree(tmp_path / "honest", tmp_path / "forgetful")
    rewritten(tmp_path / "honest", step=8)
    rewritten(tmp_path / "forgetful", state=forget, step=8)
    for kind in ("honest", "forgetful"):
        until(config, tmp_path / kind, 10)
    straight, honest, forgetful = (
        whole(tmp_path / kind)["state"] for kind in ("straight", "honest", "forgetful")
    )
    assert honest == straight != forgetful
    assert all(straight[counter] for counter in COUNTERS) and straight["position"] == 80 + 8 * 16


def test_a_resume_that_forgets_how_many_steps_in_a_row_were_bad_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(loop__max_bad_in_a_row=3)
    monkeypatch.setattr(material, "stream", poisoned(material.stream, 48, 64, 80))
    until(config, tmp_path / "honest", 4)
    shutil.copytree(tmp_path / "honest", tmp_path / "forgetful")
    rewritten(tmp_path / "honest")
    rewritten(tmp_path / "forgetful", state=lambda state: state.update(bad_in_a_row=0))
    with pytest.raises(NonFiniteError, match="in 3 steps in a row, up to step 6"):
        until(config, tmp_path / "honest", 10)
    until(config, tmp_path / "forgetful", 10)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("bad_steps"),
        lambda state: state.update(more=1),
        lambda state: state.update(position=1.5),
        lambda state: state.clear(),
    ],
)
def test_counters_with_a_gap_are_refused(change: Callable[[State], object], tmp_path: Path) -> None:
    until(run_config(), tmp_path, 4)
    rewritten(tmp_path, state=change)
    with pytest.raises(StorageError, match="the state of the run has no") as caught:
        until(run_config(), tmp_path, 8)
    assert len(str(caught.value).splitlines()) == 1


# ---- what cannot be resumed


def test_a_damaged_newest_checkpoint_costs_steps_and_no_bit(tmp_path: Path) -> None:
    config = run_config()
    straight = until(config, tmp_path / "straight", 8)
    until(config, tmp_path / "resumed", 4)
    victim = tmp_path / "resumed" / "checkpoints" / "step-00000004" / "ema.safetensors"
    victim.write_bytes(victim.read_bytes()[:-4])
    assert not different(until(config, tmp_path / "resumed", 8), straight)


def test_weights_alone_cannot_be_trained_on(tmp_path: Path) -> None:
    config = run_config()
    until(config, tmp_path, 4)
    rewritten(tmp_path, lambda parts: parts.pop("optimizer") and None)
    with pytest.raises(StorageError, match="holds no optimizer state"):
        until(config, tmp_path, 8)


GAPS: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "one key": (lambda m: m.pop("final.weight/step"), r"lacks final\.weight/step"),
    "two keys": (
        lambda m: [m.pop(f"final.weight/{key}") for key in ("exp_avg", "step")],
        r"lacks final\.weight/exp_avg",
    ),
    "shape": (
        lambda m: m.update({"final.weight/exp_avg": torch.zeros(3)}),
        r"has final\.weight/exp_avg as float32 \[3\], not as \[4, 16\]",
    ),
    "scalar": (
        lambda m: m.update({"final.weight/step": torch.zeros(1)}),
        r"has final\.weight/step as float32 \[1\], not as \[\]",
    ),
    "whole numbers": (
        lambda m: m.update({"final.weight/step": torch.tensor(4)}),
        r"has final\.weight/step as int64",
    ),
    "more keys": (
        lambda m: m.update({"final.weight/more": torch.zeros(3)}),
        r"has final\.weight/more",
    ),
    "more tensors": (
        lambda m: m.update({"other.weight/step": torch.zeros(())}),
        r"has 'other\.weight', which the model has not",
    ),
    "nothing": (lambda m: m.clear(), "holds no optimizer state"),
}


@pytest.mark.parametrize("name", GAPS)
def test_an_optimizer_state_with_a_gap_is_refused(name: str, tmp_path: Path) -> None:
    config, (gap, said) = run_config(), GAPS[name]
    until(config, tmp_path, 4)
    rewritten(tmp_path, lambda parts: gap(parts["optimizer"]) and None)
    with pytest.raises(StorageError, match=said) as caught:
        until(config, tmp_path, 8)
    assert len(str(caught.value).splitlines()) == 1


def test_a_parameter_that_never_had_a_gradient_is_no_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = state.build_model

    def idle(*others: Any) -> DiT:
        model = honest(*others)
        model.register_parameter("idle", torch.nn.Parameter(torch.ones(3)))
        return model

    monkeypatch.setattr(state, "build_model", idle)
    config = run_config()
    straight = until(config, tmp_path / "straight", 8)
    assert "model/idle" in straight and "optimizer/idle/step" not in straight
    assert not different(until(config, tmp_path / "resumed", 4, 8), straight)


def test_a_checkpoint_of_another_model_of_the_same_shapes_is_refused(tmp_path: Path) -> None:
    config = run_config()
    until(config, tmp_path, 4)
    other = changed(config, {"model.heads": 4})
    (tmp_path / "config.yaml").write_text(to_yaml(other))
    with pytest.raises(StorageError, match=r"model\.heads is 2 there and 4 in config\.yaml"):
        until(other, tmp_path, 8)


# ---- what a run was trained on


def on(pictures: Path) -> RunConfig:
    return run_config(**of(pictures))


def test_a_checkpoint_knows_its_codec_and_its_data(tmp_path: Path, pictures: Path) -> None:
    until(on(pictures), tmp_path / "run", 2)
    found = newest_checkpoint(RunFolder(tmp_path / "run").checkpoints)
    assert found is not None
    origin = found[1].trained_on
    assert origin.keys() == {"codec", "data"} and origin["codec"] == "pixels"
    assert origin["data"].startswith("12 images sha256:")
    assert load(tmp_path / "run").trained_on == origin


def test_data_may_move(tmp_path: Path, pictures: Path) -> None:
    straight = until(on(pictures), tmp_path / "straight", 8)
    until(on(pictures), tmp_path / "run", 4)
    pictures.rename(tmp_path / "elsewhere")
    assert not different(until(on(tmp_path / "elsewhere"), tmp_path / "run", 8), straight)


def relabel(pictures: Path) -> None:
    (pictures / "cat" / "5.bmp").rename(pictures / "dog" / "6.bmp")


def repaint(pictures: Path) -> None:
    Image.new("L", (8, 8), color=9).save(pictures / "cat" / "3.bmp")  # of the same size


def take_away(pictures: Path) -> None:
    (pictures / "dog" / "5.bmp").unlink()


@pytest.mark.parametrize("change", [relabel, repaint, take_away])
def test_other_data_at_the_same_place_are_refused_and_nothing_changes(
    change: Callable[[Path], None], tmp_path: Path, pictures: Path
) -> None:
    until(on(pictures), tmp_path / "run", 4)
    change(pictures)
    before = files(tmp_path)
    said = r"the data of this run changed from 12 images sha256:\w+ to 1[12] images sha256:\w+ — "
    with pytest.raises(ConfigError, match=said) as caught:
        until(on(pictures), tmp_path / "run", 8)
    assert len(str(caught.value).splitlines()) == 1
    assert files(tmp_path) == before


def test_other_data_may_be_accepted(
    tmp_path: Path, pictures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    until(on(pictures), tmp_path / "run", 4)
    then = load(tmp_path / "run").trained_on["data"]
    relabel(pictures)
    config = changed(on(pictures), {"loop.steps": 8})
    with pytest.raises(ConfigError, match="or accept them: --accept-new-data"):
        train(config, tmp_path / "run", progress=False)
    train(config, tmp_path / "run", progress=False, accept_new_data=True)
    now = load(tmp_path / "run").trained_on["data"]
    assert now != then and f"changed from {then} to {now}, as accepted" in caplog.text
    until(on(pictures), tmp_path / "run", 10)  # they are those of the run from here on


# ---- damaged samples


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_on_damaged_samples_goes_on_as_if_never_stopped(
    workers: int, tmp_path: Path, pictures: Path
) -> None:
    (pictures / "dog" / "3.bmp").write_bytes(b"BM no picture")
    (pictures / "cat" / "1.bmp").write_bytes(b"")
    config = changed(on(pictures), {"machine.workers": workers, "machine.micro_batch": 8})
    with pytest.raises(DataError, match=r"image \d+ (cannot be read|is empty)"):
        until(config, tmp_path / "refused", 4)
    assert not (tmp_path / "refused").exists()
    config = changed(config, {"data.on_bad_sample": "replace", "data.max_bad_share": 0.2})
    straight = until(config, tmp_path / "straight", 8)
    assert not different(until(config, tmp_path / "resumed", 1, 4, 8), straight)
    for kind in ("straight", "resumed"):
        told = RunFolder(tmp_path / kind).bad_samples.read_text().splitlines()
        assert sorted(json.loads(line)["place"] for line in told) == [1, 9]
        assert all(name in "".join(told) for name in ("3.bmp", "1.bmp"))
    (pictures / "dog" / "0.bmp").write_bytes(b"BM")
    config = changed(config, {"loop.steps": 12})
    with pytest.raises(DataError, match="3 of 12 samples are damaged") as caught:
        train(config, tmp_path / "resumed", progress=False, accept_new_data=True)
    assert caught.value.exit_code is ExitCode.BAD_DATA and load(tmp_path / "resumed").step >= 8
    assert "remove the list and go on with --accept-new-data" in str(caught.value)
    for name in ("dog/0.bmp", "dog/3.bmp", "cat/1.bmp"):
        shutil.copy(pictures / "cat" / "0.bmp", pictures / name)
    train(config, tmp_path / "resumed", progress=False, accept_new_data=True)  # lines of other data


def test_classes_that_moved_are_refused_even_so(tmp_path: Path, pictures: Path) -> None:
    config = changed(on(pictures), {"model.num_classes": 3})
    until(config, tmp_path / "run", 4)
    before = files(tmp_path / "run")
    (pictures / "dog").rename(pictures / "ant")
    config = changed(config, {"loop.steps": 8})
    with pytest.raises(
        ConfigError, match="class 0 of this run is cat, and ant in the data"
    ) as caught:
        train(config, tmp_path / "run", progress=False, accept_new_data=True)
    assert "choose another --run" in str(caught.value) and files(tmp_path / "run") == before
    (pictures / "ant").rename(pictures / "dog")
    shutil.copytree(pictures / "dog", pictures / "emu")  # a new class may come after them
    train(config, tmp_path / "run", progress=False, accept_new_data=True)
    assert RunFolder(tmp_path / "run").class_names == ("cat", "dog", "emu")


def test_another_codec_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    until(run_config(), tmp_path, 4)
    monkeypatch.setattr(Pixels, "identity", "finer pixels")
    config = run_config(loop__steps=8)
    for accepting in (False, True):
        with pytest.raises(ConfigError, match="the codec of this run changed from pixels to finer"):
            train(config, tmp_path, progress=False, accept_new_data=accepting)


def test_a_checkpoint_that_does_not_say_what_it_was_trained_on_is_accepted(tmp_path: Path) -> None:
    config = run_config()
    straight = until(config, tmp_path / "straight", 8)
    until(config, tmp_path / "resumed", 4)
    rewritten(tmp_path / "resumed")
    assert load(tmp_path / "resumed").trained_on == {}
    assert not different(until(config, tmp_path / "resumed", 8), straight)
    assert load(tmp_path / "resumed").trained_on.keys() == {"codec", "data"}


# ---- a past that is lost


def test_lost_checkpoints_are_not_taken_for_a_beginning(tmp_path: Path) -> None:
    config = run_config()
    until(config, tmp_path, 4)
    shutil.rmtree(tmp_path / "checkpoints")
    before = files(tmp_path)
    with pytest.raises(
        StorageError, match="saved a checkpoint of step 4 and has none now"
    ) as caught:
        until(config, tmp_path, 8)
    assert "restore its checkpoints, or choose another --run" in str(caught.value)
    assert files(tmp_path) == before


def test_the_only_checkpoint_of_a_short_run_is_missed_too(tmp_path: Path) -> None:
    config = run_config(loop__checkpoint_every=100)
    until(config, tmp_path, 4)
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(StorageError, match="saved a checkpoint of step 4 and has none now"):
        until(config, tmp_path, 8)


def never_saved(path: Path) -> None:
    shutil.rmtree(path / "checkpoints")
    (path / "saved.json").unlink()


@pytest.mark.parametrize("left", ["", '{"step": 2}\n{"step": 4}\n', "no metrics at all"])
def test_a_run_killed_before_its_first_checkpoint_begins_anew(left: str, tmp_path: Path) -> None:
    config = run_config(loop__checkpoint_every=6, loop__steps=8)
    straight = until(config, tmp_path / "straight", 8)
    until(config, tmp_path / "killed", 8)
    never_saved(tmp_path / "killed")
    (tmp_path / "killed" / "metrics.jsonl").write_text(left)
    assert not different(until(config, tmp_path / "killed", 8), straight)
    (tmp_path / "killed" / "metrics.jsonl").unlink()
    never_saved(tmp_path / "killed")
    assert not different(until(config, tmp_path / "killed", 8), straight)


def test_a_checkpoint_set_aside_by_a_killed_job_is_gone_on_from(tmp_path: Path) -> None:
    config = run_config()
    straight = until(config, tmp_path / "straight", 8)
    until(config, tmp_path / "killed", 4)
    checkpoints = tmp_path / "killed" / "checkpoints"
    shutil.rmtree(checkpoints / "step-00000002")
    (checkpoints / "step-00000004").rename(checkpoints / ".tmp-step-00000004-abc_1234.old")
    assert not different(until(config, tmp_path / "killed", 8), straight)


# ---- latents that were encoded elsewhere


@pytest.fixture
def latents(tmp_path: Path) -> RunConfig:
    """A run on stored latents, with an autoencoder that is nowhere to be had."""
    data = stored_latents(tmp_path / "latents", 20)
    codec = AutoencoderCodec(path="no-one/nothing", factor=8, scale=1.0, shift=0.0)
    return run_config(data=data, codec=codec)


def test_latents_need_no_autoencoder(
    latents: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*others: object) -> None:
        raise AssertionError("an autoencoder is loaded")

    monkeypatch.setattr("diffmoe.data.encoding.build_codec", refuse)
    straight = until(latents, tmp_path / "straight", 4)
    assert not different(until(latents, tmp_path / "run", 2, 4), straight)
    origin = load(tmp_path / "run").trained_on
    assert origin["codec"] == "none: the latents were encoded elsewhere"
    assert origin["data"].startswith("20 latents sha256:")


def test_a_run_on_latents_that_noted_a_codec_goes_on(latents: RunConfig, tmp_path: Path) -> None:
    until(latents, tmp_path / "run", 2)
    checkpoints = RunFolder(tmp_path / "run").checkpoints
    parts = {n: read_part(checkpoints / "step-00000002", n) for n in ("model", "ema", "optimizer")}
    known = load(tmp_path / "run").trained_on | {"codec": "AutoencoderKL sha256:0123"}
    counters = whole(tmp_path / "run")["state"]
    shutil.rmtree(checkpoints)
    write(checkpoints, Content(2, 32, parts, to_dict(latents), known, counters))
    until(latents, tmp_path / "run", 4)
    assert load(tmp_path / "run").step == 4


# ---- another config


def test_a_run_that_never_saved_may_begin_anew_with_another_config(tmp_path: Path) -> None:
    config = run_config(loop__checkpoint_every=6, loop__steps=8)
    until(config, tmp_path / "run", 8)
    never_saved(tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 2, "loss": 7.0}\n')
    other = changed(config, {"training.learning_rate": 0.1})
    straight = until(other, tmp_path / "straight", 8)
    assert not different(until(other, tmp_path / "run", 8), straight)
    told = read_metrics(RunFolder(tmp_path / "run").metrics)
    assert [line["step"] for line in told] == [2, 4, 6, 8] and told[0]["loss"] != 7
    with pytest.raises(ConfigError, match=r"learning_rate 0\.1 -> 0\.003"):
        until(config, tmp_path / "run", 8)


def test_another_config_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    before = until(run_config(), tmp_path, 4)
    content = files(tmp_path)
    with pytest.raises(ConfigError, match=r"training\.learning_rate 0\.003 -> 0\.1"):
        train(run_config(training__learning_rate=0.1), tmp_path, progress=False)
    assert files(tmp_path) == content
    assert not different(newest_tensors(tmp_path), before)
