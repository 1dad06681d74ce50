"""The words of each verb: records whose fields are flags, and mistakes told in a sentence."""

from diffmoe.arguments.parsing import parse
from diffmoe.arguments.records import (
    AnalyzeCommand,
    BenchCommand,
    ConvertCommand,
    DemoCommand,
    EvaluateCommand,
    EvaluateRunCommand,
    PlanCommand,
    PrepareCommand,
    ReportCommand,
    SampleCommand,
    SelftestCommand,
    SweepCommand,
    TrainCommand,
)

__all__ = [
    "AnalyzeCommand",
    "BenchCommand",
    "ConvertCommand",
    "DemoCommand",
    "EvaluateCommand",
    "EvaluateRunCommand",
    "PlanCommand",
    "PrepareCommand",
    "ReportCommand",
    "SampleCommand",
    "SelftestCommand",
    "SweepCommand",
    "TrainCommand",
    "parse",
]
