"""Does it cost quality to free an image from its batch? `token` against `pool` selection.

    python benchmarks/selection.py runs/demo --out docs/results/selection.json

Samples a trained run with both selections from the same seeds and labels, several blocks of
1,000 images each, and scores every block against the training images. Prints a table with the
paired differences, and how far the same image moves when it is drawn alone.
"""

import argparse
import json
import statistics
from dataclasses import asdict, replace
from pathlib import Path

import torch
from tqdm import tqdm

from diffmoe.analysis import CapacityTrace
from diffmoe.checkpoint import LoadedRun, load, write_text
from diffmoe.config import SamplingConfig
from diffmoe.data import open_source
from diffmoe.evaluation import score
from diffmoe.sampling import balanced_labels, generate, stamp

SELECTIONS = ("token", "pool")


def scored(run: LoadedRun, settings: SamplingConfig, first: int, count: int) -> dict[str, float]:
    """Scores and capacity of one block of samples."""
    source = open_source(run.config)
    real = torch.stack([source.load(index, flip=False) for index in range(len(source))])
    labels = balanced_labels(count, run.config.model.num_classes)
    trace = CapacityTrace.empty(run.config, settings.steps)
    seeds = range(first, first + count)
    x = generate(run.model, run.config, labels, seeds, settings=settings, callback=trace)
    found = score(x.clamp(-1, 1), torch.tensor(labels), real, source.labels)
    return {
        "agreement": found.agreement,
        "frechet_distance": found.frechet_distance,
        "capacity": trace.average,
    }


def moved_alone(run: LoadedRun, settings: SamplingConfig, count: int = 32) -> float:
    """Largest change of a pixel between an image drawn alone and in a batch of `count`."""
    labels = balanced_labels(count, run.config.model.num_classes)
    together = generate(run.model, run.config, labels, range(count), settings=settings)
    alone = generate(
        run.model, run.config, labels, range(count), settings=replace(settings, batch=1)
    )
    return float((together - alone).abs().max())


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--blocks", type=int, default=5, help="blocks of samples")
    parser.add_argument("--count", type=int, default=1000, help="samples a block")
    parser.add_argument("--out", type=Path, help="JSON to write")
    options = parser.parse_args()
    run = load(options.run)
    settings = {name: replace(run.config.sampling, selection=name) for name in SELECTIONS}
    blocks = [
        {
            name: scored(run, settings[name], 10_000 + block * options.count, options.count)
            for name in SELECTIONS
        }
        for block in tqdm(range(options.blocks), desc="blocks")
    ]
    alone = {name: moved_alone(run, settings[name]) for name in SELECTIONS}
    report(blocks, alone)
    if options.out:
        content = {
            "question": "token against pool selection",
            "blocks": blocks,
            "moved_alone": alone,
            "stamp": {name: stamp(run, settings[name]) for name in SELECTIONS},
            "training": asdict(run.config.training),
        }
        write_text(options.out, json.dumps(content, indent=2, default=str) + "\n")


def report(blocks: list[dict[str, dict[str, float]]], alone: dict[str, float]) -> None:
    """Print means over blocks, spread and paired differences."""
    print(f"{'':<20}{'token':>18}{'pool':>18}{'token - pool':>18}")
    for metric in blocks[0]["token"]:
        columns = [[block[name][metric] for block in blocks] for name in SELECTIONS]
        columns.append([a - b for a, b in zip(*columns, strict=True)])
        cells = [f"{statistics.mean(c):.4f} ± {spread(c):.4f}" for c in columns]
        print(f"{metric:<20}" + "".join(f"{cell:>18}" for cell in cells))
    print(f"{'moved when alone':<20}" + "".join(f"{alone[name]:>18.2e}" for name in SELECTIONS))


def spread(values: list[float]) -> float:
    """Standard deviation over blocks."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
