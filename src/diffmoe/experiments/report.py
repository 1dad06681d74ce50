"""Sample a run, score the samples, see where compute went, and write it on one page."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffmoe.analysis import (
    CapacityTrace,
    capacity_figures,
    loss_figure,
    prompt_samples_figure,
    samples_figure,
)
from diffmoe.checkpoint import LoadedRun
from diffmoe.config import SamplingConfig
from diffmoe.data import draw_scene, make_scene
from diffmoe.errors import ConfigError
from diffmoe.evaluation import Scores, object_pixels
from diffmoe.experiments.draw import Drawing, config_of
from diffmoe.experiments.evaluation import Evaluated, evaluate
from diffmoe.experiments.page import write_page
from diffmoe.experiments.scoring import Reference, score_samples
from diffmoe.experiments.turns import Turns
from diffmoe.sampling import balanced_labels, refuse_unwritable

__all__ = ["RunReport", "refuse_report", "refuse_unread", "report"]

_LEAST_JUDGED, _MOST_JUDGED = 24, 240  # pictures of each split of scenes


@dataclass(frozen=True)
class RunReport:
    """Where the page is and what it says."""

    page: Path
    figures: dict[str, Path]
    scores: Scores | None  # None where the samples cannot be scored
    unscored: str  # why, empty where there are scores
    capacity: float  # C_avg of the sampling run, over all branches that were evaluated
    conditional_capacity: float  # of the conditional branch alone, as in the figures
    judged: Evaluated | None = None  # of a run of scenes: what a judge makes of its pictures

    @property
    def findings(self) -> list[str]:
        """The numbers in sentences, or why there are none."""
        capacity = f"average capacity {self.capacity:.3f}"
        if f"{self.conditional_capacity:.3f}" != f"{self.capacity:.3f}":
            capacity += f" (conditional branch {self.conditional_capacity:.3f})"
        if self.judged is not None:
            return [*self.judged.summary, capacity]
        if self.scores is None:
            return [f"the samples are not scored: {self.unscored}", capacity]
        scores, known = self.scores, self.scores.held_out_accuracy
        share = "an unknown share" if known is None else f"{known:.1%}"
        caution = f" ({scores.caution})" if scores.caution else ""
        return [
            f"{scores.agreement:.1%} of {scores.samples} samples are read as the class asked for"
            f" (the judge reads {share} of held-out real images right)",
            f"nearest training image: {scores.nearest_median:.3f} rms (real to real"
            f" {scores.nearest_median_real:.3f}); {scores.copies:.1%} nearer than 99 % of real",
            f"Frechet distance {scores.frechet_distance:.3f}{caution}, {capacity}",
        ]


def report(
    path: Path | str,
    *,
    count: int = 1000,
    first_seed: int = 0,
    settings: SamplingConfig | None = None,
    device: str = "auto",
    command: str = "",
    progress: bool = True,
) -> RunReport:
    """Draw `count` balanced samples of a run and write `report.html`, `report.json` and figures.

    What can be refused is refused before the first sample is drawn. Without training images to
    score the samples against, the report says so. Of a run that reads captions prompts are drawn,
    see `Turns`; where they are of scenes, pictures of validation and of held-out prompts are judged
    besides, 240 of each at most.
    """
    refuse_report(count)
    config = config_of(path)
    settings = settings or config.sampling
    turns = Turns.of(path, config, count)
    if turns.scenes:
        refuse_unread()
    labels = balanced_labels(count, turns.count)
    seeds = range(first_seed, first_seed + count)
    drawing = Drawing.prepare(
        path, labels, seeds, settings, device, progress, prompts=turns.prompts
    )
    refuse_unwritable(drawing.run.folder.path, "report.html")
    run = drawing.run
    reference = Reference.of(config, run.trained_on.get("data"), run.folder.class_names)
    trace = CapacityTrace.empty(config, settings.steps, classes=len(turns.prompts) or None)
    images, classes = drawing.images(callback=trace, progress=progress), torch.tensor(labels)
    scores, unscored = score_samples(reference, images, classes)
    judged = None
    if turns.scenes:
        judged = evaluate(
            path,
            network="judge",
            count=max(_LEAST_JUDGED, min(_MOST_JUDGED, count)),
            settings=settings,
            first_seed=first_seed,
            device=device,
            progress=progress,
        )
    names = [*turns.prompts] or reference.names(config.model.num_classes)
    figures = _figures(drawing.run, trace, turns, names, images, classes)
    if judged is not None:
        figures["verdicts"] = judged.path.with_name(f"{judged.path.stem}-grid.png")
    asked = f"diffmoe.report({str(path)!r}, count={count}, first_seed={first_seed})"
    facts = {**drawing.stamp, "seeds": [first_seed, first_seed + count - 1]}
    made = command or asked
    page = write_page(
        drawing.run, trace, scores, unscored, turns, names, judged, figures, facts, made
    )
    return RunReport(page, figures, scores, unscored, trace.average, trace.conditional, judged)


def refuse_report(count: int) -> None:
    """Raise ConfigError if `count` samples make no report, or a package it needs is missing."""
    balanced_labels(count, 1)
    if count < 2:
        raise ConfigError(
            f"count {count} is too few for a report",
            remedy="use 2 or more: the Frechet distance compares how images spread",
        )
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"a report needs the package {error.name}", remedy='pip install "diffmoe[plots]"'
        ) from error


def refuse_unread() -> None:
    """Raise ConfigError, before anything is drawn, if pictures of scenes could not be judged."""
    object_pixels(draw_scene(make_scene(0, "validation", 0)))


def _figures(
    run: LoadedRun,
    trace: CapacityTrace,
    turns: Turns,
    names: list[str],
    images: Tensor,
    labels: Tensor,
) -> dict[str, Path]:
    folder = run.folder.path / "figures"
    place = folder / "samples.png"
    if turns.prompts:
        first = min(len(images), turns.count)  # each prompt once
        figures = {"samples": prompt_samples_figure(images[:first], names[:first], place)}
    else:
        figures = {"samples": samples_figure(images, labels, names, place)}
    if run.folder.metrics.exists():
        figures["loss"] = loss_figure(run.folder.metrics, folder / "loss.png")
    if run.model.moe_layers:
        figures |= capacity_figures(trace, names, folder, turns.nouns)
    return figures
