"""Sections of the page: each finding as figures with captions, and its numbers as files."""

from pathlib import Path
from typing import Any

from diffmoe.analysis import (
    Panel,
    Section,
    Table,
    class_samples_figure,
    region_pictures_figure,
    rows_of,
    token_animation,
    token_experts_figure,
    write_json,
    write_table,
)
from diffmoe.experiments.analysis.chapters import Shown, chapters
from diffmoe.experiments.analysis.findings import Findings

__all__ = ["sections_of"]

_FIRST_MAPS = 2  # images whose experts the page shows; the folder holds all


def sections_of(found: Findings, folder: Path, command: str) -> list[Section]:
    """The sections for what was found; figures, tables and JSON are written into `folder`."""
    sections = []
    for chapter in chapters(found.words is not None):
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


def _panel(shown: Shown, finding: Any, folder: Path, command: str) -> Panel | None:
    """A figure with its caption; None where it would show nothing."""
    drawn = shown.draw(finding, folder / "figures" / shown.name, command=command)
    return Panel(shown.title, drawn[0], shown.caption) if drawn else None


def _more(finding: str, found: Findings, folder: Path, command: str) -> list[Panel | None]:
    """Figures that need more than their finding."""
    place = folder / "figures"
    if finding == "classes" and found.classes is not None:
        nouns, name = found.classes.nouns, f"{found.classes.noun}_samples"
        drawn = class_samples_figure(
            found.hardest, found.easiest, place / name, nouns=nouns, command=command
        )
        caption = f"Samples of the {nouns} that got most and least, not chosen (Fig. 13, 14)."
        return [Panel("The costliest and the cheapest", drawn[0], caption)] if drawn else []
    if finding == "regions" and found.region_pictures is not None:
        drawn = region_pictures_figure(
            found.region_pictures, place / "region_pictures", command=command
        )
        caption = "The first pictures with each number of objects, not chosen otherwise."
        return [Panel("Examples", drawn[0], caption)] if drawn else []
    if finding != "maps" or found.maps is None:
        return []
    films = token_animation(found.maps, place / "token_animation", command=command)
    caption = "State and map of each image, from noise to data."
    panels: list[Panel | None] = [Panel("Animation", films[-1], caption)] if films else []
    kind = "class " if found.words is None else ""
    for image, name in enumerate(found.maps.names):
        file = place / f"token_experts_{image}"
        drawn = token_experts_figure(found.maps, image, file, command=command)
        if drawn and image < _FIRST_MAPS:
            caption = (
                "Share of all steps in which each expert took each patch; black is all. The folder"
                " holds one for every image mapped."
            )
            panels.append(Panel(f"Which expert took it: {kind}{name}", drawn[0], caption))
    return panels


def _cost(found: Findings, folder: Path) -> Section:
    table = Table(["what", "how much", "of what"], found.cost.rows)
    data = _data(found.cost, folder)
    caption = "Operations are counted on the model's graph, seconds are measured."
    return Section("Cost", [Panel("What it costs", None, caption, table, data)])
