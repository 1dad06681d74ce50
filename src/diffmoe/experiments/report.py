"""Sample a run, score the samples, see where compute went, and write it on one page."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffmoe.analysis import CapacityTrace, capacity_figures, loss_figure, samples_figure
from diffmoe.checkpoint import LoadedRun
from diffmoe.config import SamplingConfig
from diffmoe.errors import ConfigError
from diffmoe.evaluation import Scores
from diffmoe.experiments.draw import Drawing, config_of
from diffmoe.experiments.page import write_page
from diffmoe.experiments.requests import trained_classes
from diffmoe.experiments.scoring import Reference, score_samples
from diffmoe.sampling import balanced_labels, refuse_unwritable

__all__ = ["RunReport", "refuse_report", "report"]


@dataclass(frozen=True)
class RunReport:
    """Where the page is and what it says."""

    page: Path
    figures: dict[str, Path]
    scores: Scores | None  # None where the samples cannot be scored
    unscored: str  # why, empty where there are scores
    capacity: float  # C_avg of the sampling run, over all branches that were evaluated
    conditional_capacity: float  # of the conditional branch alone, as in the figures

    @property
    def findings(self) -> list[str]:
        """The numbers in sentences, or why there are none."""
        capacity = f"average capacity {self.capacity:.3f}"
        if f"{self.conditional_capacity:.3f}" != f"{self.capacity:.3f}":
            capacity += f" (conditional branch {self.conditional_capacity:.3f})"
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
    score the samples against, the report says so.
    """
    refuse_report(count)
    config = config_of(path)
    settings = settings or config.sampling
    labels = balanced_labels(count, trained_classes(path, config.model.num_classes))
    seeds = range(first_seed, first_seed + count)
    drawing = Drawing.prepare(path, labels, seeds, settings, device, progress)
    refuse_unwritable(drawing.run.folder.path, "report.html")
    run = drawing.run
    reference = Reference.of(config, run.trained_on.get("data"), run.folder.class_names)
    trace = CapacityTrace.empty(config, settings.steps)
    images, classes = drawing.images(callback=trace, progress=progress), torch.tensor(labels)
    scores, unscored = score_samples(reference, images, classes)
    names = reference.names(config.model.num_classes)
    figures = _figures(drawing.run, trace, names, images, classes)
    asked = f"diffmoe.report({str(path)!r}, count={count}, first_seed={first_seed})"
    facts = {**drawing.stamp, "seeds": [first_seed, first_seed + count - 1]}
    made = command or asked
    page = write_page(drawing.run, trace, scores, unscored, names, figures, facts, made)
    return RunReport(page, figures, scores, unscored, trace.average, trace.conditional)


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


def _figures(
    run: LoadedRun, trace: CapacityTrace, names: list[str], images: Tensor, labels: Tensor
) -> dict[str, Path]:
    folder = run.folder.path / "figures"
    figures = {"samples": samples_figure(images, labels, names, folder / "samples.png")}
    if run.folder.metrics.exists():
        figures["loss"] = loss_figure(run.folder.metrics, folder / "loss.png")
    if run.model.moe_layers:
        figures |= capacity_figures(trace, names, folder)
    return figures
