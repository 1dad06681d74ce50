"""What the numbers of a paper's table take once the features are there: seconds and memory.

A stand-in for Inception, as wide as it and as quick as a product, sees random images; its features
go the way of every evaluation. Prints one line for each number of samples, with the peak of the
process so far.

    python benchmarks/evaluation.py --counts 5000 50000 --reference 10000
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from diffmoe.evaluation import (
    PART,
    Features,
    NpzSet,
    Reference,
    completed,
    describe,
    extract,
    measure,
    part_of,
)

SIDE, WIDTH, SPATIAL, CLASSES = 16, 2048, 2023, 1008


class StandIn:
    """Features that are products of pixels."""

    name, side, fingerprint = "inception", None, "0" * 64

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.mix = torch.randn(3 * SIDE * SIDE, WIDTH, generator=generator) / 30

    def features(self, images: torch.Tensor) -> Features:
        """Features of images."""
        pooled = ((images.flatten(1).float() / 127.5 - 1) @ self.mix).tanh()
        probabilities = pooled[:, :CLASSES].double().softmax(dim=1)
        return Features(pooled, pooled[:, :SPATIAL].contiguous(), probabilities)


class Places:
    """Where parts lie."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, number: int) -> Path:
        """The folder of a part."""
        return self.folder / f"{number}"


def random_set(path: Path, count: int, seed: int) -> NpzSet:
    """Random images as an `.npz`."""
    images = np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
    np.savez(path, arr_0=images)
    return NpzSet(path)


def described(images: NpzSet, network: StandIn, folder: Path, score: bool) -> tuple[object, float]:
    """A set as metrics see it, and the seconds from features to there."""
    numbers = range(-(-len(images) // PART))
    for number in numbers:
        (folder / f"{number}").mkdir(parents=True)
        extract(images, network, part_of(number, len(images)), folder / f"{number}")
    began = time.perf_counter()
    scratch, keep = folder / "features.npy", len(images)
    found = describe(Places(folder), numbers, len(images), keep=keep, score=score, scratch=scratch)
    return found, time.perf_counter() - began


def main() -> None:
    """Measure each number of samples."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[5000, 50_000])
    parser.add_argument("--reference", type=int, default=10_000)
    words = parser.parse_args()
    network = StandIn()
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        real = random_set(home / "real.npz", words.reference, 1)
        theirs, _ = described(real, network, home / "real", score=False)
        reference = completed(Reference("real", real), theirs)  # type: ignore[arg-type]
        for count in words.counts:
            images = random_set(home / f"{count}.npz", count, 2)
            found, added = described(images, network, home / f"{count}", score=True)
            began = time.perf_counter()
            measured = measure(found, reference, "inception", network.fingerprint)  # type: ignore[arg-type]
            seconds = time.perf_counter() - began
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(
                f"{count:>7,} samples: sums {added:.0f} s, numbers {seconds:.0f} s,"
                f" peak {peak:.2f} GiB, {len(measured.values)} numbers",
                flush=True,
            )


if __name__ == "__main__":
    main()
