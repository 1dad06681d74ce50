"""Sums over a sampling run, each of one kind of finding; none grows with the number of images."""

from diffmoe.analysis.tallies.archive import Described, read_trace, write_trace
from diffmoe.analysis.tallies.classes import ClassTally
from diffmoe.analysis.tallies.experts import ExpertTally
from diffmoe.analysis.tallies.maps import MapTally
from diffmoe.analysis.tallies.numbers import rank_correlation
from diffmoe.analysis.tallies.observed import BatchSums, Observed
from diffmoe.analysis.tallies.steps import StepTally
from diffmoe.analysis.tallies.tokens import TokenTally

__all__ = [
    "BatchSums",
    "ClassTally",
    "Described",
    "ExpertTally",
    "MapTally",
    "Observed",
    "StepTally",
    "TokenTally",
    "rank_correlation",
    "read_trace",
    "write_trace",
]
