"""Posteriors of an autoencoder that were made once: written by `diffmoe prepare`, trained from."""

from diffmoe.data.cache.caption_record import (
    CAPTIONS,
    CaptionRecord,
    CaptionShard,
    EncodedBy,
    read_caption_record,
    write_caption_record,
)
from diffmoe.data.cache.caption_shard import caption_shard_file, write_caption_shard
from diffmoe.data.cache.captions import CaptionCache, caption_hashes, open_caption_cache
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
    write_captions,
    write_labels,
    write_record,
)
from diffmoe.data.cache.shard import write_shard
from diffmoe.data.cache.source import CacheSource, open_cache

__all__ = [
    "CACHE",
    "CAPTIONS",
    "CacheRecord",
    "CacheSource",
    "CaptionCache",
    "CaptionRecord",
    "CaptionShard",
    "EncodedBy",
    "Encoder",
    "Origin",
    "Shard",
    "Skipped",
    "caption_hashes",
    "caption_shard_file",
    "open_cache",
    "open_caption_cache",
    "read_caption_record",
    "read_record",
    "refuse_unfinished",
    "shard_file",
    "write_caption_record",
    "write_caption_shard",
    "write_captions",
    "write_labels",
    "write_record",
    "write_shard",
]
