"""What settings of the compute dial cost and what they give, measured side by side."""

from diffmoe.experiments.pareto.points import CAPACITIES, GAMMAS
from diffmoe.experiments.pareto.run import Sweep, sweep

__all__ = ["CAPACITIES", "GAMMAS", "Sweep", "sweep"]
