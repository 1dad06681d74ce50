"""Posteriors of an autoencoder that were made once: written by `diffmoe prepare`, trained from."""

from diffmoe.data.cache.record import (
    CACHE,
    CacheRecord,
    Encoder,
    Origin,
    Shard,
    Skipped,
    read_record,
    refuse_unfinished,
    shard_file,
    write_labels,
    write_record,
)
from diffmoe.data.cache.shard import write_shard
from diffmoe.data.cache.source import CacheSource, open_cache

__all__ = [
    "CACHE",
    "CacheRecord",
    "CacheSource",
    "Encoder",
    "Origin",
    "Shard",
    "Skipped",
    "open_cache",
    "read_record",
    "refuse_unfinished",
    "shard_file",
    "write_labels",
    "write_record",
    "write_shard",
]
