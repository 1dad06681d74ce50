"""The words of each verb as records: a field is a flag, its default the flag's."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from diffmoe.arguments.times import duration
from diffmoe.arguments.units import BYTES, OPERATIONS, SPEEDS, amount
from diffmoe.config import Checked, Level, RunConfig, SamplingConfig
from diffmoe.errors import ConfigError

__all__ = [
    "FLAT",
    "AnalyzeCommand",
    "BenchCommand",
    "ConvertCommand",
    "DemoCommand",
    "EvaluateCommand",
    "EvaluateRunCommand",
    "PlanCommand",
    "ReportCommand",
    "SelftestCommand",
    "SweepCommand",
    "TrainCommand",
]

FLAT = tyro.conf.arg(name="")  # of a record whose fields are flags without its name before them


@dataclass(frozen=True, kw_only=True)
class TrainCommand(Checked):
    """Train a preset into a run folder, or go on with the run that is there."""

    group: ClassVar[str] = "train"
    config: Annotated[RunConfig, FLAT]
    run: Path  # the run folder
    max_time: str | None = None  # then save, stop: 90m, 3.5h, HH:MM:SS, D-HH:MM:SS; None = no limit
    accept_new_data: bool = False  # go on though the data are not those the run began with
    dry_run: bool = False  # print the resolved config, parameters and memory, and stop
    quiet: bool = False  # no progress bar

    def ranges(self) -> Iterator[ConfigError]:
        """The time is one."""
        try:
            self.max_seconds  # noqa: B018 - only whether it can be read
        except ConfigError as error:
            yield error

    @property
    def max_seconds(self) -> float | None:
        """What `max_time` says, None for no limit; ConfigError where it is no time."""
        return None if self.max_time is None else duration(self.max_time)


@dataclass(frozen=True, kw_only=True)
class PlanCommand(Checked):
    """Say what training needs on so many GPUs: memory, bytes sent, time, and what to start.

    Nothing is built or started. What is assumed of the machine is named beside what follows from
    it; without --peak it is an H100 SXM in the precision of the config.
    """

    group: ClassVar[str] = "plan"
    config: Annotated[RunConfig, FLAT]
    gpus: int = 8  # of equal kind, one process each
    memory: str = "80GB"  # of one GPU; GB are 10^9 bytes, GiB 2^30
    per_node: int = 8  # GPUs of one machine
    peak: str | None = None  # of matrix products of one GPU, say 989TFLOPS; None = an H100 SXM's
    measure: bool = False  # measure the peak on the device at hand instead
    efficiency: float = 0.35  # share of the peak that a step reaches
    bandwidth: str = "300GB/s"  # of one GPU to the others of its machine
    network: str = "40GB/s"  # of one GPU to other machines
    reserve: float = 0.05  # share of the memory left to drivers, kernels and gaps
    json: Path | None = None  # file to write all of it to

    def ranges(self) -> Iterator[ConfigError]:
        """The machine is one."""
        for flag, number in (("--gpus", self.gpus), ("--per-node", self.per_node)):
            if not 1 <= number <= 2**16:
                yield ConfigError(f"{flag} {number} is not in 1..{2**16}", remedy="8 is usual")
        if not 0 < self.efficiency <= 1:
            yield ConfigError(f"--efficiency {self.efficiency} is not in (0, 1]", remedy="say 0.35")
        if not 0 <= self.reserve < 1:
            yield ConfigError(f"--reserve {self.reserve} is not in [0, 1)", remedy="say 0.05")
        for name in _UNITS:
            try:
                self.amount(name)
            except ConfigError as error:
                yield error

    def relations(self) -> Iterator[ConfigError]:
        """The peak is given or measured, and nodes are full."""
        if self.measure and self.peak is not None:
            yield ConfigError("--measure and --peak both say the peak", remedy="give one of them")
        if self.gpus > self.per_node and self.gpus % self.per_node:
            lower = self.gpus // self.per_node * self.per_node
            yield ConfigError(
                f"--gpus {self.gpus} fill no machines of {self.per_node} (--per-node)",
                remedy=f"use {lower} or {lower + self.per_node}",
            )

    def amount(self, name: str) -> float | None:
        """What a field with a unit says: bytes, bytes a second, operations a second."""
        word = getattr(self, name)
        return None if word is None else amount(f"--{name}", word, _UNITS[name])


_UNITS = {"memory": BYTES, "peak": OPERATIONS, "bandwidth": SPEEDS, "network": SPEEDS}


@dataclass(frozen=True, kw_only=True)
class ReportCommand:
    """Sample a run, score the samples and write report.html into its folder."""

    settings: Annotated[SamplingConfig, FLAT]
    count: int = 1000  # images, all classes or prompts in turn
    seed: int = 0  # the first of their seeds
    device: str = "auto"  # auto, cpu, cuda, ...
    strict: bool = False  # the same bits in any batch: on CPUs, by one thread and fixed kernels
    quiet: bool = False  # no progress bar


@dataclass(frozen=True, kw_only=True)
class AnalyzeCommand:
    """Sample a run and write where its compute went into its folder: figures, tables, one page.

    Of a run from captions prompts have their turn in the place of classes.
    """

    settings: Annotated[SamplingConfig, FLAT]
    count: int | None = None  # images, all classes in turn; None = 1000, or 4 of each class
    seed: int = 0  # the first of their seeds
    classes: tuple[str, ...] = ()  # whose first image is mapped, or prompts by number; none = some
    maps: int = 6  # images mapped, where no classes are named
    frames: int = 12  # noise levels that maps show
    out: Path | None = None  # folder to write; None = analysis, below the run
    device: str = "auto"  # auto, cpu, cuda, ...
    strict: bool = False  # the same bits in any batch: on CPUs, by one thread and fixed kernels
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
    strict: bool = False  # the same bits in any batch: on CPUs, by one thread and fixed kernels
    quiet: bool = False  # no progress bar


NetworkName = Literal["inception", "dinov2", "small", "clip", "judge"]


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand:
    """Compare images with a reference: Frechet and kernel distances, precision, recall and more."""

    reference: Path | None = None  # .npz of ADM, statistics, or images; needed to compare
    network: NetworkName | None = None  # None = inception; judge for scenes and their prompts
    network_weights: str | None = None  # its file, folder or hub name; None = the usual places
    count: int | None = None  # images; None = all
    crop: bool = False  # crop and scale the reference's images to the samples' size, as ADM does
    statistics: Path | None = None  # instead: make a reference of the images, this .npz
    side: int | None = None  # with statistics: crop and scale the images to so many pixels
    out: Path | None = None  # file to write; None = beside the images
    device: str = "auto"  # auto, cpu, cuda, ...
    quiet: bool = False  # no progress bar


@dataclass(frozen=True, kw_only=True)
class EvaluateRunCommand:
    """Draw images from a run and compare them with a reference, or scenes with their prompts."""

    settings: Annotated[SamplingConfig, FLAT]
    reference: Path | None = None  # .npz of ADM, statistics, or images; None = the run's own data
    network: NetworkName | None = None  # None = judge of scenes, small of small images, inception
    network_weights: str | None = None  # its file, folder or hub name; None = the usual places
    count: int | None = None  # images; None = 50,000, a small set's own, for judge 600 a split
    seed: int = 0  # the first of their seeds
    crop: bool = False  # crop and scale the reference's images to the samples' size, as ADM does
    out: Path | None = None  # file to write; None = below the run
    device: str = "auto"  # auto, cpu, cuda, ...
    strict: bool = False  # the same bits in any batch: on CPUs, by one thread and fixed kernels
    quiet: bool = False  # no progress bar


@dataclass(frozen=True, kw_only=True)
class DemoCommand:
    """Train a small DiffMoE, sample it and write a report, in minutes.

    It learns real digits, or with --text to draw what captions say of coloured shapes.
    """

    text: bool = False  # from captions, on drawn scenes
    run: Path | None = None  # the run folder; None = runs/demo, of captions runs/demo-t2i
    steps: int | None = None  # optimizer steps; None = the preset's, or those already done
    count: int | None = None  # images to score; None = 1000, of captions 240
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


@dataclass(frozen=True, kw_only=True)
class SelftestCommand:
    """Put the promises of reliability to a quick trial on this machine and file system.

    It kills, cuts, fills and interrupts tiny runs in a folder of its own, which goes afterwards,
    and prints what was tried, how often it held and what was seen. Exit code 0 if all promises
    held, 5 if one about storage was broken, 1 if only others were.
    """

    folder: Path = Path()  # on the file system to be tried: where runs will lie
    only: tuple[str, ...] = ()  # drills, by the names that `--only ?` lists; none = all
    seed: int = 0  # of what is random in the faults
    out: Path | None = None  # JSON file to keep the figures in; None = none
    quiet: bool = False  # no progress bar
