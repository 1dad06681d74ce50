"""Encoded pictures with random access, wherever they lie: folders, archives, shards, tables."""

from diffmoe.data.pictures.names import class_names_of
from diffmoe.data.pictures.open import open_pictures
from diffmoe.data.pictures.pictures import Pictures
from diffmoe.data.pictures.samples import SampledPictures

__all__ = ["Pictures", "SampledPictures", "class_names_of", "open_pictures"]
