"""Compositions of the rooms: what a verb does that is more than one of them."""

from diffmoe.experiments.analysis import Analysis, analyze
from diffmoe.experiments.convert import Converted, convert
from diffmoe.experiments.demo import demo
from diffmoe.experiments.dry_run import Needs, needs
from diffmoe.experiments.pareto import Sweep, sweep
from diffmoe.experiments.report import RunReport, report
from diffmoe.experiments.samples import request, sample
from diffmoe.experiments.speed import ROWS, Measured, bench

__all__ = [
    "ROWS",
    "Analysis",
    "Converted",
    "Measured",
    "Needs",
    "RunReport",
    "Sweep",
    "analyze",
    "bench",
    "convert",
    "demo",
    "needs",
    "report",
    "request",
    "sample",
    "sweep",
]
