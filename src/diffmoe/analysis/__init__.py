"""Room 7: routing to figures."""

from diffmoe.analysis.figures import capacity_figures, loss_figure, samples_figure
from diffmoe.analysis.report import Panel, write_report
from diffmoe.analysis.trace import CapacityTrace

__all__ = [
    "CapacityTrace",
    "Panel",
    "capacity_figures",
    "loss_figure",
    "samples_figure",
    "write_report",
]
