"""How long does the first process plan a checkpoint that all write, and how much is it sent?

python benchmarks/joint_plan.py --processes 64 128 256

Before anything is written, each process tells the first which pieces of which tensors it holds;
that one decides who writes what, tells each its part, and makes the manifest's list of cuts. Here
one process plays all of them, with pieces that are shapes only: weights, their average and two
moments, cut on the first axis over `--shards` processes, the whole over as many as are left.
"""

import argparse
import pickle
import time
from pathlib import Path

import torch
from torch.distributed.checkpoint.planner import SavePlan

from diffmoe.checkpoint import Piece
from diffmoe.checkpoint.manifest import cut_text
from diffmoe.checkpoint.plans import Planner
from diffmoe.model import empty_model
from diffmoe.presets import preset

COPIES = ("model", "ema", "optimizer/exp_avg", "optimizer/exp_avg_sq")


def shapes_of(name: str) -> dict[str, tuple[int, ...]]:
    """The tensors of a checkpoint of a preset."""
    weights = empty_model(preset(name).model).state_dict()
    return {f"{c}/{key}": tuple(value.shape) for c in COPIES for key, value in weights.items()}


def local_plan(shapes: dict[str, tuple[int, ...]], shard: int, shards: int) -> SavePlan:
    """What a process tells that holds share `shard` of each tensor."""
    pieces = {}
    for name, shape in shapes.items():
        each = -(-shape[0] // shards) if shape else 1
        first = min(shard * each, shape[0]) if shape else 0
        last = min(first + each, shape[0]) if shape else 0
        own = torch.empty((last - first, *shape[1:]) if shape else (), device="meta")
        pieces[name] = Piece(own, (first, *(0 for _ in shape[1:])) if shape else (), shape)
    planner = Planner(Path("step"))
    planner.set_up_planner(pieces, is_coordinator=False)
    return planner.create_local_plan()


def planned(shapes: dict[str, tuple[int, ...]], processes: int, shards: int) -> None:
    """Print the CPU seconds of a plan and the bytes that come to the first process."""
    told = [pickle.dumps(local_plan(shapes, shard, shards)) for shard in range(shards)]
    told *= processes // shards
    began = time.process_time()
    planner = Planner(Path("step"))
    planner.set_up_planner({}, is_coordinator=True)
    plans, _ = planner.create_global_plan([pickle.loads(plan) for plan in told])
    places: dict[str, dict[int, torch.Size]] = {}
    for rank, plan in enumerate(plans):
        for item in plan.items:
            places.setdefault(item.index.fqn, {})[rank] = item.index.offset
    cuts = {cut_text(processes, own) for own in places.values()}
    seconds, size = time.process_time() - began, sum(map(len, told))
    print(
        f"{processes:>9}{shards:>8}{seconds:>10.1f} s{size / 2**20:>10.0f} MiB{len(cuts):>7} cuts"
    )


def main() -> None:
    """Plan for each number of processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="diffmoe-l-e16-flow")
    parser.add_argument("--processes", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--shards", type=int, default=128, help="processes that share a copy")
    words = parser.parse_args()
    shapes = shapes_of(words.model)
    print(f"{words.model}: {len(shapes)} tensors\nprocesses  shards      plan      told")
    for processes in words.processes:
        planned(shapes, processes, min(words.shards, processes))


if __name__ == "__main__":
    main()
