"""What training a config needs on a machine, computed without weights or accelerator."""

from diffmoe.experiments.planning.lines import plan_lines
from diffmoe.experiments.planning.machine import PlannedMachine, measured, usual_peak
from diffmoe.experiments.planning.memory import memory_of, one_process
from diffmoe.experiments.planning.plan import Option, Plan, plan

__all__ = [
    "Option",
    "Plan",
    "PlannedMachine",
    "measured",
    "memory_of",
    "one_process",
    "plan",
    "plan_lines",
    "usual_peak",
]
