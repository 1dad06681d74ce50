"""Are latents read from a cache as fast as training takes them? Images a second of either.

python benchmarks/latents.py

The cache is written as `diffmoe prepare` writes it, with random posteriors; it is read by one core
without workers, from files to a batch of latents. Training is a whole optimizer step of the preset.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from diffmoe.config import AutoencoderCodec, FolderData, MachineConfig, RunConfig
from diffmoe.data import (
    Batch,
    CacheRecord,
    CacheSource,
    Encoder,
    Origin,
    open_source,
    shard_file,
    stream,
    write_labels,
    write_record,
    write_shard,
)
from diffmoe.device import keep_freed_memory
from diffmoe.objective import build_objective
from diffmoe.presets import preset
from diffmoe.randomness import normals
from diffmoe.training import new_state, train_step

SHARD = 1024  # images


def write_cache(folder: Path, config: RunConfig, images: int) -> None:
    """A cache of random posteriors that fits a config."""
    codec, model = config.codec, config.model
    assert isinstance(codec, AutoencoderCodec)
    labels = torch.arange(images) % model.num_classes
    shape = (2, 2, model.channels, model.input_size, model.input_size)
    shards = []
    for number, first in enumerate(range(0, images, SHARD)):
        part = torch.arange(images)[first : first + SHARD]
        moments = normals(0, "posteriors", first, len(part), shape)
        moments[:, :, 1].abs_().mul_(0.1)
        path = folder / shard_file(number)
        shards.append(write_shard(path, moments.numpy(), labels[part].numpy(), part.numpy()))
    record = CacheRecord(
        autoencoder=Encoder(
            "none", codec.path, model.channels, codec.factor, codec.scale, codec.shift
        ),
        source=Origin(f"{images} random ones", "nowhere", images),
        side=config.image_size,
        dtype="float32",
        flip=True,
        shard_images=SHARD,
        shards=tuple(shards),
        labels=write_labels(folder, labels.numpy()),
        class_names=tuple(map(str, range(model.num_classes))),
        skipped=(),
    )
    write_record(folder, record)


def latents(config: RunConfig) -> Iterator[Batch]:
    """Batches as training gets them."""
    source = open_source(config)
    assert isinstance(source, CacheSource)
    return stream(config, source, source.codec, first=0, device="cpu")


def reading(config: RunConfig, images: int) -> Callable[[], int]:
    """Reads so many images of the stream, one core, no workers."""
    batches = latents(config)

    def run() -> int:
        torch.set_num_threads(1)
        return sum(
            len(batch.x) for batch in itertools.islice(batches, images // config.micro_batch)
        )

    return run


def training(config: RunConfig, threads: int) -> Callable[[], int]:
    """A step of training on batches that are there already."""
    state = new_state(config, torch.device("cpu"))
    batches = latents(config)
    batch, objective = next(batches), build_objective(config.objective)

    def run() -> int:
        torch.set_num_threads(threads)
        train_step(state, objective, [batch], config)
        return len(batch.x)

    return run


def rate(run: Callable[[], int]) -> float:
    """Images a second."""
    began = time.perf_counter()
    return run() / (time.perf_counter() - began)


def main() -> None:
    """Measure in turn, print medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="diffmoe-s-e16-flow")
    parser.add_argument("--images", type=int, default=2048, help="in the cache")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2, help="of training")
    parser.add_argument("--rounds", type=int, default=5)
    words = parser.parse_args()
    keep_freed_memory()
    base = preset(words.preset)
    with tempfile.TemporaryDirectory() as folder:
        config = replace(
            base,
            model=replace(base.model, pool_images=words.batch),
            training=replace(base.training, global_batch=words.batch),
            data=FolderData(path=Path(folder)),
            machine=MachineConfig(device="cpu"),
        )
        write_cache(Path(folder), config, words.images)
        runs = {"read": reading(config, words.images), "train": training(config, words.threads)}
        for run in runs.values():
            run()  # what the first call costs is not asked
        rates = [{name: rate(run) for name, run in runs.items()} for _ in range(words.rounds)]
    for name in runs:
        found = sorted(one[name] for one in rates)
        print(
            f"{name:<6}{statistics.median(found):10.1f} images/s"
            f"  ({found[0]:.1f} .. {found[-1]:.1f})"
        )
    ratio = statistics.median(one["read"] / one["train"] for one in rates)
    print(f"reading is {ratio:.1f} times as fast as training takes (the bar is 3)")


if __name__ == "__main__":
    main()
