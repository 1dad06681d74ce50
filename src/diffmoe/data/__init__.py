"""Room 1: images on disk to batches of numbered samples."""

from diffmoe.data.digits import DigitsSource, Split, digits_split
from diffmoe.data.folder import ImageFolderSource
from diffmoe.data.images import centre_crop, read_image
from diffmoe.data.latents import LatentSource
from diffmoe.data.source import Source, open_source
from diffmoe.data.stream import Batch, stream

__all__ = [
    "Batch",
    "DigitsSource",
    "ImageFolderSource",
    "LatentSource",
    "Source",
    "Split",
    "centre_crop",
    "digits_split",
    "open_source",
    "read_image",
    "stream",
]
