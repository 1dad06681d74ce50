"""What sample n is depends on (seed, n) and the data alone."""

import itertools
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diffmoe.codec import build_codec
from diffmoe.config import AutoencoderCodec, PixelCodec, RunConfig, to_yaml
from diffmoe.data import Batch, DigitsSource, Source, open_source, stream
from diffmoe.errors import ConfigError, DataError
from diffmoe.presets import preset
from diffmoe.randomness import normals, permutation, uniforms

# A machine with one core is warned that two workers are many.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
PIXELS = build_codec(PixelCodec(), "cpu")


def batches(config: RunConfig, source, first: int = 0, codec=PIXELS) -> Iterator[Batch]:
    return stream(config, source, codec, first=first, device="cpu")


def samples(config: RunConfig, source, first: int, count: int, codec=PIXELS) -> Batch:
    """Samples `first .. first + count` of the stream, joined."""
    wanted = count // config.micro_batch
    got = list(itertools.islice(batches(config, source, first, codec), wanted))
    assert [batch.first for batch in got] == [first + i * config.micro_batch for i in range(wanted)]
    return Batch(torch.cat([b.x for b in got]), torch.cat([b.label for b in got]), first)


def expected(config: RunConfig, source, first: int, count: int) -> tuple[list[int], list[bool]]:
    """Index and mirroring of each sample, from the definition."""
    seed, length = config.training.seed, len(source)
    numbers = range(first, first + count)
    index = [int(permutation(seed, f"order/{n // length}", length)[n % length]) for n in numbers]
    return index, [bool(uniforms(seed, "flip", n, 1) < 0.5) for n in numbers]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("micro", [4, 8, 32, 64])
def test_samples_of_a_folder_are_the_defined_ones(
    micro: int, workers: int, images: Path, make_config
) -> None:
    config = make_config(images, flip=True, micro_batch=micro, workers=workers)
    source = open_source(config)
    got = samples(config, source, 0, 64)
    index, flips = expected(config, source, 0, 64)
    wanted = [source.load(i, flip) for i, flip in zip(index, flips, strict=True)]
    assert torch.equal(got.x, torch.stack(wanted))
    assert torch.equal(got.label, source.labels[index])
    assert 10 < sum(flips) < 54


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("first", [3, 22, 40, 1_000_000])
def test_a_stream_may_begin_anywhere(first: int, workers: int, images: Path, make_config) -> None:
    config = make_config(images, flip=True, micro_batch=8, workers=workers)
    source = open_source(config)
    got, (index, flips) = samples(config, source, first, 24), expected(config, source, first, 24)
    wanted = [source.load(i, flip) for i, flip in zip(index, flips, strict=True)]
    assert torch.equal(got.x, torch.stack(wanted))


@pytest.mark.parametrize("workers", [0, 2])
def test_latents_take_their_mirror_images(workers: int, make_latents, make_config) -> None:
    config = make_config(make_latents((6, 2, 1, 8, 8)), flip=True, micro_batch=16, workers=workers)
    source = open_source(config)
    index, flips = expected(config, source, 5, 32)
    stored = torch.from_numpy(np.load(config.data.path / "latents.npy"))
    assert torch.equal(samples(config, source, 5, 32).x, stored[index, [int(f) for f in flips]])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("micro", [64, 128])
def test_digits_come_from_memory(micro: int, workers: int) -> None:
    config = preset("digits-dense")
    machine = replace(config.machine, micro_batch=micro, workers=workers)
    training = replace(config.training, global_batch=128)
    config = replace(config, machine=machine, training=training)
    source = open_source(config)
    got, (index, _) = samples(config, source, 1700, 256), expected(config, source, 1700, 256)
    assert torch.equal(got.x, source.images[index])
    assert torch.equal(got.label, source.labels[index])
    assert not multiprocessing.active_children()


def test_every_epoch_holds_every_sample_once(images: Path, make_config) -> None:
    config = make_config(images, micro_batch=4)
    source = open_source(config)
    source.load = lambda index, flip: torch.tensor(float(index)).reshape(1, 1, 1)
    order = samples(config, source, 0, 88).x.flatten().reshape(4, 22).tolist()
    assert all(sorted(epoch) == list(range(22)) for epoch in order)
    assert len({tuple(epoch) for epoch in order}) == 4


def test_another_seed_is_another_order() -> None:
    config = preset("digits-dense")
    other = replace(config, training=replace(config.training, seed=1))
    source = open_source(config)
    assert not torch.equal(
        samples(config, source, 0, 64).label, samples(other, source, 0, 64).label
    )


def test_fewer_samples_than_a_batch(make_latents, make_config) -> None:
    config = make_config(make_latents((1, 1, 8, 8)))
    source = open_source(config)
    assert samples(config, source, 0, 64).x.unique(dim=0).shape[0] == 1


class Noisy:
    """A codec that shows the noise it gets."""

    channels, identity = 4, "noisy"

    def encode(self, pixels: Tensor, noise: Tensor | None) -> Tensor:
        assert pixels.shape[1:] == (3, 16, 16)
        return noise

    def decode(self, latents: Tensor) -> Tensor:
        return latents


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("micro", [4, 16])
def test_encoding_noise_belongs_to_the_sample(
    micro: int, workers: int, images: Path, make_config
) -> None:
    config = make_config(images, micro_batch=micro, workers=workers, channels=4, out_channels=4)
    config = replace(config, codec=AutoencoderCodec(path="a/b", factor=2, scale=1.0, shift=0.0))
    got = samples(config, open_source(config), 20, 32, Noisy()).x
    for row in (0, 7, 31):
        assert torch.equal(got[row], normals(0, "encode", 20 + row, 1, (4, 8, 8))[0])


