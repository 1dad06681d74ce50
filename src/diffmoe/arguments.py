"""The words of each verb as records; flags come from their fields, mistakes become a sentence."""

import contextlib
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from diffmoe.config import Level, RunConfig, SamplingConfig, field_names, nearest
from diffmoe.errors import ConfigError, DiffMoEError

__all__ = [
    "AnalyzeCommand",
    "BenchCommand",
    "ConvertCommand",
    "DemoCommand",
    "ReportCommand",
    "SampleCommand",
    "SweepCommand",
    "TrainCommand",
    "parse",
]

Record = TypeVar("Record")

_FLAT = tyro.conf.arg(name="")
_PLACE = re.compile(r"^Error parsing (\S+): (.*)")
_VALUE = re.compile(
    r"(?:with base 10: |string to float: |instantiated from |arguments:? )(\[.*?\]|.*)"
)
_KIND = r" (\{None\}\|)?\[?((INT|FLOAT|STR|PATH)(?: \3)*)"

# What a value is that people write otherwise.
_MEANINGS = {
    "--labels": ": a label is the number of a class, from 0 in the order of the sub-folders' names"
}

# What to do where a kind of record lacks a field that another kind has.
_INSTEAD = {
    "digits": "digits are built in: for images of your own start from a preset whose data are a"
    " folder, such as diffmoe-s-e16-flow",
}


@dataclass(frozen=True, kw_only=True)
class TrainCommand:
    """Train a preset into a run folder, or go on with the run that is there."""

    config: Annotated[RunConfig, _FLAT]
    run: Path  # the run folder
    dry_run: bool = False  # print the resolved config, parameters and memory, and stop
    quiet: bool = False  # no progress bar


@dataclass(frozen=True, kw_only=True)
class SampleCommand:
    """Draw images from a run: one for each label, each from its own seed."""

    settings: Annotated[SamplingConfig, _FLAT]
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

    settings: Annotated[SamplingConfig, _FLAT]
    count: int = 1000  # images, all classes in turn
    seed: int = 0  # the first of their seeds
    device: str = "auto"  # auto, cpu, cuda, ...
    quiet: bool = False  # no progress bar


@dataclass(frozen=True, kw_only=True)
class AnalyzeCommand:
    """Sample a run and write where its compute went into its folder: figures, tables, one page."""

    settings: Annotated[SamplingConfig, _FLAT]
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

    settings: Annotated[SamplingConfig, _FLAT]
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


