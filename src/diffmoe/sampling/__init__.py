"""Room 5: seeds to images."""

from diffmoe.sampling.capture import Captured
from diffmoe.sampling.conditions import ClassConditions, Conditions, PromptConditions, some_of
from diffmoe.sampling.demand import Demand
from diffmoe.sampling.dial import calibrate
from diffmoe.sampling.generate import Moment, Prepared, decode, generate, refuse_capture
from diffmoe.sampling.guidance import guided
from diffmoe.sampling.output import (
    FORMATS,
    DrawnPart,
    GenEvalFolder,
    ImageRequest,
    Output,
    contact_sheet,
    is_as_recorded,
    output_of,
    refuse_place,
    refuse_unmovable,
    refuse_unwritable,
    sweep_asides,
    tile_sheet,
    to_picture,
)
from diffmoe.sampling.policy import decisive_settings, sampling_plan
from diffmoe.sampling.prompts import (
    encode_prompts,
    kept_captions,
    refuse_prompts,
    run_encoder,
    usual_conditions,
)
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
    "ClassConditions",
    "Conditions",
    "Demand",
    "DrawnPart",
    "Evaluation",
    "GenEvalFolder",
    "ImageRequest",
    "Moment",
    "Origin",
    "Output",
    "Prepared",
    "PromptConditions",
    "Solver",
    "balanced_labels",
    "build_solver",
    "calibrate",
    "check_request",
    "contact_sheet",
    "decisive_settings",
    "decode",
    "encode_prompts",
    "evaluations",
    "find_thresholds",
    "generate",
    "guided",
    "is_as_recorded",
    "is_strict",
    "kept_captions",
    "output_of",
    "random_labels",
    "refuse_capture",
    "refuse_place",
    "refuse_prompts",
    "refuse_strict",
    "refuse_unmovable",
    "refuse_unwritable",
    "run_encoder",
    "sampling_plan",
    "some_of",
    "stamp",
    "sweep_asides",
    "tile_sheet",
    "to_picture",
    "usual_conditions",
]
