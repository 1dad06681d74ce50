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
from diffmoe.experiments.metadata import asked_of_metadata, read_metadata
from diffmoe.experiments.pareto import Sweep, sweep
from diffmoe.experiments.planning import (
    Plan,
    PlannedMachine,
    measured,
    plan,
    plan_lines,
    usual_peak,
)
from diffmoe.experiments.preparing import (
    PreparedCache,
    PreparedCaptions,
    prepare,
    prepare_captions,
)
from diffmoe.experiments.prompts import Asked, prompted, read_prompt_file, refuse_no_text
from diffmoe.experiments.report import RunReport, report
from diffmoe.experiments.requests import class_numbers, request, trained_classes
from diffmoe.experiments.samples import Sampled, draw_samples, sample
from diffmoe.experiments.selftest import SelfTest, self_test
from diffmoe.experiments.speed import ROWS, Measured, bench

__all__ = [
    "ROWS",
    "Analysis",
    "Asked",
    "Comparison",
    "Converted",
    "Evaluated",
    "Measured",
    "Needs",
    "Plan",
    "PlannedMachine",
    "PreparedCache",
    "PreparedCaptions",
    "RunReport",
    "Sampled",
    "SelfTest",
    "Sweep",
    "analyze",
    "asked_of_metadata",
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
    "prepare_captions",
    "prompted",
    "read_metadata",
    "read_prompt_file",
    "refuse_no_text",
    "report",
    "request",
    "sample",
    "self_test",
    "sweep",
    "trained_classes",
    "usual_peak",
]
