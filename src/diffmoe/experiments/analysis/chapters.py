"""The chapters of the page: each finding, its figures and what readers are told."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from diffmoe.analysis import (
    batch_figure,
    calibration_figure,
    class_capacity_figure,
    class_curve_figure,
    expert_information_figure,
    expert_overlap_figure,
    expert_share_figure,
    expert_steps_figure,
    predictor_quality_figure,
    realised_capacity_figure,
    region_capacity_figure,
    region_level_figure,
    reliability_figure,
    step_capacity_figure,
    thresholds_figure,
    token_overview_figure,
    token_strip_figure,
    word_capacity_figure,
)

__all__ = ["Chapter", "Shown", "chapters"]

Figure = Callable[..., list[Path]]


@dataclass(frozen=True)
class Shown:
    """A figure of a finding: how it is drawn and what a reader is told."""

    name: str  # of its files
    draw: Figure
    title: str
    caption: str


@dataclass(frozen=True)
class Chapter:
    """A finding, its figures and what it is about."""

    title: str
    finding: str  # field of Findings
    introduction: str
    figures: tuple[Shown, ...]


CHAPTERS = (
    Chapter(
        "Along sampling",
        "steps",
        "Capacity is the number of expert evaluations a token gets; 1 is the work of a dense model."
        " Figures are of the conditional branch.",
        (
            Shown(
                "capacity_by_step",
                step_capacity_figure,
                "Compute along sampling",
                "Mean over images at each step, from noise to data; the band is one standard"
                " deviation between images (the paper's Fig. 1c).",
            ),
            Shown(
                "capacity_by_expert_and_step",
                expert_steps_figure,
                "Compute of each expert along sampling",
                "Rows are experts, columns steps; 1 is an even share of a dense model's work. Of"
                " many MoE layers the first, the middle and the last (the paper's Fig. 12).",
            ),
        ),
    ),
    Chapter(
        "By class",
        "classes",
        "Capacity of a class's samples, averaged over all steps. The rank correlation between two"
        " halves of the draws tells how far the order can be trusted.",
        (
            Shown(
                "capacity_by_class",
                class_capacity_figure,
                "Compute by class",
                "Rows that experts took. Rows above the threshold, the other reading of the paper's"
                " Fig. 1d, are the same in `token` selection without a cap; where they differ they"
                " have hollow marks.",
            ),
            Shown(
                "capacity_by_class_curve",
                class_curve_figure,
                "All classes, sorted",
                "The whole range from the costliest class to the cheapest.",
            ),
        ),
    ),
    Chapter(
        "By word",
        "words",
        "Capacity of the images whose prompt has a word. Words come together with others, and with"
        " what a prompt asks for: more of it is not what the word alone does.",
        (
            Shown(
                "capacity_by_word",
                word_capacity_figure,
                "Compute by word of the prompt",
                "Mean over all images whose prompt has the word, conditional branch, with one"
                " standard error by formula (a ratio over prompts, which are taken for independent;"
                " images of one prompt are not). Of words of no kind those in the most prompts.",
            ),
        ),
    ),
    Chapter(
        "By what patches show",
        "regions",
        "The judge of scenes finds the objects in each picture as drawn: a patch without a pixel of"
        " one is background, a patch that shows nothing else is inside of it, any other is its"
        " edge. Noise hides all that at first: regions are those of the picture in the end.",
        (
            Shown(
                "capacity_by_region",
                region_capacity_figure,
                "Compute by region and by number of objects",
                "Experts of a patch, mean over steps and MoE layers, conditional branch; 1 is the"
                " work of a dense model.",
            ),
            Shown(
                "capacity_by_region_and_level",
                region_level_figure,
                "Compute of regions along sampling",
                "The same by noise level, from noise to data.",
            ),
        ),
    ),
    Chapter(
        "Which patches",
        "maps",
        "How many experts took each patch of a few images, and which.",
        (
            Shown(
                "token_overview",
                token_overview_figure,
                "Experts per patch",
                "Each image as drawn, the map of the experts that took its patches over it, and the"
                " map itself, averaged over all steps and MoE layers.",
            ),
            Shown(
                "token_strip",
                token_strip_figure,
                "Experts per patch along sampling",
                "The noisy state above, the experts of each patch below, from noise to data.",
            ),
        ),
    ),
    Chapter(
        "Experts",
        "experts",
        "What each expert does over the whole run.",
        (
            Shown(
                "expert_share",
                expert_share_figure,
                "Who does the work",
                "Share of the tokens that each expert took. A token may be taken by several experts"
                " or by none: a row adds up to its capacity x 100 %. A cross marks a dead expert,"
                " which takes at most 1 % of an even share.",
            ),
            Shown(
                "expert_overlap",
                expert_overlap_figure,
                "Who works with whom",
                "Tokens that both experts took, of those that either took.",
            ),
            Shown(
                "expert_information",
                expert_information_figure,
                "Specialisation",
                "What the expert of a pair tells of the image's class and of the sampling step, as"
                " mutual information; for classes, a tick is what exchanged labels give by chance.",
            ),
        ),
    ),
    Chapter(
        "The capacity predictor",
        "predictor",
        "The samples are noised again in pools of mixed noise levels, as in training, and the"
        " predictor is held against the true top-K of these pools.",
        (
            Shown(
                "predictor_quality",
                predictor_quality_figure,
                "Precision and recall",
                "At the tracked thresholds, by noise level.",
            ),
            Shown(
                "predictor_calibration",
                calibration_figure,
                "Calibration error",
                "Mean distance between predicted and observed shares, by noise level.",
            ),
            Shown(
                "predictor_reliability",
                reliability_figure,
                "Reliability",
                "Of tokens predicted with a probability, the share the expert took; on the diagonal"
                " they agree.",
            ),
            Shown(
                "predictor_capacity",
                realised_capacity_figure,
                "Realised and nominal capacity",
                "What the tracked thresholds give at each noise level, beside the capacity trained"
                " at.",
            ),
            Shown(
                "predictor_thresholds",
                thresholds_figure,
                "Tracked and recalibrated thresholds",
                "Thresholds tracked in training against those measured anew: in training pools of"
                " samples, and for the nominal capacity of each expert over this sampling run.",
            ),
        ),
    ),
    Chapter(
        "A batch of one",
        "batch",
        "The same seeds in a pool of one image and of many (the paper's Fig. 6). Static: `pool`"
        " selection, the top K of the pool. Dynamic: `pool` or `token` selection at the tracked"
        " thresholds, whatever capacity was asked for above. Frechet distances of so few images"
        " are too large, and compare with each other only.",
        (
            Shown(
                "batch_of_one",
                batch_figure,
                "Static and dynamic selection",
                "Change is the rms difference between the two pools, images in [-1, 1]; `token`"
                " selection knows no pools: eight of its images are drawn each alone as well.",
            ),
        ),
    ),
)

_BY_PROMPT = Chapter(
    "By prompt",
    "classes",
    "Capacity of a prompt's samples, averaged over all steps. The rank correlation between two"
    " halves of the draws tells how far the order can be trusted.",
    (
        Shown(
            "capacity_by_prompt",
            class_capacity_figure,
            "Compute by prompt",
            "Rows that experts took; where rows above the threshold differ they have hollow marks.",
        ),
        Shown(
            "capacity_by_prompt_curve",
            class_curve_figure,
            "All prompts, sorted",
            "The whole range from the costliest prompt to the cheapest.",
        ),
    ),
)


def chapters(prompted: bool) -> list[Chapter]:
    """All of them, of classes or of prompts."""
    if not prompted:
        return [*CHAPTERS]
    return [_BY_PROMPT if chapter.finding == "classes" else _told(chapter) for chapter in CHAPTERS]


def _told(chapter: Chapter) -> Chapter:
    """A chapter whose captions speak of prompts."""
    figures = (
        replace(
            shown, caption=shown.caption.replace("classes", "prompts").replace("class", "prompt")
        )
        for shown in chapter.figures
    )
    return replace(chapter, figures=tuple(figures))
