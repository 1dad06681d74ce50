"""Images and captions encoded once: caches to train from."""

from diffmoe.experiments.preparing.captions import PreparedCaptions, prepare_captions
from diffmoe.experiments.preparing.run import PreparedCache, prepare

__all__ = ["PreparedCache", "PreparedCaptions", "prepare", "prepare_captions"]
