"""The words of each verb as records: a field is a flag, its default the flag's."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from diffmoe.config import Level, RunConfig, SamplingConfig

__all__ = [
    "FLAT",
    "AnalyzeCommand",
    "BenchCommand",
    "ConvertCommand",
    "DemoCommand",
    "ReportCommand",
    "SampleCommand",
    "SweepCommand",
    "TrainCommand",
]

FLAT = tyro.conf.arg(name="")  # of a record whose fields are flags without its name before them


@dataclass(frozen=True, kw_only=True)
class TrainCommand:
    """Train a preset into a run folder, or go on with the run that is there."""

    config: Annotated[RunConfig, FLAT]
    run: Path  # the run folder
    dry_run: bool = False  # print the resolved config, parameters and memory, and stop
    quiet: bool = False  # no progress bar


@dataclass(frozen=True, kw_only=True)
class SampleCommand:
    """Draw images from a run: one for each label, each from its own seed."""

    settings: Annotated[SamplingConfig, FLAT]
    labels: tuple[int, ...] = ()  # a class for each image; none = all in turn
    seeds: tuple[int, ...] = ()  # a seed for each image; none = 0, 1, 2, ...
    count: int | None = None  # images; None = as many as labels or seeds, 16 without either
    out: Path | None = None  # folder to write; None = below the run
    device: str = "auto"  # auto, cpu, cuda, ...
    capture: bool = False  # record the network as a CUDA graph and replay it, for small batches
    quiet: bool = False  # no progress bar


@dataclass(frozen=True, kw_only=True)
class ReportCommand:
    """Sample a run, score the samples and write report.html into its folder."""

    settings: Annotated[SamplingConfig, FLAT]
    count: int = 1000  # images, all classes in turn
    seed: int = 0  # the first of their seeds
    device: str = "auto"  # auto, cpu, cuda, ...
    quiet: bool = False  # no progress bar


@dataclass(frozen=True, kw_only=True)
class AnalyzeCommand:
    """Sample a run and write where its compute went into its folder: figures, tables, one page."""

    settings: Annotated[SamplingConfig, FLAT]
    count: int | None = None  # images, all classes in turn; None = 1000, or 4 of each class
    seed: int = 0  # the first of their seeds
    classes: tuple[int, ...] = ()  # whose first image is mapped; none = some, evenly spread
    maps: int = 6  # images mapped, where no classes are named
    frames: int = 12  # noise levels that maps show
    out: Path | None = None  # folder to write; None = analysis, below the run
    device: str = "auto"  # auto, cpu, cuda, ...
    quiet: bool = False  # no progress bar


@dataclass(frozen=True, kw_only=True)
class SweepCommand:
    """Draw the same images at every setting of a run's dial: quality against compute."""

    settings: Annotated[SamplingConfig, FLAT]
    capacities: tuple[float, ...] = ()  # to ask for; none = the usual, up to the number of experts
    gammas: tuple[float, ...] = (0.9, 0.7, 0.5, 0.3, 0.1, 0.01)  # thresholds for all experts
    level: Level | None = None  # what has a capacity asked for; None = as the settings say
    search: bool = True  # also find the best threshold with C_avg <= 1 (Eq. 16)
    count: int = 500  # images of each setting, all classes in turn
    seed: int = 0  # the first of their seeds
    out: Path | None = None  # folder to write; None = sweep, below the run
    device: str = "auto"  # auto, cpu, cuda, ...
    quiet: bool = False  # no progress bar


@dataclass(frozen=True, kw_only=True)
class DemoCommand:
    """Train a small DiffMoE on real digits, sample it and write a report, in minutes."""

    run: Path = Path("runs/demo")  # the run folder
    steps: int | None = None  # optimizer steps; None = the preset's, or those already done
    count: int = 1000  # images to score
    quiet: bool = False  # no progress bar


@dataclass(frozen=True, kw_only=True)
class BenchCommand:
    """Measure what a DiffMoE costs beside a dense model, on this machine."""

    rows: tuple[str, ...] = ()  # the rows to measure; none = all
    model: str = "diffmoe-s-e16-flow"  # preset of the DiffMoE
    dense: str = "dit-s-flow"  # preset of the dense model of equal activated parameters
    images: tuple[int, int] = (16, 4)  # of the large and of the small batch
    rounds: int = 7  # interleaved rounds
    precision: Literal["float32", "bfloat16"] = "float32"  # dtype of matrix products
    threads: int | None = None  # CPU threads; None = as many as torch takes
    compile: bool = False  # torch.compile the fast variants
    device: str = "auto"  # auto, cpu, cuda, ...
    out: Path = Path("runs/bench.json")  # where everything measured goes
    quiet: bool = False  # no progress bar


@dataclass(frozen=True, kw_only=True)
class ConvertCommand:
    """Turn a checkpoint of the released layout into a run folder, or a run into such a file."""

    preset: str | None = None  # the model the file holds; None = found by its sizes
    heads: int | None = None  # attention heads; None = the preset's
    objective: Literal["flow", "ddpm"] | None = None  # what it predicts; None = the preset's
