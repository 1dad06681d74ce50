"""The words of each verb: records whose fields are flags, and mistakes told in a sentence."""

from diffmoe.arguments.parsing import parse
from diffmoe.arguments.preparing import PrepareCommand
from diffmoe.arguments.records import (
    AnalyzeCommand,
    BenchCommand,
    ConvertCommand,
    DemoCommand,
    EvaluateCommand,
    EvaluateRunCommand,
    PlanCommand,
    ReportCommand,
    SelftestCommand,
    SweepCommand,
    TrainCommand,
)
from diffmoe.arguments.sampling import SampleCommand

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
