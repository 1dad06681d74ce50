"""Encoded pictures with random access, wherever they lie: folders, archives, shards, tables."""

from diffmoe.data.pictures.caption import CaptionedPictures, captioned_name
from diffmoe.data.pictures.caption_list import listed_captions
from diffmoe.data.pictures.names import Names, class_names_of
from diffmoe.data.pictures.open import open_pictures
from diffmoe.data.pictures.pictures import Pictures
from diffmoe.data.pictures.samples import SampledPictures

__all__ = [
    "CaptionedPictures",
    "Names",
    "Pictures",
    "SampledPictures",
    "captioned_name",
    "class_names_of",
    "listed_captions",
    "open_pictures",
]