def parse(record: type[Record], default: Record, words: Sequence[str], prog: str) -> Record:
    """The record that `words` make of `default`; `--help` prints the flags and exits.

    Raises ConfigError for a flag that is not there (naming the nearest), a value of the wrong
    type, and whatever the record's own checks raise.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            found, unknown = tyro.cli(
                record,
                default=_undecided(default, words),
                args=list(words),
                prog=prog,
                config=(tyro.conf.AvoidSubcommands,),
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise _mistake(stop, said.getvalue(), prog) from None
    if unknown:
        _refuse_another_kind(unknown, default, prog)
        raise _unknown(unknown, list(_flags(default)), prog)
    _refuse_nothing(found, words, prog)
    return found


def _undecided(default: Any, words: Sequence[str]) -> Any:
    """The default, rid of its place on the dial where words name another one."""
    if isinstance(default, TrainCommand):
        own = [word.removeprefix("--sampling.") for word in words]
        return replace(default, config=_rid(default.config, "sampling", own))
    return _rid(default, "settings", [word.removeprefix("--") for word in words])


def _rid(record: Any, name: str, words: Sequence[str]) -> Any:
    parts = [part for word in words for part in word.split("=")]
    image = ("selection", "image") in itertools.pairwise(parts)
    if not hasattr(record, name) or not (image or {"policy", "gamma", "capacity"} & {*parts}):
        return record
    return replace(record, **{name: getattr(record, name).undecided()})


def _refuse_nothing(found: Any, words: Sequence[str], prog: str) -> None:
    """Raise ConfigError for a flag of several values that was given none: not its default."""
    for entry in fields(found):
        flag = f"--{entry.name.replace('_', '-')}"
        if getattr(found, entry.name) == () and flag in words:
            raise ConfigError(
                f"{flag} was given no value",
                remedy=f"give one or more, or leave it out; see {prog} --help",
            )


def _mistake(stop: SystemExit, box: str, prog: str) -> DiffMoEError:
    """What a record's own check raised, or else what the parser wrote into its box."""
    for cause in _causes(stop):
        if isinstance(cause, DiffMoEError):
            return cause
    message, *helptext = _paragraphs(box)
    found = _PLACE.match(message)
    if found:
        message = _wrong_value(found[1], found[2], helptext)
    meaning = _MEANINGS.get(found[1], "") if found else ""
    return ConfigError(message.rstrip(". "), remedy=f"see {prog} --help{meaning}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    following: BaseException | None = error
    while following is not None:
        yield following
        following = following.__cause__ or following.__context__


def _paragraphs(box: str) -> list[str]:
    """The text between the rules of a box, drawn with Unicode or with ASCII lines."""
    lines = [line.strip("│|╭╮╰╯+ ") for line in box.splitlines()]
    parts = re.split(r"^[─-]{5,}.*$", "\n".join(lines[1:]), flags=re.MULTILINE)
    return [text for text in (" ".join(part.split()) for part in parts) if text] or [""]


def _wrong_value(flag: str, reason: str, helptext: list[str]) -> str:
    """`--flag takes KIND, not 'value'`, or the parser's own words where it gives no value."""
    value = _VALUE.search(reason.split(" Got errors")[0])
    kind = re.search(re.escape(flag) + _KIND, " ".join(helptext))
    if not (value and kind):
        return f"{flag}: {reason}"
    none = " or None" if kind[1] else ""
    return f"{flag} takes {kind[2]}{none}, not {value[1].strip('[]. ')}"


def _flags(record: Any, prefix: str = "--") -> Iterator[str]:
    """Every flag of a record."""
    for entry in fields(record):
        value, name = getattr(record, entry.name), entry.name.replace("_", "-")
        if is_dataclass(value):
            flat = _FLAT in getattr(entry.type, "__metadata__", ())
            yield from _flags(value, prefix if flat else f"{prefix}{name}.")
        else:
            yield prefix + name
        if isinstance(value, bool):
            yield f"{prefix}no-{name}"


def _refuse_another_kind(words: list[str], default: Any, prog: str) -> None:
    """Raise ConfigError for a flag of a config, but of records of another kind than this one's."""
    elsewhere = field_names(RunConfig) if isinstance(default, TrainCommand) else {}
    for flag in (word.split("=")[0] for word in words if word.startswith("-")):
        name = flag.lstrip("-").replace("-", "_").replace(".no_", ".")
        group, _, field = name.rpartition(".")
        if name in elsewhere and group:
            kind = attrgetter(group)(default.config).kind
            lack = "is part of the preset" if field == "kind" else f"has no {field}"
            raise ConfigError(
                f"unknown flag {flag}: {group} is of kind {kind}, which {lack}",
                remedy=_INSTEAD.get(kind, f"see {prog} --help"),
            )


def _unknown(words: list[str], known: list[str], prog: str) -> ConfigError:
    flags = [word.split("=")[0] for word in words if word.startswith("-")]
    if not flags:
        return ConfigError(f"unexpected word {words[0]!r}", remedy=f"see {prog} --help")
    near = [found for found in (_nearest(flag, known) for flag in flags) if found]
    remedy = f"did you mean {' and '.join(near)}?" if near else f"see {prog} --help"
    return ConfigError(f"unknown flag {', '.join(flags)}", remedy=remedy)


def _nearest(flag: str, known: list[str]) -> str | None:
    """The flag of that last name in another section, else the one most alike."""
    spelt = flag.replace("_", "-")
    name = _last(spelt)
    return next((other for other in known if _last(other) == name), nearest(spelt, known))


def _last(flag: str) -> str:
    return flag.lstrip("-").rsplit(".", 1)[-1]
