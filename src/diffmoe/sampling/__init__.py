"""Room 5: seeds to images."""

from diffmoe.sampling.capture import Captured
from diffmoe.sampling.demand import Demand
from diffmoe.sampling.dial import calibrate
from diffmoe.sampling.generate import (
    Moment,
    balanced_labels,
    check_request,
    decode,
    generate,
    refuse_capture,
)
from diffmoe.sampling.guidance import guided
from diffmoe.sampling.output import (
    contact_sheet,
    refuse_place,
    refuse_unmovable,
    refuse_unwritable,
    to_picture,
    write_samples,
)
from diffmoe.sampling.policy import sampling_plan
from diffmoe.sampling.solvers import Evaluation, Solver, build_solver, evaluations
from diffmoe.sampling.stamp import stamp
from diffmoe.sampling.thresholds import Calibration, find_thresholds

__all__ = [
    "Calibration",
    "Captured",
    "Demand",
    "Evaluation",
    "Moment",
    "Solver",
    "balanced_labels",
    "build_solver",
    "calibrate",
    "check_request",
    "contact_sheet",
    "decode",
    "evaluations",
    "find_thresholds",
    "generate",
    "guided",
    "refuse_capture",
    "refuse_place",
    "refuse_unmovable",
    "refuse_unwritable",
    "sampling_plan",
    "stamp",
    "to_picture",
    "write_samples",
]
