"""Room 5: seeds to images."""

from diffmoe.sampling.capture import Captured
from diffmoe.sampling.demand import Demand
from diffmoe.sampling.dial import calibrate
from diffmoe.sampling.generate import Moment, Prepared, decode, generate, refuse_capture
from diffmoe.sampling.guidance import guided
from diffmoe.sampling.output import (
    FORMATS,
    DrawnPart,
    ImageRequest,
    Output,
    contact_sheet,
    is_as_recorded,
    output_of,
    refuse_place,
    refuse_unmovable,
    refuse_unwritable,
    sweep_asides,
    to_picture,
)
from diffmoe.sampling.policy import decisive_settings, sampling_plan
from diffmoe.sampling.requests import balanced_labels, check_request, random_labels
from diffmoe.sampling.solvers import Evaluation, Solver, build_solver, evaluations
from diffmoe.sampling.stamp import MACHINE, Origin, stamp
from diffmoe.sampling.strict import is_strict, refuse_strict
from diffmoe.sampling.thresholds import Calibration, find_thresholds

__all__ = [
    "FORMATS",
    "MACHINE",
    "Calibration",
    "Captured",
    "Demand",
    "DrawnPart",
    "Evaluation",
    "ImageRequest",
    "Moment",
    "Origin",
    "Output",
    "Prepared",
    "Solver",
    "balanced_labels",
    "build_solver",
    "calibrate",
    "check_request",
    "contact_sheet",
    "decisive_settings",
    "decode",
    "evaluations",
    "find_thresholds",
    "generate",
    "guided",
    "is_as_recorded",
    "is_strict",
    "output_of",
    "random_labels",
    "refuse_capture",
    "refuse_place",
    "refuse_strict",
    "refuse_unmovable",
    "refuse_unwritable",
    "sampling_plan",
    "stamp",
    "sweep_asides",
    "to_picture",
]