def test_latents_are_not_encoded_again(make_latents, make_config) -> None:
    config = make_config(make_latents((6, 4, 8, 8)), channels=4, out_channels=4)
    config = replace(config, codec=AutoencoderCodec(path="a/b", factor=2, scale=1.0, shift=0.0))
    source = open_source(config)
    assert torch.equal(
        samples(config, source, 0, 64, Noisy()).x[0],
        source.load(expected(config, source, 0, 1)[0][0], False),
    )


def test_stored_latents_need_no_codec(make_latents, make_config) -> None:
    config = make_config(make_latents())
    source = open_source(config)
    one, other = (next(batches(config, source, codec=codec)) for codec in (None, PIXELS))
    assert torch.equal(one.x, other.x)


def test_a_codec_of_other_channels_is_refused_at_once(images: Path, make_config) -> None:
    config = make_config(images)
    with pytest.raises(ConfigError, match=r"model\.channels 1 is not that of the codec, 4"):
        batches(config, open_source(config), codec=Noisy())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_sample_keeps_its_sentence(workers: int, images: Path, make_config) -> None:
    (images / "cat" / "3.png").write_bytes(b"")
    config = make_config(images, micro_batch=4, workers=workers)
    source = open_source(config)
    batch = expected(config, source, 0, 22)[0].index(9) // 4
    reader = batches(config, source)
    for number in range(batch):
        assert next(reader).first == 4 * number
    with pytest.raises(DataError) as caught:
        next(reader)
    assert str(caught.value).startswith("image 9 cannot be read (the file is empty)")
    assert "worker" not in str(caught.value) and "\n" not in str(caught.value)
    del caught  # its traceback holds on to the loader


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_generator_is_not_touched(workers: int, make_latents, make_config) -> None:
    config = make_config(make_latents(), workers=workers)
    before = torch.get_rng_state()
    next(batches(config, open_source(config)))
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_leave_signals_to_the_main_process(make_latents, make_config) -> None:
    config = make_config(make_latents(), workers=2)
    reader = batches(config, open_source(config))
    assert [next(reader).first for _ in range(4)] == [0, 64, 128, 192]
    workers = [str(worker.pid) for worker in multiprocessing.active_children()]
    assert len(workers) == 2
    for name in ("TERM", "INT", "USR1", "TERM"):
        subprocess.run(["kill", f"-{name}", *workers], check=True)
    assert [next(reader).first for _ in range(8)] == [64 * n for n in range(4, 12)]
    del reader
    assert not multiprocessing.active_children()


CUT_SHORT = """
import sys
from diffmoe.config import read_config
from diffmoe.codec import build_codec
from diffmoe.data import open_source, stream
from pathlib import Path

config = read_config(Path(sys.argv[1]))
codec, source = build_codec(config.codec, "cpu"), open_source(config)
batches = stream(config, source, codec, first=0, device="cpu")
next(batches)
raise SystemExit(75)
"""
CYCLE = """
import gc
cycle = [batches]
cycle.append(cycle)
del cycle, batches
gc.collect()
"""


@pytest.mark.parametrize("collected", [False, True])
def test_a_program_with_workers_can_end(
    collected: bool, make_latents, make_config, tmp_path: Path
) -> None:
    """Even where a cycle of references was collected, which robs the loader of its queues."""
    (tmp_path / "config.yaml").write_text(to_yaml(make_config(make_latents(), workers=1)))
    program = CUT_SHORT.replace("raise", CYCLE + "raise") if collected else CUT_SHORT
    command = [sys.executable, "-c", program, str(tmp_path / "config.yaml")]
    ended = subprocess.run(command, timeout=60, capture_output=True, text=True)
    assert ended.returncode == 75, ended.stderr


def test_a_batch_of_digits_takes_less_than_a_millisecond() -> None:
    config = preset("digits-dense")
    reader = batches(config, open_source(config))
    durations = []
    for _ in range(200):
        start = time.perf_counter()
        next(reader)
        durations.append(time.perf_counter() - start)
    assert np.median(durations) < 1e-3


def test_batches_reach_the_device(make_latents, make_config) -> None:
    config = make_config(make_latents())
    reader = stream(config, open_source(config), PIXELS, first=0, device="meta")
    batch = next(reader)
    assert batch.x.device.type == batch.label.device.type == "meta"
    assert (batch.x.dtype, batch.label.dtype) == (torch.float32, torch.int64)


class Three:
    """A source of its own: the first scans of the digits, held in memory."""

    class_names, shape, encoded = tuple("0123456789"), (1, 8, 8), False
    fingerprint = "three digits"

    def __init__(self) -> None:
        digits = DigitsSource()
        self.images, self.labels = digits.images[:3], digits.labels[:3]

    def __len__(self) -> int:
        return 3

    def load(self, index: int, flip: bool) -> Tensor:
        pytest.fail("memory was not used")


def test_any_source_can_be_streamed() -> None:
    batch = next(batches(preset("digits-dense"), Three()))
    assert isinstance(Three(), Source)
    assert set(batch.label.tolist()) == {0, 1, 2}
