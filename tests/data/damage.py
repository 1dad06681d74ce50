"""Damage to one sample of a set, which is met when the sample is read."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.containers import (
    CACHED,
    LAST,
    LAST_CACHED,
    OF_PICTURES,
    PICTURES,
    VICTIM,
    Picture,
    cache,
    flipped,
    latents,
    nothing,
    put,
    whole,
    whole_pictures,
    with_victim,
)
from data.posteriors import MOMENTS
from diffmoe.data import shard_file

OUT_OF_RANGE = "beyond the range of its type"
IN_CONTAINER = "flipped bit in the container"


class Met(NamedTuple):
    """A sample that is damaged, and a part of what must be said of it."""

    build: Callable[[Path], Path]
    said: str
    file: str  # a part of its file's name
    later: Callable[[Path], object] = nothing  # done to the set once it is open
    victim: int = VICTIM
    clean: Callable[[Path], Path] | None = None  # builds the same set undamaged, if not as usual


def pictures_met() -> dict[tuple[str, str], Met]:
    """Every kind of damaged content in every container of pictures."""
    found = {}
    for container, build in OF_PICTURES.items():
        for kind, (content, said) in PICTURES.items():
            found[kind, container] = Met(_building(build, content), said, FILES[container])
    return found


def _building(
    build: Callable[[Path, list[Picture]], Path], content: Picture
) -> Callable[[Path], Path]:
    return lambda folder: build(folder, with_victim(content))


FILES = {
    "folder": f"c1/{VICTIM}.png",
    "samples.json": f"{VICTIM}.png",
    "tar": f"set.tar:c1/{VICTIM}.png",
    "zip": f"set.zip:c1/{VICTIM}.png",
    "WebDataset": f"shard-1.tar:{VICTIM}.png",
    "saved": f":row {VICTIM}",
    "parquet": f":row {VICTIM}",
    "latents.npy": "latents.npy",
    "cache": shard_file(2),
}


def relink(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.png")


def become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def cut_picture(path: Path) -> None:
    """End an archive in the middle of its last picture."""
    last = whole_pictures()[LAST] or b""
    os.truncate(path, path.read_bytes().index(last) + len(last) // 2)


def cut_latent(folder: Path) -> None:
    """End the latents within the last one's mirror image, and before the half of it."""
    place = folder / "latents.npy"
    os.truncate(place, place.stat().st_size - 2 * 64 * 4 + 5)


def cut_posterior(folder: Path) -> None:
    """End a shard in the middle of its last posterior but one."""
    place = folder / shard_file(2)
    os.truncate(place, place.read_bytes().index(MOMENTS[LAST_CACHED].tobytes()) + 40)


def rot_zip(path: Path) -> None:
    """Flip a bit of the victim's picture inside of a zip."""
    content, archive = whole_pictures()[VICTIM] or b"", path.read_bytes()
    path.write_bytes(flipped(archive, archive.index(content) + len(content) // 2))


def rot_cache(folder: Path) -> None:
    """Flip a bit in the victim's posterior and one in that of its mirror image."""
    place = folder / shard_file(2)
    content = place.read_bytes()
    for mirror in range(2):
        content = flipped(content, content.index(MOMENTS[CACHED, mirror].tobytes()) + 9)
    place.write_bytes(content)


def built(
    build: Callable[[Path], Path], change: Callable[[Path], object]
) -> Callable[[Path], Path]:
    """Builds a set and does something to it."""

    def make(folder: Path) -> Path:
        path = build(folder)
        change(path)
        return path

    return make


def _place(folder: Path, container: str) -> Path:
    return folder / ("c1" if container == "folder" else "") / f"{VICTIM}.png"


def places_met() -> dict[tuple[str, str], Met]:
    """Pictures that are not where their container says."""
    found = {}
    for container in ("folder", "samples.json"):
        for kind, change, said in (
            ("absent", Path.unlink, "No such file"),
            ("dead link", relink, "No such file"),
            ("a folder in its place", become_folder, "Is a directory"),
        ):
            later = _changing(change, container)
            found[kind, container] = Met(whole(container), said, FILES[container], later)
    for container in ("saved", "parquet"):
        build = _building(OF_PICTURES[container], None)
        found["absent", container] = Met(build, "the row holds no image", FILES[container])
    rotten = built(whole("zip"), rot_zip)
    found[IN_CONTAINER, "zip"] = Met(rotten, "not those that", FILES["zip"])
    return found


def ends_met() -> dict[tuple[str, str], Met]:
    """Containers that lose their end while they are read."""
    ended = "the archive ends before it"
    shard = _shard(cut_picture)
    return {
        ("cut off while open", "tar"): Met(whole("tar"), ended, "set.tar", cut_picture, LAST),
        ("cut off while open", "zip"): Met(whole("zip"), ended, "set.zip", cut_picture, LAST),
        ("cut off while open", "WebDataset"): Met(
            whole("WebDataset"), ended, "shard-1.tar", shard, LAST
        ),
        ("cut off while open", "latents.npy"): Met(
            latents, "the file was cut off", "latents.npy", cut_latent, LAST
        ),
        ("cut off while open", "cache"): Met(
            cache, "its checksum is another", shard_file(2), cut_posterior, LAST_CACHED
        ),
    }


def _shard(change: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: change(folder / "shard-1.tar")


def _changing(change: Callable[[Path], object], container: str) -> Callable[[Path], object]:
    return lambda folder: change(_place(folder, container))


def numbers_met() -> dict[tuple[str, str], Met]:
    """Latents and posteriors that are no samples."""
    nan = "holds NaN or infinity"
    values = {"NaN": np.nan, "infinity": np.inf, "minus infinity": -np.inf}
    found = {}
    for kind, value in values.items():
        found[kind, "latents.npy"] = Met(lambda f, v=value: latents(f, put(v)), nan, "latents.npy")
        found[kind, "cache"] = _cached(lambda f, v=value: cache(f, put(v)), nan)
    found |= {
        (OUT_OF_RANGE, "latents.npy"): Met(
            lambda f: latents(f, put(1e300), "f8"), nan, "latents.npy"
        ),
        (OUT_OF_RANGE, "cache"): _cached(_beyond_half, nan)._replace(
            clean=lambda f: cache(f, dtype="f2")
        ),
        ("never written", "latents.npy"): Met(
            lambda f: latents(f, put(0, True)), r"is constant \(0\)", "latents.npy"
        ),
        ("constant", "latents.npy"): Met(
            lambda f: latents(f, put(0.5, True)), r"is constant \(0\.5\)", "latents.npy"
        ),
        (IN_CONTAINER, "cache"): _cached(built(cache, rot_cache), "its checksum is another"),
        ("never written", "cache"): _cached(built(cache, blank), "its checksum is another"),
    }
    return found


def _cached(build: Callable[[Path], Path], said: str) -> Met:
    return Met(build, said, shard_file(2), victim=CACHED)


def _beyond_half(folder: Path) -> Path:
    with np.errstate(over="ignore"):
        return cache(folder, put(1e6), "f2")


def blank(folder: Path) -> None:
    """Zeros where the victim's posteriors are to be."""
    place = folder / shard_file(2)
    content, own = place.read_bytes(), MOMENTS[CACHED].tobytes()
    place.write_bytes(content.replace(own, bytes(len(own))))


MET = pictures_met() | places_met() | ends_met() | numbers_met()
