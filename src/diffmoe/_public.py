"""The public names; `diffmoe` imports them from here when they are asked for."""

import os

# Before torch loads its threads: threads that wait by spinning make a shared machine many times
# slower than sleeping ones.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from diffmoe.checkpoint import load
from diffmoe.config import RunConfig, SamplingConfig
from diffmoe.experiments import analyze, evaluate, prepare, report
from diffmoe.model import RoutingPlan, build_model
from diffmoe.objective import build_objective
from diffmoe.presets import preset
from diffmoe.sampling import calibrate, encode_prompts, generate
from diffmoe.training import train

__all__ = [
    "RoutingPlan",
    "RunConfig",
    "SamplingConfig",
    "analyze",
    "build_model",
    "build_objective",
    "calibrate",
    "encode_prompts",
    "evaluate",
    "generate",
    "load",
    "prepare",
    "preset",
    "report",
    "train",
]
