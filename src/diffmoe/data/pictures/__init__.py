"""Encoded pictures with random access, wherever they lie: folders, archives, shards, tables."""

from diffmoe.data.pictures.open import open_pictures
from diffmoe.data.pictures.pictures import Pictures

__all__ = ["Pictures", "open_pictures"]
