"""What does a pool wider than a process cost? Bytes that a process tells, and seconds.

python benchmarks/wide_pool.py --json wide_pool.json

First the bytes that a process tells the others in the forward pass of a training step, all layers
together: the candidates that are exchanged; all its affinities and demands; and its rows in
bfloat16, which a pool gathered naively would move. An all-gather sends whichever it is to each
of the others. Then the seconds of one selection by processes over gloo on this machine: of the
own rows alone, of the pool of all, and of the exchange in it by itself. Medians of rounds, by the
clock of the wall; where there are more processes than cores they share them.
"""

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from diffmoe.checkpoint import write_text
from diffmoe.config import BatchPool, ModelConfig
from diffmoe.model import kth_largest, top_pairs
from diffmoe.model.routing import poisoned_rows
from diffmoe.model.wide_pool import Scores, wide_routing
from diffmoe.presets import preset

PRESETS = ("diffmoe-s-e16-flow", "diffmoe-l-e16-flow")
EXPERTS, TOKENS, CAPACITY = 16, 256, 1.0


class Bytes(NamedTuple):
    """What a process tells in one forward pass, by what is told."""

    candidates: int
    scores: int
    rows: int


def bytes_told(model: ModelConfig, processes: int, images: int) -> Bytes:
    """Of all layers, where each process has `images` of the pool's."""
    assert isinstance(model.router, BatchPool)
    layers, experts, rows = len(model.moe_blocks), model.router.num_experts, images * model.tokens
    keep = int(rows * processes * model.router.capacity / experts + 1e-9)
    told = 2 * layers * experts * 4  # affinity and demand in float32
    return Bytes(told * min(keep, rows), told * rows, layers * rows * model.width * 2)


def table() -> list[dict[str, object]]:
    """Print the bytes for each preset, number of processes and images of each."""
    found: list[dict[str, object]] = []
    print(f"{'preset':<20}{'processes':>10}{'images each':>12}", end="")
    print(f"{'candidates':>14}{'all scores':>14}{'rows':>14}{'rows / cand.':>14}")
    for name in PRESETS:
        model = preset(name).model
        for processes, images in itertools.product((2, 4, 8, 16, 32, 64), (8, 32, 64, 256)):
            told = bytes_told(model, processes, images)
            head = {"preset": name, "processes": processes, "images": images}
            found.append(head | told._asdict())
            cells = "".join(f"{value / 1e6:>11.2f} MB" for value in told)
            times = told.rows / told.candidates
            print(f"{name:<20}{processes:>10}{images:>12}{cells}{times:>14.1f}")
    return found


class Everybody:
    """All processes as the peers of one pool; remembers how many bytes were told."""

    def __init__(self) -> None:
        self.place, self.parts, self.told = dist.get_rank(), dist.get_world_size(), 0

    def gather(self, own: Tensor) -> Tensor:
        """Everybody's values."""
        self.told = own.numel() * own.element_size()
        found = [torch.empty_like(own) for _ in range(self.parts)]
        dist.all_gather(found, own)
        return torch.stack(found)


def random_scores(images: int, seed: int) -> Scores:
    """Scores of a router that knows nothing yet."""
    generator = torch.Generator().manual_seed(seed)
    shape = (images, TOKENS, EXPERTS)
    affinity = torch.randn(shape, generator=generator).softmax(dim=-1)
    demand = torch.randn(shape, generator=generator)
    return Scores(affinity, demand, demand.sigmoid(), poisoned_rows(affinity, demand))


def variants(images: int, peers: Everybody) -> dict[str, Callable[[], object]]:
    """One selection of the own rows, one of everybody's, and the exchange in it."""
    scores, pools = random_scores(images, peers.place), (tuple(range(images)),)

    def local() -> object:
        kth_largest(scores.chances, pools, CAPACITY)
        return top_pairs(scores.affinity, pools, CAPACITY, scores.poisoned)

    def wide() -> object:
        return wide_routing(scores, pools, CAPACITY, peers)

    wide()
    own = torch.zeros(peers.told // 4)
    return {"local": local, "wide": wide, "exchange": lambda: peers.gather(own)}


def seconds(run: Callable[[], object]) -> float:
    """How long the slowest process takes, all starting at once."""
    dist.barrier()
    began = time.perf_counter()
    run()
    slowest = torch.tensor(time.perf_counter() - began, dtype=torch.float64)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    return slowest.item()


def process(rank: int, processes: int, folder: str, images: int, rounds: int) -> None:
    """One of the processes that are timed; the first writes what was found."""
    torch.set_num_threads(1)
    place = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=processes)
    peers = Everybody()
    runs = variants(images, peers)
    found: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds):
        for name in list(runs) if turn % 2 == 0 else list(runs)[::-1]:
            found[name].append(seconds(runs[name]))
    if rank == 0:
        content = {"told": peers.told, "seconds": found}
        Path(folder, "found.json").write_text(json.dumps(content))
    dist.destroy_process_group()


def measured(processes: int, images: int, rounds: int) -> dict[str, object]:
    """Median seconds of each variant, printed; the bytes told are those of the table."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(process, (processes, folder, images, rounds), nprocs=processes)
        found = json.loads(Path(folder, "found.json").read_text())
    model = preset(PRESETS[0]).model
    assert found["told"] * len(model.moe_blocks) == bytes_told(model, processes, images).candidates
    medians = {name: statistics.median(times) for name, times in found["seconds"].items()}
    cells = "".join(f"{value * 1e3:>12.2f} ms" for value in medians.values())
    print(f"{processes:>9}{images:>12}{found['told'] / 1e3:>12.0f} kB{cells}")
    return {"processes": processes, "images": images, "told": found["told"], "median": medians}


def main() -> None:
    """Count, measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--images", type=int, nargs="+", default=[8, 32], help="of each process")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--json", type=Path, help="file to write")
    words = parser.parse_args()
    print("Bytes that a process tells in the forward pass of a step")
    told = table()
    print(f"\nOne selection, {TOKENS} rows an image, {EXPERTS} experts, {os.cpu_count()} cores")
    print(f"{'processes':>9}{'images each':>12}{'told':>15}", end="")
    print("".join(f"{name:>15}" for name in ("local", "wide", "exchange")))
    pairs = itertools.product(words.processes, words.images)
    times = [measured(processes, images, words.rounds) for processes, images in pairs]
    if words.json:
        content = {
            "question": "what a pool wider than a process costs",
            "bytes": told,
            "seconds": times,
            "rounds": words.rounds,
            "cores": os.cpu_count(),
            "torch": torch.__version__,
        }
        write_text(words.json, json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
