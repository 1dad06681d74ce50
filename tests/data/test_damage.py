"""Kinds of damage in every container: named with file and index, refused or replaced.

A row is a kind of damage, a column a container. `MET` is found when the sample is read, and then
can be replaced; `REFUSED` when the container is opened; `NOT_THERE` says why others are not tried.
"""

import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import ImageFile
from torch import Tensor

from data.containers import CONTAINERS, OF_PICTURES, PICTURES, VICTIM, whole
from data.damage import IN_CONTAINER, MET, OUT_OF_RANGE, Met
from data.posteriors import CODEC
from data.refusals import ARRAYS_OF_LABELS, KINDS_OF_LABELS, REFUSED
from diffmoe.codec import Codec, build_codec
from diffmoe.config import FolderData, PixelCodec, RunConfig
from diffmoe.data import Batch, CacheSource, Source, open_source, stream
from diffmoe.errors import ConfigError, DataError, ExitCode
from diffmoe.randomness import normals, permutation, uniforms

PIXELS = build_codec(PixelCodec(), "cpu")
SEEN = 28  # samples: four epochs or more


@pytest.fixture(autouse=True)
def _copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copies that a library makes of parquet files go where the test goes."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "copies")


@pytest.fixture
def config_of(make_config: Callable[..., RunConfig]) -> Callable[..., RunConfig]:
    """Builds a run that fits the set at a path."""

    def build(path: Path, **changes: Any) -> RunConfig:
        cached = (path / "cache.json").exists()
        own = {"channels": 5, "out_channels": 5, "input_size": 4} if cached else {}
        machine = {"micro_batch": 4, **changes}
        config = make_config(path, flip=True, num_classes=3, **own, **machine)
        return replace(config, codec=CODEC) if cached else config

    return build


def replacing(config: RunConfig, share: float = 1.0) -> RunConfig:
    assert isinstance(config.data, FolderData)
    return replace(config, data=replace(config.data, on_bad_sample="replace", max_bad_share=share))


def codec_of(source: Source) -> Codec:
    return source.codec if isinstance(source, CacheSource) else PIXELS


