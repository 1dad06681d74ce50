"""Room 1: images on disk to batches of numbered samples."""

from diffmoe.data.cache import (
    CACHE,
    CacheRecord,
    CacheSource,
    Encoder,
    Origin,
    Shard,
    Skipped,
    read_record,
    shard_file,
    write_labels,
    write_record,
    write_shard,
)
from diffmoe.data.chunks import Chunk, ChunkReader
from diffmoe.data.digits import DigitsSource, Split, digits_split
from diffmoe.data.encoding import source_codec
from diffmoe.data.fingerprint import spread
from diffmoe.data.image_source import ImageSource
from diffmoe.data.images import Notes, centre_crop, decode_exact, decode_image
from diffmoe.data.latents import LatentSource
from diffmoe.data.pictures import Pictures, SampledPictures, open_pictures
from diffmoe.data.replacement import Replaced
from diffmoe.data.source import Source, open_source
from diffmoe.data.stream import Batch, stream

__all__ = [
    "CACHE",
    "Batch",
    "CacheRecord",
    "CacheSource",
    "Chunk",
    "ChunkReader",
    "DigitsSource",
    "Encoder",
    "ImageSource",
    "LatentSource",
    "Notes",
    "Origin",
    "Pictures",
    "Replaced",
    "SampledPictures",
    "Shard",
    "Skipped",
    "Source",
    "Split",
    "centre_crop",
    "decode_exact",
    "decode_image",
    "digits_split",
    "open_pictures",
    "open_source",
    "read_record",
    "shard_file",
    "source_codec",
    "spread",
    "stream",
    "write_labels",
    "write_record",
    "write_shard",
]
