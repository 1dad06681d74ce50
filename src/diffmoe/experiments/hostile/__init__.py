"""Files that would run code, lead out of their folder or fill the memory of a trusting reader."""

from diffmoe.experiments.hostile.corpus import Hostile, corpus

__all__ = ["Hostile", "corpus"]
