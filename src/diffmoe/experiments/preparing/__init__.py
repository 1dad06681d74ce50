"""Images encoded once: a cache of posteriors to train from."""

from diffmoe.experiments.preparing.run import PreparedCache, prepare

__all__ = ["PreparedCache", "prepare"]
