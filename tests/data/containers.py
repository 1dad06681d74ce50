"""Every container that samples lie in, made small, and pictures that are damaged."""

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.packing import tar_of, zip_of
from data.posteriors import MOMENTS, write_cache

COUNT, VICTIM = 6, 3  # pictures and latents, in three classes; which of them is damaged
LAST = COUNT - 1  # the one that is cut off with the end of an archive
LAST_CACHED = 6
CACHED = 5  # the damaged one of a cache, in its last shard
Write = Callable[[np.ndarray], object]  # writes into all that is kept of one sample
Picture = bytes | None  # None: the container names a picture that it does not hold


# ---- pictures


def encoded(format: str, seed: int = 0, size: int = 24) -> bytes:
    """Noise, so that a picture takes many bytes and none is like another."""
    noise = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, format)
    return file.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, *, colour: int = 2, body: bytes | None = None) -> bytes:
    """A PNG that says what it likes in its header, and has no pixels unless a body is given."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"")) if body is None else body
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


def flipped(content: bytes, place: int | None = None) -> bytes:
    """One bit changed, in the middle if no place is given."""
    place = len(content) // 2 if place is None else place
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


WHOLE = encoded("PNG")
NOISE = np.random.default_rng(7).bytes(1500)
ROWS = chunk(b"IDAT", zlib.compress(b"\0" * 9 * 28))
BOMB = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2 * 10**6)))
PICTURES: dict[str, tuple[bytes, str]] = {
    "cut-off PNG": (WHOLE[: len(WHOLE) // 2], "truncated"),
    "cut-off JPEG": (encoded("JPEG")[:-200], "truncated"),
    "empty": (b"", "the file is empty"),
    "wrong magic": (b"\x88" + WHOLE[1:], "it is none of PNG, JPEG, WEBP, BMP, GIF"),
    "random bytes behind a header": (WHOLE[:41] + NOISE, "cannot be read"),
    "zero-size picture": (png(0, 0), "it is none of PNG"),
    "decompression bomb": (png(50_000, 50_000), "too many"),
    "10^9 pixels": (png(40_000, 25_000), "too many"),
    "bomb in a text": (png(9, 9, body=BOMB + ROWS), "too large"),
    "flipped bit": (flipped(WHOLE), "cannot be read"),
    "text called .png": (b"this is no image\n" * 9, "it is none of PNG"),
    "zeros": (bytes(999), "it is none of PNG"),
    "format that is not read": (encoded("TIFF"), "it is none of PNG"),
    "unsupported mode": (png(9, 9, colour=5, body=ROWS), "it is none of PNG"),
    "header without pixels": (png(9, 9, body=b""), "cannot load this image"),
}


def labels_of(count: int) -> list[int]:
    return [place * 3 // count for place in range(count)]


def whole_pictures() -> list[Picture]:
    return [encoded("PNG", seed) for seed in range(COUNT)]


def with_victim(content: Picture) -> list[Picture]:
    pictures = whole_pictures()
    pictures[VICTIM] = content
    return pictures


def named(pictures: list[Picture]) -> list[tuple[str, bytes]]:
    """Names in class folders, in the order of the places."""
    pairs = zip(labels_of(len(pictures)), pictures, strict=True)
    return [(f"c{label}/{n}.png", p) for n, (label, p) in enumerate(pairs) if p is not None]


def class_folder(folder: Path, pictures: list[Picture]) -> Path:
    for name, content in named(pictures):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def recorded(folder: Path, pictures: list[Picture]) -> Path:
    folder.mkdir()
    for number, content in enumerate(pictures):
        if content is not None:
            (folder / f"{number}.png").write_bytes(content)
    entries = [{"file": f"{n}.png", "label": c} for n, c in enumerate(labels_of(len(pictures)))]
    (folder / "samples.json").write_text(json.dumps({"images": entries}))
    return folder


def tar(folder: Path, pictures: list[Picture]) -> Path:
    folder.mkdir()
    return tar_of(folder / "set.tar", named(pictures))


def zipped(folder: Path, pictures: list[Picture]) -> Path:
    folder.mkdir()
    return zip_of(folder / "set.zip", named(pictures), method=0)


def web_shards(folder: Path, pictures: list[Picture]) -> Path:
    """Two shards, both in the order of their keys."""
    folder.mkdir()
    half, labels = len(pictures) // 2, labels_of(len(pictures))
    for number, places in enumerate((range(half), range(half, len(pictures)))):
        files = [(f"{n}.cls", str(labels[n]).encode()) for n in places]
        files += [(f"{n}.png", pictures[n]) for n in places if pictures[n] is not None]
        tar_of(folder / f"shard-{number}.tar", sorted(files))
    return folder


def rows(pictures: list[Picture]) -> Any:
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])}
    )
    cells = [None if p is None else {"bytes": p, "path": None} for p in pictures]
    return datasets.Dataset.from_dict({"image": cells, "label": labels_of(len(cells))}, features)


def saved(folder: Path, pictures: list[Picture]) -> Path:
    rows(pictures).save_to_disk(str(folder))
    return folder


def parquet(folder: Path, pictures: list[Picture]) -> Path:
    folder.mkdir()
    rows(pictures).to_parquet(str(folder / "train.parquet"))
    return folder


OF_PICTURES: dict[str, Callable[[Path, list[Picture]], Path]] = {
    "folder": class_folder,
    "samples.json": recorded,
    "tar": tar,
    "zip": zipped,
    "WebDataset": web_shards,
    "saved": saved,
    "parquet": parquet,
}
CONTAINERS = (*OF_PICTURES, "latents.npy", "cache")


# ---- latents and posteriors


def nothing(_: object) -> None:
    """Leave a thing as it is."""


LATENTS = np.random.default_rng(5).normal(size=(COUNT, 2, 1, 8, 8))


def latents(folder: Path, change: Write = nothing, dtype: Any = "f4") -> Path:
    """Latents with mirror images; `change` may write into all of the victim's."""
    folder.mkdir()
    content = LATENTS.copy()
    change(content[VICTIM])
    np.save(folder / "latents.npy", content.astype(dtype))
    np.save(folder / "labels.npy", np.array(labels_of(COUNT)))
    return folder


def cache(folder: Path, change: Write = nothing, dtype: Any = "f4") -> Path:
    """A cache whose checksums fit whatever `change` wrote into the victim's posteriors."""
    content = MOMENTS.copy()
    change(content[CACHED])
    return write_cache(folder, moments=content, dtype=np.dtype(dtype).name)


def put(value: float, everywhere: bool = False) -> Write:
    """Writes one value, or nothing but it."""
    return lambda entry: entry.fill(value) if everywhere else entry[:, 0, 0].fill(value)


def whole(container: str) -> Callable[[Path], Path]:
    """Builds an undamaged set."""
    if container in OF_PICTURES:
        return lambda folder: OF_PICTURES[container](folder, whole_pictures())
    return {"latents.npy": latents, "cache": cache}[container]
