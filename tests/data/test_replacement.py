"""What takes the place of a damaged sample depends on (seed, n) alone; sources of one's own too."""

import itertools
import pickle
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data._utils.pin_memory import pin_memory

from data.containers import COUNT, OF_PICTURES, VICTIM, cache, put, whole_pictures
from data.posteriors import CODEC
from diffmoe.codec import build_codec
from diffmoe.config import FolderData, PixelCodec, RunConfig
from diffmoe.data import Batch, CacheSource, Replaced, Source, open_source, stream
from diffmoe.errors import DataError, StorageError
from diffmoe.presets import preset
from diffmoe.randomness import permutation, uniforms

# A machine with one core is warned that two workers are many.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
PIXELS = build_codec(PixelCodec(), "cpu")
DAMAGED = {1, 4, 9, 15}


def batches(config: RunConfig, source: Source, count: int, first: int = 0) -> list[Batch]:
    codec = source.codec if isinstance(source, CacheSource) else PIXELS
    reader = stream(config, source, codec, first=first, device="cpu")
    return list(itertools.islice(reader, count // config.micro_batch))


def replacing(config: RunConfig, way: str = "replace") -> RunConfig:
    assert isinstance(config.data, FolderData)
    return replace(config, data=replace(config.data, on_bad_sample=way))


@pytest.fixture
def damaged(images: Path) -> Path:
    """22 images, four of which cannot be read."""
    paths = sorted(images.rglob("*.png"))
    for place in DAMAGED:
        paths[place].write_bytes(b"")
    return images


Row = tuple[int, int, int, bytes]


def rows(read: list[Batch]) -> tuple[list[Row], list[Replaced]]:
    """Number, place, label and content of each sample, and all replacements."""
    found = []
    for batch in read:
        parts = zip(batch.index, batch.label.tolist(), batch.x, strict=True)
        found += [(n, i, c, x.numpy().tobytes()) for n, (i, c, x) in enumerate(parts, batch.first)]
    return found, [one for batch in read for one in batch.replaced]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("micro", [4, 8, 32])
@pytest.mark.parametrize("first", [0, 32, 160])
def test_replacements_do_not_depend_on_who_reads_how_many_from_where(
    first: int, micro: int, workers: int, damaged: Path, make_config: Callable[..., RunConfig]
) -> None:
    config = replacing(make_config(damaged, flip=True, micro_batch=micro, workers=workers))
    one_by_one = replacing(make_config(damaged, flip=True, micro_batch=4))
    source = open_source(config)
    found, replaced = rows(batches(config, source, 64, first))
    every, all_replaced = rows(batches(one_by_one, source, first + 64))
    assert found == every[first:]
    assert replaced == [one for one in all_replaced if one.sample >= first]
    assert {one.place for one in replaced} == DAMAGED
    assert all(type(batch.replaced) is tuple for batch in batches(config, source, 32, first))


def test_one_that_is_damaged_as_well_is_replaced_too(damaged: Path, make_config) -> None:
    config = replacing(make_config(damaged, micro_batch=4))
    source = open_source(config)
    chains = 0
    _, replaced = rows(batches(config, source, 22 * 24))
    for number, group in itertools.groupby(replaced, key=lambda one: one.sample):
        met = list(group)
        place = int(permutation(0, f"order/{number // 22}", 22)[number % 22])
        draws = [int(float(uniforms(0, f"replace/{a}", number, 1)) * 22) for a in range(16)]
        tried = list(itertools.takewhile(DAMAGED.__contains__, draws))
        assert [one.place for one in met] == list(dict.fromkeys([place, *tried]))
        assert {one.used for one in met} == {draws[len(tried)]}
        assert all(f"image {one.place} cannot be read" in one.reason for one in met)
        chains += len(met) > 1
    assert chains > 5


def test_replacements_spread_over_the_data(damaged: Path, make_config) -> None:
    config = replacing(make_config(damaged, micro_batch=4))
    _, replaced = rows(batches(config, open_source(config), 22 * 24))
    assert {one.used for one in replaced} == set(range(22)) - DAMAGED


def test_another_seed_takes_others(damaged: Path, make_config) -> None:
    config = replacing(make_config(damaged, micro_batch=4))
    other = replace(config, training=replace(config.training, seed=1))
    source = open_source(config)
    used = [{(r.place, r.used) for r in rows(batches(c, source, 88))[1]} for c in (config, other)]
    assert used[0] != used[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_where_nothing_can_be_read_the_error_says_so(
    workers: int, images: Path, make_config
) -> None:
    for path in images.rglob("*.png"):
        path.write_bytes(b"")
    config = replacing(make_config(images, micro_batch=4, workers=workers))
    said = (
        r"^none of 16 samples drawn in the place of a damaged one can be read either — image \d+"
        r" cannot be read \(the file is empty\) — .*\.png — replace or remove the file$"
    )
    with pytest.raises(DataError, match=said) as caught:
        batches(config, open_source(config), 4)
    del caught  # its traceback holds on to the loader


def test_only_damage_is_replaced(damaged: Path, make_config) -> None:
    source = open_source(make_config(damaged))

    def full(index: int, flip: bool) -> Tensor:
        raise StorageError("the disk is gone")

    source.load = full  # type: ignore[method-assign]
    with pytest.raises(StorageError, match="the disk is gone"):
        batches(replacing(make_config(damaged, micro_batch=4)), source, 4)


def test_a_batch_of_sound_samples_names_their_places(images: Path, make_config) -> None:
    config = make_config(images, micro_batch=8)
    (batch,) = batches(config, open_source(config), 8)
    assert batch.index == tuple(permutation(0, "order/0", 22)[:8].tolist())
    assert batch.replaced == ()
    digits = preset("digits-dense")
    batch = next(stream(digits, open_source(digits), PIXELS, first=0, device="cpu"))
    expected = tuple(permutation(0, "order/0", 1797)[: digits.micro_batch].tolist())
    assert batch.index == expected and batch.replaced == ()


def test_a_replacement_can_be_handed_over() -> None:
    one = Replaced(7, 3, 5, "image 3 cannot be read — a.png — replace it")
    assert pickle.loads(pickle.dumps(one)) == one
    assert Batch(torch.zeros(1), torch.zeros(1), 0).replaced == ()


@pytest.mark.parametrize("way", ["error", "replace"])
def test_a_posterior_that_is_no_number_is_found_in_workers(
    way: str, tmp_path: Path, make_config
) -> None:
    base = make_config(
        cache(tmp_path / "cache", put(float("nan"))),
        channels=5,
        out_channels=5,
        input_size=4,
        num_classes=3,
        workers=2,
        micro_batch=4,
    )
    config = replacing(replace(base, codec=CODEC), way)
    source = open_source(config)
    if way == "replace":
        found, replaced = rows(batches(config, source, 28))
        assert {one.place for one in replaced} == {5} and 5 not in {row[1] for row in found}
        return
    with pytest.raises(DataError, match=r"image 5 of the cache.*NaN or infinity") as caught:
        batches(config, source, 28)
    del caught  # its traceback holds on to the loader


def test_replacements_outlive_the_pinning_of_a_loader(
    damaged: Path, make_config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loader that pins memory for an accelerator hands tuples on as lists."""
    config = replacing(make_config(damaged, micro_batch=8))
    source = open_source(config)
    expected = rows(batches(config, source, 64))
    room = sys.modules["diffmoe.data.stream"]  # the name is also that of a function
    honest = room.read_ahead

    def pinned(*arguments: Any, **options: Any) -> Any:
        return map(pin_memory, honest(*arguments, **options))

    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor, *_: tensor)
    monkeypatch.setattr(room, "read_ahead", pinned)
    read = batches(config, source, 64)
    assert rows(read) == expected and expected[1]
    assert all(type(b.replaced) is tuple and type(b.index) is tuple for b in read)
    assert all(type(one) is Replaced for one in rows(read)[1])


# ---- sources of one's own


class Own:
    """Six samples, one of them damaged."""

    class_names, shape, encoded, fingerprint = ("a", "b"), (1, 8, 8), True, "own"

    def __init__(self, bad: Any = None, labels: Any = (0, 1, 0, 1, 0, 1)) -> None:
        self.labels, self._bad = torch.tensor(labels), bad

    def __len__(self) -> int:
        return COUNT

    def load(self, index: int, flip: bool) -> Tensor:
        if index == VICTIM and isinstance(self._bad, Exception):
            raise self._bad
        if index == VICTIM and self._bad is not None:
            return self._bad
        return torch.full(self.shape, float(index))


class Held(Own):
    """The same in memory."""

    def __init__(self, bad: Tensor) -> None:
        super().__init__()
        self.images = torch.arange(6.0)[:, None, None, None].expand(6, 1, 8, 8).clone()
        self.images[VICTIM] = bad


def with_one(value: float) -> Tensor:
    x = torch.zeros(1, 8, 8)
    x[0, 3, 4] = value
    return x


OWN: dict[str, tuple[Own, str]] = {
    "NaN": (Own(with_one(float("nan"))), "sample 3 holds NaN or infinity — Own — correct what"),
    "infinity": (Own(with_one(float("inf"))), "sample 3 holds NaN or infinity — Own"),
    "half": (Own(with_one(1e9).half()), "sample 3 holds NaN or infinity — Own"),
    "shape": (Own(torch.zeros(1, 8, 7)), r"sample 3 has the shape \(1, 8, 7\), not \(1, 8, 8\)"),
    "its own error": (Own(DataError("row 3 is damaged")), "row 3 is damaged"),
    "in memory": (Held(with_one(float("nan"))), "sample 3 holds NaN or infinity — Held"),
}


@pytest.mark.parametrize(("source", "said"), OWN.values(), ids=OWN)
def test_a_source_of_ones_own_is_looked_through(source: Own, said: str, make_config) -> None:
    config = make_config(None, micro_batch=4)
    assert isinstance(source, Source)
    with pytest.raises(DataError, match=said) as caught:
        batches(config, source, 8)
    assert "\n" not in str(caught.value)
    read = batches(replacing(config), source, 24)
    for batch in read:
        assert batch.x.dtype == torch.float32
        assert [int(x[0, 0, 0]) for x in batch.x] == list(batch.index)
        assert batch.label.tolist() == [place % 2 for place in batch.index]
    assert [one.place for batch in read for one in batch.replaced] == [VICTIM] * 4


class Derived(CacheSource):
    """A cache whose class loads in its own way."""

    def load(self, index: int, flip: bool) -> Tensor:
        return super().load(index, flip) / (index != VICTIM)


def test_a_class_derived_from_one_of_ours_is_looked_through(tmp_path: Path, make_config) -> None:
    source = Derived(cache(tmp_path / "cache"))
    shape = {"channels": 5, "out_channels": 5, "input_size": 4}
    config = replace(make_config(None, micro_batch=4, **shape), codec=CODEC)
    with pytest.raises(DataError, match="sample 3 holds NaN or infinity — Derived"):
        batches(config, source, 8)


LABELS: dict[str, tuple[Any, str]] = {
    "short": ([0, 1], r"labels of shape \(2,\) do not fit 6 samples"),
    "one-hot": ([[1, 0]] * 6, r"labels of shape \(6, 2\) do not fit 6 samples"),
    "float": ([0.0] * 6, "labels are float32 — Own — store integers"),
    "NaN": ([float("nan")] * 6, "labels are float32"),
    "bool": ([True] * 6, "labels are bool"),
    "negative": ([0, 1, -1, 0, 0, 0], r"label -1 of sample 2 is not in 0\.\.9 — Own"),
    "null class": ([0, 1, 0, 0, 10, 0], r"label 10 of sample 4 .*null class of guidance"),
    "too large": ([0, 1, 0, 0, 0, 99], r"label 99 of sample 5 is not in 0\.\.9 — "),
}


@pytest.mark.parametrize(("labels", "said"), LABELS.values(), ids=LABELS)
def test_labels_of_a_source_are_looked_through_at_once(
    labels: Any, said: str, make_config: Callable[..., RunConfig]
) -> None:
    with pytest.raises(DataError, match=said):
        stream(make_config(None), Own(labels=labels), None, first=0, device="cpu")


def test_a_source_without_samples_is_refused(make_config) -> None:
    source = Own(labels=())
    source.__class__ = type("Nothing", (Own,), {"__len__": lambda self: 0})
    with pytest.raises(DataError, match="there are no samples — Nothing"):
        stream(make_config(None), source, None, first=0, device="cpu")


# ---- sets that are odd but sound


def of_two(folder: Path, container: str) -> Path:
    return OF_PICTURES[container](folder, whole_pictures()[:2])


@pytest.mark.parametrize("container", ["folder", "tar", "zip", "WebDataset", "saved"])
def test_fewer_files_than_workers_or_than_a_batch(
    container: str, tmp_path: Path, make_config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples come again in an order of their own in each epoch, and every worker has its share."""
    path = of_two(tmp_path / "set", container)
    alone, helped = (make_config(path, micro_batch=8, workers=workers) for workers in (0, 3))
    source = open_source(alone)
    found, _ = rows(batches(helped, source, 32))
    assert found == rows(batches(alone, source, 32))[0]
    for epoch in range(16):
        assert {row[1] for row in found[2 * epoch : 2 * epoch + 2]} == {0, 1}


def test_a_class_without_samples_in_an_archive_is_none(tmp_path: Path, make_config) -> None:
    """Its folder may be packed or not; in a class folder it is refused."""
    folder = of_two(tmp_path / "set", "folder")
    (folder / "c9").mkdir()
    with pytest.raises(DataError, match="class 'c9' holds no images"):
        open_source(make_config(folder))
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(folder, ".")
    assert open_source(make_config(tmp_path / "set.tar")).class_names == ("c0", "c1")
