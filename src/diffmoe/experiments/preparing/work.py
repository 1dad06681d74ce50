"""What a cache is to be made of, and where; all that can be refused is refused before it begins."""

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from diffmoe.checkpoint import Parts
from diffmoe.codec import Autoencoder, open_autoencoder
from diffmoe.data import (
    CACHE,
    CacheRecord,
    CaptionedPictures,
    ImageSource,
    Origin,
    Skipped,
    open_pictures,
    read_record,
    spread,
)
from diffmoe.device import resolve_device
from diffmoe.errors import ConfigError, StorageError
from diffmoe.experiments.place import refuse_cache_place

__all__ = ["Dtype", "Work", "size_of"]

Dtype = Literal["float32", "float16"]
_FORMAT = "diffmoe latent cache 2"
_COLOURS = 3


@dataclass(frozen=True)
class Work:
    """Images, the autoencoder that is to encode them, and how the result is kept."""

    data: Path
    source: ImageSource
    autoencoder: Autoencoder
    out: Path
    side: int
    dtype: Dtype
    flip: bool
    shard_images: int
    skip_damaged: bool
    device: torch.device

    @classmethod
    def begin(
        cls,
        data: Path,
        autoencoder: str,
        *,
        out: Path,
        side: int,
        dtype: Dtype,
        flip: bool,
        shard_images: int,
        skip_damaged: bool,
        device: str,
        caption_field: str | None = None,
    ) -> "Work":
        """The work, once everything is there that it needs, and nothing that it would destroy."""
        _refuse_numbers(side, shard_images, dtype)
        refuse_cache_place(data, out, CACHE, read_record)
        place = resolve_device(device)
        wanted = None if caption_field is None else True  # else captions if all images have one
        pictures = open_pictures(data, captioned=wanted, caption_field=caption_field)
        source = ImageSource(pictures, channels=_COLOURS, side=side)
        encoder = open_autoencoder(autoencoder, place, flag="autoencoder")
        _refuse_side(side, encoder.config.factor)
        how = (side, dtype, flip, shard_images, skip_damaged)
        return cls(data, source, encoder, out, *how, place)

    @property
    def parts(self) -> Path:
        """Where shards lie until all are there."""
        return self.out.with_name(f"{self.out.name}.parts")

    @property
    def count(self) -> int:
        """Shards."""
        return -(-len(self.source) // self.shard_images)

    def images(self, shard: int) -> range:
        """The images that a shard is made of."""
        return range(len(self.source))[shard * self.shard_images :][: self.shard_images]

    @property
    def origin(self) -> Origin:
        """The images, and apart from them their captions: a run may read these or not."""
        pictures, place, count = self.source.pictures, str(self.data.absolute()), len(self.source)
        if isinstance(pictures, CaptionedPictures):
            return Origin(pictures.uncaptioned.fingerprint, place, count, pictures.caption_digest)
        return Origin(pictures.fingerprint, place, count)

    @property
    def key(self) -> dict[str, Any]:
        """All that shards depend on but what is in the images, of which each keeps its `state`."""
        return {"format": _FORMAT, "images": self.source.pictures.listing, **self._settings}

    def state(self, shard: int) -> str:
        """Names the images of a shard as they are now.

        Any two images whose fingerprints differ differ in the state of some shard.
        """
        images = self.images(shard)
        few = (index for index in spread(len(self.source)) if index in images)
        return self.source.pictures.state(images, few)

    def state_of(self, skipped: Iterable[Skipped]) -> str:
        """Names damaged images as they are now, for they may be mended without another size."""
        return self.source.pictures.state(range(0), (one.index for one in skipped))

    def refuse_other_images(self) -> None:
        """Raise ConfigError if shards are there of images other in names, number or condition."""
        try:
            found = json.loads((self.parts / "work.json").read_text())
        except (OSError, ValueError, RecursionError):
            return
        there = any(self.parts.glob("part-*"))
        others = {**found, "images": None} if isinstance(found, dict) else None
        if there and others == {**self.key, "images": None} and found != self.key:
            captions = "or given other captions " if self.source.captions is not None else ""
            raise ConfigError(
                f"images were added, removed or renamed {captions}since shards were encoded:"
                f" {found['images']} then, {self.key['images']} now",
                where=str(self.parts),
                remedy="put them back (for a damaged one a readable one, or --skip-damaged), or"
                " remove this folder to encode all of them again",
            )

    @property
    def _settings(self) -> dict[str, Any]:
        own = self.autoencoder.identity
        return _settings(own, self.side, self.dtype, self.flip, self.shard_images)

    def finished(self) -> CacheRecord | None:
        """The facts of the cache that is there already; raises ConfigError if it is another's."""
        if not (self.out / CACHE).exists():
            return None
        record = read_record(self.out)
        own = record.autoencoder.identity
        found = {"data": record.source.name} | _settings(
            own, record.side, record.dtype, record.flip, record.shard_images
        )
        wanted = {"data": self.source.fingerprint, **self._settings}
        for name, value in wanted.items():
            if found[name] != value:
                raise ConfigError(
                    f"a cache of another {name} lies here: {found[name]}, not {value}",
                    where=str(self.out),
                    remedy="choose another --out, or remove it",
                )
        return record

    def refuse_full(self, parts: Parts) -> None:
        """Raise StorageError if what is left to do does not fit on the disk."""
        left = sum(len(self.images(n)) for n in {*range(self.count)} - {*parts.done})
        free, wanted = shutil.disk_usage(self.parts).free, left * self.image_bytes
        if wanted > free:
            raise StorageError(
                f"{left} images need {size_of(wanted)}, and {size_of(free)} are free",
                where=str(self.out),
                remedy="choose another --out, or halve it with --dtype float16 or --no-flip",
            )

    @property
    def image_bytes(self) -> int:
        """Size of what is kept of an image."""
        latent = self.side // self.autoencoder.config.factor
        values = (1 + self.flip) * 2 * self.autoencoder.channels * latent**2
        return values * np.dtype(self.dtype).itemsize


def _settings(autoencoder: str, side: int, dtype: str, flip: bool, shard: int) -> dict[str, Any]:
    made_by = {"autoencoder": autoencoder, "side": side}
    return {**made_by, "dtype": dtype, "flip": flip, "shard": shard}


def _refuse_numbers(side: int, shard_images: int, dtype: str) -> None:
    for name, value in (("side", side), ("shard", shard_images)):
        if not 1 <= value <= 10**6:
            raise ConfigError(f"{name} {value} is not in 1..1000000")
    if dtype not in ("float32", "float16"):
        raise ConfigError(f"dtype {dtype!r} is unknown", remedy="use float32 or float16")


def _refuse_side(side: int, factor: int) -> None:
    if side % factor:
        below = side // factor * factor
        raise ConfigError(
            f"side {side} is not a multiple of the autoencoder's factor, {factor}",
            remedy=f"use {f'{below} or ' if below else ''}{below + factor}",
        )


def size_of(count: int) -> str:
    """Bytes in words."""
    return f"{count / 2**30:.3g} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"
