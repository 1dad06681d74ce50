"""Sample a run, score the samples, see where compute went, and write it on one page."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffmoe.analysis import (
    CapacityTrace,
    Panel,
    capacity_figures,
    loss_figure,
    samples_figure,
    write_report,
)
from diffmoe.checkpoint import LoadedRun, RunFolder, load, write_text
from diffmoe.codec import build_codec
from diffmoe.config import PixelCodec, RunConfig, SamplingConfig, read_config
from diffmoe.data import Source, open_source
from diffmoe.device import resolve_device
from diffmoe.errors import DiffMoEError
from diffmoe.evaluation import Scores, score
from diffmoe.model import activated_parameters, count_parameters
from diffmoe.sampling import balanced_labels, decode, generate, stamp

__all__ = ["RunReport", "report"]

_MOST_SCORED = 20_000  # training images that the judge and the neighbour search can hold


@dataclass(frozen=True)
class RunReport:
    """Where the page is and what it says."""

    page: Path
    figures: dict[str, Path]
    scores: Scores | None  # None where the training images cannot be scored in pixels
    capacity: float  # C_avg of the sampling run


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
    """Draw `count` balanced samples of a run and write `report.html`, `report.json` and figures."""
    settings = settings or load_settings(path)
    run = load(path, weights=settings.weights, device=resolve_device(device))
    replace(run.config, sampling=settings)  # checks the settings against the model
    labels = balanced_labels(count, run.config.model.num_classes)
    trace = CapacityTrace.empty(run.config, settings.steps)
    seeds = range(first_seed, first_seed + count)
    latents = generate(
        run.model, run.config, labels, seeds, settings=settings, callback=trace, progress=progress
    )
    images = _images(run, latents)
    source = _source(run.config)
    scores = _scores(run.config, source, images, torch.tensor(labels))
    figures = _figures(run, trace, source, images, torch.tensor(labels))
    facts = {**stamp(run, settings), "seeds": [first_seed, first_seed + count - 1]}
    page = _page(run, trace, scores, figures, facts, command or f"diffmoe report {path}")
    return RunReport(page, figures, scores, trace.average)


def load_settings(path: Path | str) -> SamplingConfig:
    """The sampling settings a run's config carries."""
    return read_config(RunFolder(Path(path)).config).sampling


def _images(run: LoadedRun, latents: Tensor) -> Tensor:
    device = next(run.model.parameters()).device
    return torch.cat(list(decode(build_codec(run.config.codec, device), latents, device)))


def _source(config: RunConfig) -> Source | None:
    """The training data, or None where it is not at hand: a report needs only the run."""
    try:
        return open_source(config)
    except DiffMoEError:
        return None


def _scores(
    config: RunConfig, source: Source | None, images: Tensor, labels: Tensor
) -> Scores | None:
    scorable = isinstance(config.codec, PixelCodec) and source is not None
    if not scorable or source is None or len(source) > _MOST_SCORED:
        return None
    real = torch.stack([source.load(index, flip=False) for index in range(len(source))])
    return score(images.float() / 127.5 - 1, labels, real, source.labels)


def _names(run: LoadedRun, source: Source | None) -> list[str]:
    names = list(source.class_names) if source is not None else []
    return names + [str(label) for label in range(len(names), run.config.model.num_classes)]


def _figures(
    run: LoadedRun, trace: CapacityTrace, source: Source | None, images: Tensor, labels: Tensor
) -> dict[str, Path]:
    folder, names = run.folder.path / "figures", _names(run, source)
    figures = {"samples": samples_figure(images, labels, names, folder / "samples.png")}
    if run.folder.metrics.exists():
        figures["loss"] = loss_figure(run.folder.metrics, folder / "loss.png")
    if run.model.moe_layers:
        figures |= capacity_figures(trace, names, folder)
    return figures


_CAPTIONS = {
    "samples": ("Samples", "Samples of each class, not chosen: the first seeds."),
    "loss": ("Training loss", "What training minimised; mse is the denoising part alone."),
    "capacity_per_step": (
        "Compute along sampling",
        "Average capacity of the conditional branch at each step; 1 is the work of a dense model.",
    ),
    "capacity_per_class": (
        "Compute by class",
        "Average capacity over all steps of a class's samples, conditional branch.",
    ),
    "tokens_per_expert": (
        "Who does the work",
        "Share of all tokens that each expert took, over all steps and both guidance branches.",
    ),
}


def _page(
    run: LoadedRun,
    trace: CapacityTrace,
    scores: Scores | None,
    figures: dict[str, Path],
    facts: dict[str, Any],
    command: str,
) -> Path:
    numbers = {**(scores.as_dict() if scores else {}), "capacity": trace.average}
    content = {"scores": numbers, "stamp": facts, "command": command}
    write_text(run.folder.path / "report.json", json.dumps(content, indent=2, default=str))
    return write_report(
        run.folder.path / "report.html",
        title=f"Report of {run.folder.path.name}",
        summary=f"{_describe(run)}, {run.step} steps of training.",
        numbers=_rows(run, scores, trace),
        panels=[Panel(_CAPTIONS[n][0], file, _CAPTIONS[n][1]) for n, file in figures.items()],
        stamp=facts,
        command=command,
    )


def _describe(run: LoadedRun) -> str:
    model = run.config.model
    total = count_parameters(model).total / 1e6
    if not run.model.moe_layers:
        return f"A dense DiT, {total:.2f} M parameters"
    return (
        f"A {model.router.kind.replace('_', ' ')} DiT with {model.router.num_experts} experts in"
        f" {len(run.model.moe_layers)} of {model.depth} layers, {total:.2f} M parameters"
    )


def _rows(
    run: LoadedRun, scores: Scores | None, trace: CapacityTrace
) -> list[tuple[str, str, str]]:
    rows = []
    if scores is not None:
        rows = [
            (
                "agreement",
                f"{scores.agreement:.1%}",
                f"of {scores.samples} samples are read as the class asked for, by a classifier"
                f" that reads {scores.held_out_accuracy:.1%} of held-out real images right",
            ),
            (
                "Frechet distance",
                f"{scores.frechet_distance:.3f}",
                f"to the training images, on {scores.components} components of pixels",
            ),
            (
                "nearest training image",
                f"{scores.nearest_median:.3f}",
                f"rms, median; real images lie {scores.nearest_median_real:.3f} apart;"
                f" {scores.copies:.1%} of samples are nearer than 99 % of real pairs",
            ),
        ]
    activated = activated_parameters(run.config.model, trace.average)
    return [
        *rows,
        ("capacity", f"{trace.average:.3f}", "average over steps, layers and experts; 1 = dense"),
        (
            "activated parameters",
            f"{activated['eq40'] / 1e6:.3f} M",
            f"by Eq. 40; {activated['executed'] / 1e6:.3f} M with routers and predictors whole",
        ),
    ]
