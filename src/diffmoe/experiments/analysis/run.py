"""Where compute goes in a run: one traced sampling run, measured, drawn and written on one page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffmoe.analysis import write_report
from diffmoe.config import SamplingConfig
from diffmoe.errors import ConfigError
from diffmoe.experiments.analysis.draw import Drawn, classes_to_show, draw_traced
from diffmoe.experiments.analysis.findings import Findings, find
from diffmoe.experiments.analysis.numbers import numbers_of
from diffmoe.experiments.analysis.panels import sections_of
from diffmoe.experiments.draw import Drawing, config_of
from diffmoe.experiments.page import describe
from diffmoe.experiments.place import refuse_results, results_folder
from diffmoe.experiments.report import refuse_report, refuse_unread
from diffmoe.experiments.scoring import Reference
from diffmoe.experiments.turns import Turns
from diffmoe.sampling import balanced_labels

__all__ = ["Analysis", "analyze"]

_RECORD = "analysis.json"
_LEAST, _DRAWS = 1000, 4  # images where nothing says how many: at least, and of each class


@dataclass(frozen=True)
class Analysis:
    """Where the page is and what it says in short."""

    page: Path
    lines: list[str]
    findings: Findings


def analyze(
    path: Path | str,
    *,
    count: int | None = None,
    first_seed: int = 0,
    classes: Sequence[int] = (),
    maps: int = 6,
    frames: int = 12,
    settings: SamplingConfig | None = None,
    device: str = "auto",
    out: Path | str | None = None,
    command: str = "",
    progress: bool = True,
) -> Analysis:
    """Draw `count` balanced samples of a run and write where their compute went into a folder.

    The folder, `analysis` in the run unless `out` says otherwise, holds `report.html`, `figures`
    as PNG and SVG, `data` as CSV and JSON, and the trace as arrays with their schema; it appears
    by one rename. `classes` are those whose first image is mapped, else `maps` of them are. What
    does not apply to the model is left out. What can be refused is refused before anything is
    drawn; without `count` there are 1,000 images, or 4 of each class if that is more. A run that
    reads captions has prompts in the place of classes, see `Turns`.
    """
    config = config_of(path)
    settings = settings or config.sampling
    turns = Turns.of(path, config, _LEAST if count is None else count)
    count = max(_LEAST, _DRAWS * turns.count) if count is None else count
    refuse_report(count)
    _refuse_numbers(maps=maps, frames=frames)
    if turns.scenes:
        refuse_unread()
    shown = classes_to_show(config, settings, classes, maps, count, turns)
    target = Path(path) / "analysis" if out is None else Path(out)
    refuse_results(target, _RECORD)
    labels = balanced_labels(count, turns.count)
    seeds = range(first_seed, first_seed + count)
    drawing = Drawing.prepare(
        path, labels, seeds, settings, device, progress, prompts=turns.prompts
    )
    run = drawing.run
    reference = Reference.of(config, run.trained_on.get("data"), run.folder.class_names)
    drawn = draw_traced(drawing, turns, shown, frames, progress)
    found = find(drawing, drawn, turns, reference, progress)
    made = command or f"diffmoe.analyze({str(path)!r}, count={count}, first_seed={first_seed})"
    return _write(target, drawing, drawn, found, made)


def _refuse_numbers(**numbers: int) -> None:
    for name, value in numbers.items():
        if not 1 <= value <= 100:
            raise ConfigError(f"{name} {value} is not in [1, 100]", remedy="use 6, say")


def _write(target: Path, drawing: Drawing, drawn: Drawn, found: Findings, command: str) -> Analysis:
    numbers = numbers_of(drawing, drawn, found)
    facts: dict[str, Any] = {
        "command": command,
        "stamp": {**drawing.stamp, "seeds": [drawing.seeds[0], drawing.seeds[-1]]},
        "numbers": {name: value for name, value, _ in numbers},
    }
    with results_folder(target, _RECORD, facts) as aside:
        if drawing.run.model.moe_layers:
            drawn.trace.write(aside)
        sections = sections_of(found, aside, command)
        write_report(
            aside / "report.html",
            title=f"Where compute goes in {drawing.run.folder.path.resolve().name}",
            summary=f"{describe(drawing.run)}, {drawing.run.step} steps of training,"
            f" {len(drawing.labels)} samples.",
            numbers=numbers,
            panels=[],
            sections=sections,
            stamp=facts["stamp"],
            command=command,
        )
    lines = [f"{name}: {value} {meaning}" for name, value, meaning in numbers]
    return Analysis(target / "report.html", lines, found)
