"""Figures of a run and of what an analysis found.

A function takes a record and a path without suffix, and returns the files it wrote there: PNG and
SVG, or GIF and WebP. It returns none where the record holds nothing to show.
"""

from diffmoe.analysis.figures.animation import token_animation
from diffmoe.analysis.figures.batch import batch_figure
from diffmoe.analysis.figures.capacity import capacity_figures
from diffmoe.analysis.figures.classes import (
    class_capacity_figure,
    class_curve_figure,
    class_samples_figure,
)
from diffmoe.analysis.figures.experts import (
    expert_information_figure,
    expert_overlap_figure,
    expert_share_figure,
)
from diffmoe.analysis.figures.predictor import (
    calibration_figure,
    predictor_quality_figure,
    realised_capacity_figure,
    reliability_figure,
    thresholds_figure,
)
from diffmoe.analysis.figures.prompts import prompt_samples_figure
from diffmoe.analysis.figures.regions import (
    region_capacity_figure,
    region_level_figure,
    region_pictures_figure,
)
from diffmoe.analysis.figures.runs import loss_figure, samples_figure
from diffmoe.analysis.figures.steps import expert_steps_figure, step_capacity_figure
from diffmoe.analysis.figures.sweep import sweep_figure
from diffmoe.analysis.figures.tokens import (
    token_experts_figure,
    token_overview_figure,
    token_strip_figure,
)
from diffmoe.analysis.figures.words import word_capacity_figure

__all__ = [
    "batch_figure",
    "calibration_figure",
    "capacity_figures",
    "class_capacity_figure",
    "class_curve_figure",
    "class_samples_figure",
    "expert_information_figure",
    "expert_overlap_figure",
    "expert_share_figure",
    "expert_steps_figure",
    "loss_figure",
    "predictor_quality_figure",
    "prompt_samples_figure",
    "realised_capacity_figure",
    "region_capacity_figure",
    "region_level_figure",
    "region_pictures_figure",
    "reliability_figure",
    "samples_figure",
    "step_capacity_figure",
    "sweep_figure",
    "thresholds_figure",
    "token_animation",
    "token_experts_figure",
    "token_overview_figure",
    "token_strip_figure",
    "word_capacity_figure",
]