def seen(config: RunConfig, source: Source, first: int = 0, count: int = SEEN) -> list[Batch]:
    batches = stream(config, source, codec_of(source), first=first, device="cpu")
    return list(itertools.islice(batches, count // config.micro_batch))


def place_of(config: RunConfig, source: Source, n: int) -> int:
    length = len(source)
    return int(permutation(config.training.seed, f"order/{n // length}", length)[n % length])


def other(config: RunConfig, source: Source, n: int, damaged: set[int]) -> int:
    """What takes the place of sample n, from the definition."""
    for attempt in range(16):
        draw = float(uniforms(config.training.seed, f"replace/{attempt}", n, 1))
        if int(draw * len(source)) not in damaged:
            return int(draw * len(source))
    pytest.fail("no replacement")


def sample(config: RunConfig, source: Source, n: int, place: int) -> Tensor:
    """Sample n as it is when it is read from a place; mirroring and noise are its own."""
    seed = config.training.seed
    x = source.load(place, bool(uniforms(seed, "flip", n, 1) < 0.5))[None]
    if source.encoded:
        return x[0]
    shape = (config.model.channels, config.model.input_size, config.model.input_size)
    noise = normals(seed, "encode", n, 1, shape) if isinstance(source, CacheSource) else None
    return codec_of(source).encode(x, noise)[0]


def opened(case: Met, config_of: Callable[..., RunConfig], folder: Path) -> tuple[RunConfig, Any]:
    """A set with a damaged sample."""
    path = case.build(folder)
    config = config_of(path)
    source = open_source(config)
    case.later(path)
    return config, source


def refuse(case: Met, config: RunConfig, source: Source) -> None:
    """The stream ends at the damaged sample, with one sentence that names file and index."""
    with pytest.raises(DataError, match=case.said) as caught:
        seen(config, source)
    message = str(caught.value)
    assert re.search(rf"(image|latent) {case.victim} ", message), message
    assert case.file in message and "\n" not in message
    assert caught.value.exit_code == ExitCode.BAD_DATA


def take_others(case: Met, config: RunConfig, source: Source, clean: Source) -> None:
    """The damaged sample is replaced as it is defined, and no other one changes."""
    met = 0
    for batch in seen(replacing(config), source):
        replaced = {one.sample: one for one in batch.replaced}
        for row, n in enumerate(range(batch.first, batch.first + config.micro_batch)):
            place = place_of(config, clean, n)
            used = other(config, clean, n, {place}) if place == case.victim else place
            assert batch.index[row] == used and int(batch.label[row]) == int(clean.labels[used])
            assert torch.equal(batch.x[row], sample(config, clean, n, used))
            if place == case.victim:
                one, met = replaced.pop(n), met + 1
                assert (one.place, one.used) == (place, used) and case.file in one.reason
                assert re.search(case.said, one.reason)
        assert not replaced
    assert met >= SEEN // len(clean)


@pytest.mark.parametrize(("kind", "container"), MET, ids=[" - ".join(cell) for cell in MET])
def test_a_damaged_sample_is_refused_or_replaced(
    kind: str, container: str, tmp_path: Path, config_of: Callable[..., RunConfig]
) -> None:
    case = MET[kind, container]
    config, source = opened(case, config_of, tmp_path / "damaged")
    refuse(case, config, source)
    build = case.clean or whole(container)
    clean = open_source(config_of(build(tmp_path / "whole")))
    take_others(case, config, source, clean)


# ---- containers that are damaged as a whole


@pytest.mark.parametrize(("kind", "container"), REFUSED, ids=[" - ".join(c) for c in REFUSED])
def test_a_damaged_container_is_refused(
    kind: str, container: str, tmp_path: Path, config_of: Callable[..., RunConfig]
) -> None:
    """Replacing samples does not help it: it is refused at the start."""
    case = REFUSED[kind, container]
    path = whole(container)(tmp_path / "set")
    config = replacing(config_of(path))
    open_source(config)
    case.change(path)
    with pytest.raises((DataError, ConfigError), match=case.said) as caught:
        open_source(config)
    message = str(caught.value)
    assert "\n" not in message and str(tmp_path / "set") in message
    if not isinstance(caught.value, ConfigError):
        assert case.file in message and caught.value.exit_code == ExitCode.BAD_DATA


# ---- the whole table

PICTURED = set(OF_PICTURES)
ARCHIVES, TABLES, FOLDERS = {"tar", "zip", "WebDataset"}, {"saved", "parquet"}, {"folder"}
NUMBERS = {"latents.npy", "cache"}
LABEL_KINDS = {*KINDS_OF_LABELS, *ARRAYS_OF_LABELS}
NOT_THERE: list[tuple[set[str], set[str], str]] = [
    (set(PICTURES), NUMBERS, "it holds numbers, no pictures"),
    ({"NaN", "infinity", "minus infinity"}, PICTURED, "pixels are whole numbers"),
    ({"never written", "constant", OUT_OF_RANGE}, PICTURED, "any pixels are a picture"),
    ({"constant"}, {"cache"}, "a flat image encodes to it; checksums prove that it was written"),
    ({"wrong shape", "wrong type"}, PICTURED, "any picture is cropped and converted"),
    ({"pickled", "endless"}, PICTURED, "`wrong magic` and `10^9 pixels` are these"),
    ({"absent"}, ARCHIVES, "an archive lists what it holds"),
    ({"dead link"}, ARCHIVES, "links are passed over with a warning"),
    ({"a folder in its place"}, ARCHIVES, "a folder in an archive is no picture of it"),
    ({"dead link", "a folder in its place"}, TABLES, "pictures lie in the rows"),
    ({"cut off", "emptied", "text in its place"}, FOLDERS, "each file is a picture, seen above"),
    ({"cut off while open"}, {"folder", "samples.json"}, "what is left is a cut-off picture"),
    ({"cut off while open"}, TABLES, "the library maps the table: the process would end"),
    ({IN_CONTAINER}, PICTURED - {"zip"}, "no checksum but that of the picture, seen above"),
    ({IN_CONTAINER}, {"latents.npy"}, "nearly any bits are numbers"),
    ({"flipped bit in an index"}, FOLDERS, "there is no index"),
    (LABEL_KINDS, {"folder", "tar", "zip"}, "the class is the folder"),
    ({"too many labels"}, PICTURED - {"folder", "tar", "zip"}, "a label is part of its sample"),
    (
        {"label that is no whole number", "NaN for a label"},
        {"cache"},
        "they are written as whole numbers, and a digest guards them",
    ),
]


def test_every_cell_of_the_table_is_tried_or_explained() -> None:
    explained = [
        (kind, container)
        for kinds, containers, _ in NOT_THERE
        for kind in kinds
        for container in containers
    ]
    kinds = {kind for kind, _ in (*MET, *REFUSED, *explained)}
    cells = sorted([*MET, *REFUSED, *explained])
    assert cells == sorted(itertools.product(kinds, CONTAINERS))  # each of them once
    for container in CONTAINERS:
        tried = [cell for cell in (*MET, *REFUSED) if cell[1] == container]
        print(f"{container}: {len(tried)} kinds of damage")
        assert len(tried) >= 12


@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("kind", ["cut-off PNG", "cut-off JPEG"])
def test_a_program_that_lets_pillow_fill_up_pictures_gets_none(
    kind: str, fill: bool, tmp_path: Path, config_of, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", fill)
    source = open_source(config_of(MET[kind, "folder"].build(tmp_path / "set")))
    with pytest.raises(DataError, match="truncated"):
        source.load(VICTIM, False)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is fill
