"""What does a checkpoint cost a training step? Seconds that it waits, and what is slower meanwhile.

python benchmarks/saving.py

In turn, `--rounds` times: the state is copied and nothing else; saved in the background (until
`save` returns, then until all is on the disk); saved while the step waits. Then steps are timed
alone and while a checkpoint is written. Medians, in seconds.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from diffmoe.checkpoint import RunFolder
from diffmoe.config import FolderData, MachineConfig, RunConfig, to_dict
from diffmoe.data import Batch
from diffmoe.objective import build_objective
from diffmoe.presets import preset
from diffmoe.randomness import normals
from diffmoe.training import Saver, TrainingState, new_state, state_content, train_step


def seconds(work: Callable[[], object]) -> float:
    """How long a work takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def config_of(name: str, images: int, background: bool) -> RunConfig:
    """A preset with small batches, for steps that are soon done."""
    config = preset(name)
    training = replace(config.training, global_batch=images)
    model = replace(config.model, pool_images=min(images, config.model.pool_images))
    machine = MachineConfig(device="cpu", background_saves=background)
    data = FolderData() if isinstance(config.data, FolderData) else config.data
    return replace(config, training=training, model=model, machine=machine, data=data)


def batch_of(config: RunConfig) -> Batch:
    """A batch of noise."""
    images, model = config.training.global_batch, config.model
    x = normals(0, "benchmark", 0, images, (model.channels, model.input_size, model.input_size))
    return Batch(x, torch.arange(images) % model.num_classes, 0, tuple(range(images)))


def saves(
    config: RunConfig, direct: RunConfig, state: TrainingState, home: Path, rounds: int
) -> None:
    """Print what a save costs the step that asks for it."""
    found: dict[str, list[float]] = {
        "copy alone": [],
        "step waits": [],
        "until on disk": [],
        "direct": [],
    }
    copies: dict[str, dict[str, torch.Tensor]] = {}
    saver = Saver(config, RunFolder(home))
    for _ in range(rounds):
        found["copy alone"].append(seconds(lambda: state_content(state, to_dict(config), copies)))
        state.step += 1
        began = time.perf_counter()
        found["step waits"].append(seconds(lambda: saver.save(state)))
        saver.wait()
        found["until on disk"].append(time.perf_counter() - began)
        state.step += 1
        found["direct"].append(seconds(lambda: Saver(direct, RunFolder(home)).save(state)))
    copy = statistics.median(found["copy alone"])
    for name, times in found.items():
        median = statistics.median(times)
        print(f"{name:<16}{median:8.3f} s  {median / copy:6.2f} copies")


def steps(config: RunConfig, state: TrainingState, home: Path, rounds: int) -> None:
    """Print what a step takes while a checkpoint is written."""
    batch, objective = batch_of(config), build_objective(config.objective)
    alone, beside, saver = [], [], Saver(config, RunFolder(home))
    train_step(state, objective, [batch], config)
    saver.save(state)
    for _ in range(rounds):
        saver.wait()
        alone.append(seconds(lambda: train_step(state, objective, [batch], config)))
        saver.save(state)
        beside.append(seconds(lambda: train_step(state, objective, [batch], config)))
    saver.wait()
    ratio = statistics.median(b / a for a, b in zip(alone, beside, strict=True))
    print(f"step alone      {statistics.median(alone):8.3f} s")
    print(f"step beside one {statistics.median(beside):8.3f} s  {ratio:6.2f} of a step alone")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="diffmoe-s-e16-flow")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    config, direct = (config_of(options.model, options.images, way) for way in (True, False))
    state = new_state(config, torch.device("cpu"))
    train_step(state, build_objective(config.objective), [batch_of(config)], config)
    size = sum(t.nbytes for part in state_content(state, {}).parts.values() for t in part.values())
    threads = torch.get_num_threads()
    print(f"{options.model}, {size / 2**30:.2f} GiB, {options.rounds} rounds, {threads} threads")
    with tempfile.TemporaryDirectory() as home:
        saves(config, direct, state, Path(home), options.rounds)
        steps(config, state, Path(home), options.rounds)


if __name__ == "__main__":
    main()
