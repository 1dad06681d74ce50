"""Room 3: what the network is asked to predict, and the loss and sampling field of each."""

from diffmoe.objective.auxiliary import weigh
from diffmoe.objective.build import build_objective
from diffmoe.objective.ddpm import DDPM
from diffmoe.objective.flow import Flow
from diffmoe.objective.records import Draws, Field, FieldOutput, Loss, Network, Objective
from diffmoe.objective.schedule import Schedule

__all__ = [
    "DDPM",
    "Draws",
    "Field",
    "FieldOutput",
    "Flow",
    "Loss",
    "Network",
    "Objective",
    "Schedule",
    "build_objective",
    "weigh",
]
