"""Compositions of the rooms: what a verb does that is more than one of them."""

from diffmoe.experiments.analysis import Analysis, analyze
from diffmoe.experiments.convert import Converted, convert
from diffmoe.experiments.demo import demo
from diffmoe.experiments.dry_run import Needs, needs
from diffmoe.experiments.evaluation import (
    Comparison,
    Evaluated,
    compare,
    evaluate,
    make_statistics,
)
from diffmoe.experiments.pareto import Sweep, sweep
from diffmoe.experiments.planning import (
    Plan,
    PlannedMachine,
    measured,
    plan,
    plan_lines,
    usual_peak,
)
from diffmoe.experiments.preparing import PreparedCache, prepare
from diffmoe.experiments.report import RunReport, report
from diffmoe.experiments.requests import class_numbers, request, trained_classes
from diffmoe.experiments.samples import Sampled, draw_samples, sample
from diffmoe.experiments.selftest import SelfTest, self_test
from diffmoe.experiments.speed import ROWS, Measured, bench

__all__ = [
    "ROWS",
    "Analysis",
    "Comparison",
    "Converted",
    "Evaluated",
    "Measured",
    "Needs",
    "Plan",
    "PlannedMachine",
    "PreparedCache",
    "RunReport",
    "Sampled",
    "SelfTest",
    "Sweep",
    "analyze",
    "bench",
    "class_numbers",
    "compare",
    "convert",
    "demo",
    "draw_samples",
    "evaluate",
    "make_statistics",
    "measured",
    "needs",
    "plan",
    "plan_lines",
    "prepare",
    "report",
    "request",
    "sample",
    "self_test",
    "sweep",
    "trained_classes",
    "usual_peak",
]
