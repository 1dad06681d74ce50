"""One function for each published row: the config, and the number to expect beside it.

A preset is built from a neighbour by `replace`, so the difference of two presets is the
experiment. Published numbers are FID-50K on ImageNet 256, from the paper's tables.
"""

from diffmoe.presets.table import PRESETS, preset

__all__ = ["PRESETS", "preset"]
