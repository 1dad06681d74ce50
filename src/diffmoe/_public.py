"""The public names; `diffmoe` imports them from here when they are asked for."""

from diffmoe.checkpoint import load
from diffmoe.config import RunConfig, SamplingConfig
from diffmoe.experiments import report
from diffmoe.model import RoutingPlan, build_model
from diffmoe.objective import build_objective
from diffmoe.presets import preset
from diffmoe.sampling import generate
from diffmoe.training import train

__all__ = [
    "RoutingPlan",
    "RunConfig",
    "SamplingConfig",
    "build_model",
    "build_objective",
    "generate",
    "load",
    "preset",
    "report",
    "train",
]
