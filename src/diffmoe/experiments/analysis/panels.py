"""Sections of the page: each finding as figures with captions, and its numbers as files."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffmoe.analysis import (
    Panel,
    Section,
    Table,
    batch_figure,
    calibration_figure,
    class_capacity_figure,
    class_curve_figure,
    class_samples_figure,
    expert_information_figure,
    expert_overlap_figure,
    expert_share_figure,
    expert_steps_figure,
    predictor_quality_figure,
    realised_capacity_figure,
    reliability_figure,
    rows_of,
    step_capacity_figure,
    thresholds_figure,
    token_animation,
    token_experts_figure,
    token_overview_figure,
    token_strip_figure,
    write_json,
    write_table,
)
from diffmoe.experiments.analysis.findings import Findings

__all__ = ["sections_of"]

_FIRST_MAPS = 2  # images whose experts the page shows; the folder holds all

Figure = Callable[..., list[Path]]


@dataclass(frozen=True)
class _Shown:
    """A figure of a finding: how it is drawn and what a reader is told."""

    name: str  # of its files
    draw: Figure
    title: str
    caption: str


@dataclass(frozen=True)
class _Chapter:
    """A finding, its figures and what it is about."""

    title: str
    finding: str  # field of Findings
    introduction: str
    figures: tuple[_Shown, ...]


_CHAPTERS = (
    _Chapter(
        "Along sampling",
        "steps",
        "Capacity is the number of expert evaluations a token gets; 1 is the work of a dense model."
        " Figures are of the conditional branch.",
        (
            _Shown(
                "capacity_by_step",
                step_capacity_figure,
                "Compute along sampling",
                "Mean over images at each step, from noise to data; the band is one standard"
                " deviation between images (the paper's Fig. 1c).",
            ),
            _Shown(
                "capacity_by_expert_and_step",
                expert_steps_figure,
                "Compute of each expert along sampling",
                "Rows are experts, columns steps; 1 is an even share of a dense model's work. Of"
                " many MoE layers the first, the middle and the last (the paper's Fig. 12).",
            ),
        ),
    ),
    _Chapter(
        "By class",
        "classes",
        "Capacity of a class's samples, averaged over all steps. The rank correlation between two"
        " halves of the draws tells how far the order can be trusted.",
        (
            _Shown(
                "capacity_by_class",
                class_capacity_figure,
                "Compute by class",
                "Rows that experts took. Rows above the threshold, the other reading of the paper's"
                " Fig. 1d, are the same in `token` selection without a cap; where they differ they"
                " have hollow marks.",
            ),
            _Shown(
                "capacity_by_class_curve",
                class_curve_figure,
                "All classes, sorted",
                "The whole range from the costliest class to the cheapest.",
            ),
        ),
    ),
    _Chapter(
        "Which patches",
        "maps",
        "How many experts took each patch of a few images, and which.",
        (
            _Shown(
                "token_overview",
                token_overview_figure,
                "Experts per patch",
                "Each image as drawn, the map of the experts that took its patches over it, and the"
                " map itself, averaged over all steps and MoE layers.",
            ),
            _Shown(
                "token_strip",
                token_strip_figure,
                "Experts per patch along sampling",
                "The noisy state above, the experts of each patch below, from noise to data.",
            ),
        ),
    ),
    _Chapter(
        "Experts",
        "experts",
        "What each expert does over the whole run.",
        (
            _Shown(
                "expert_share",
                expert_share_figure,
                "Who does the work",
                "Share of the tokens that each expert took. A token may be taken by several experts"
                " or by none: a row adds up to its capacity x 100 %. A cross marks a dead expert,"
                " which takes at most 1 % of an even share.",
            ),
            _Shown(
                "expert_overlap",
                expert_overlap_figure,
                "Who works with whom",
                "Tokens that both experts took, of those that either took.",
            ),
            _Shown(
                "expert_information",
                expert_information_figure,
                "Specialisation",
                "What the expert of a pair tells of the image's class and of the sampling step, as"
                " mutual information; for classes, a tick is what exchanged labels give by chance.",
            ),
        ),
    ),
    _Chapter(
        "The capacity predictor",
        "predictor",
        "The samples are noised again in pools of mixed noise levels, as in training, and the"
        " predictor is held against the true top-K of these pools.",
        (
            _Shown(
                "predictor_quality",
                predictor_quality_figure,
                "Precision and recall",
                "At the tracked thresholds, by noise level.",
            ),
            _Shown(
                "predictor_calibration",
                calibration_figure,
                "Calibration error",
                "Mean distance between predicted and observed shares, by noise level.",
            ),
            _Shown(
                "predictor_reliability",
                reliability_figure,
                "Reliability",
                "Of tokens predicted with a probability, the share the expert took; on the diagonal"
                " they agree.",
            ),
            _Shown(
                "predictor_capacity",
                realised_capacity_figure,
                "Realised and nominal capacity",
                "What the tracked thresholds give at each noise level, beside the capacity trained"
                " at.",
            ),
            _Shown(
                "predictor_thresholds",
                thresholds_figure,
                "Tracked and recalibrated thresholds",
                "Thresholds tracked in training against those measured anew: in training pools of"
                " samples, and for the nominal capacity of each expert over this sampling run.",
            ),
        ),
    ),
    _Chapter(
        "A batch of one",
        "batch",
        "The same seeds in a pool of one image and of many (the paper's Fig. 6). Static: `pool`"
        " selection, the top K of the pool. Dynamic: `pool` or `token` selection at the tracked"
        " thresholds, whatever capacity was asked for above. Frechet distances of so few images"
        " are too large, and compare with each other only.",
        (
            _Shown(
                "batch_of_one",
                batch_figure,
                "Static and dynamic selection",
                "Change is the rms difference between the two pools, images in [-1, 1]; `token`"
                " selection knows no pools: eight of its images are drawn each alone as well.",
            ),
        ),
    ),
)


def sections_of(found: Findings, folder: Path, command: str) -> list[Section]:
    """The sections for what was found; figures, tables and JSON are written into `folder`."""
    sections = []
    for chapter in _CHAPTERS:
        finding = getattr(found, chapter.finding)
        if finding is None:
            continue
        data = _data(finding, folder)
        panels = [_panel(shown, finding, folder, command) for shown in chapter.figures]
        panels += _more(chapter.finding, found, folder, command)
        drawn = [panel for panel in panels if panel is not None]
        if drawn:
            drawn[-1] = _with_data(drawn[-1], data)
            sections.append(Section(chapter.title, drawn, chapter.introduction))
    return [*sections, _cost(found, folder)]


def _data(finding: Any, folder: Path) -> list[str]:
    """Write the tables of a finding, each as CSV and JSON; their names."""
    names = []
    for name, rows in rows_of(finding).items():
        write_table(folder / "data" / f"{name}.csv", rows)
        write_json(folder / "data" / f"{name}.json", rows)
        names += [f"data/{name}.csv", f"data/{name}.json"]
    return names


def _with_data(panel: Panel, data: list[str]) -> Panel:
    return Panel(panel.title, panel.figure, panel.caption, panel.table, data)


def _panel(shown: _Shown, finding: Any, folder: Path, command: str) -> Panel | None:
    """A figure with its caption; None where it would show nothing."""
    drawn = shown.draw(finding, folder / "figures" / shown.name, command=command)
    return Panel(shown.title, drawn[0], shown.caption) if drawn else None


def _more(finding: str, found: Findings, folder: Path, command: str) -> list[Panel | None]:
    """Figures that need more than their finding."""
    place = folder / "figures"
    if finding == "classes":
        drawn = class_samples_figure(
            found.hardest, found.easiest, place / "class_samples", command=command
        )
        caption = "Samples of the classes that got most and least, not chosen (Fig. 13, 14)."
        return [Panel("The costliest and the cheapest", drawn[0], caption)] if drawn else []
    if finding != "maps" or found.maps is None:
        return []
    films = token_animation(found.maps, place / "token_animation", command=command)
    caption = "State and map of each image, from noise to data."
    panels: list[Panel | None] = [Panel("Animation", films[-1], caption)] if films else []
    for image, name in enumerate(found.maps.names):
        file = place / f"token_experts_{image}"
        drawn = token_experts_figure(found.maps, image, file, command=command)
        if drawn and image < _FIRST_MAPS:
            caption = (
                "Share of all steps in which each expert took each patch; black is all. The folder"
                " holds one for every image mapped."
            )
            panels.append(Panel(f"Which expert took it: class {name}", drawn[0], caption))
    return panels


def _cost(found: Findings, folder: Path) -> Section:
    table = Table(["what", "how much", "of what"], found.cost.rows)
    data = _data(found.cost, folder)
    caption = "Operations are counted on the model's graph, seconds are measured."
    return Section("Cost", [Panel("What it costs", None, caption, table, data)])
