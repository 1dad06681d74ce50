"""What the verbs say, as lines: the program's name, its usage, and what a verb has found."""

import platform
import shlex
import shutil
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffmoe.errors import ConfigError, StorageError
from diffmoe.presets import PRESETS

if TYPE_CHECKING:
    from diffmoe.experiments import Converted, Evaluated, Needs, RunReport, SelfTest

__all__ = [
    "broken_lines",
    "conversion_lines",
    "evaluation_lines",
    "needs_lines",
    "preset_lines",
    "program",
    "report_lines",
    "selftest_lines",
    "sentence",
    "usage",
    "versions",
]

_NAME = "diffmoe"


def program() -> str:
    """The program as a shell finds it here, so that a line which names it can be pasted."""
    started = Path(sys.argv[0])
    if started.parts[-2:] == (_NAME, "__main__.py"):
        return f"{shlex.quote(sys.orig_argv[0])} -m {_NAME}"
    if started.name != _NAME or not started.is_file():
        return _NAME
    found = shutil.which(_NAME)
    return _NAME if found and started.samefile(found) else shlex.quote(sys.argv[0])


def versions() -> str:
    """Which versions work here, read without importing what they are of."""
    return f"diffmoe {version(_NAME)}, torch {version('torch')}, Python {platform.python_version()}"


def sentence(error: Exception) -> str:
    """What went wrong on one line, an error of the system in the words of the others.

    Several mistakes stand below the first line, each indented on a line of its own.
    """
    if isinstance(error, ConfigError) and error.mistakes:
        return "\n".join([_line(error.head), *(f"  {_line(each)}" for each in error.mistakes)])
    if isinstance(error, OSError) and error.strerror:
        place = str(error.filename or "")
        error = StorageError(f"a file cannot be read or written ({error.strerror})", where=place)
    return _line(str(error))


def _line(text: str) -> str:
    return " ".join(text.splitlines())


def usage(verbs: Mapping[str, tuple[str, str]]) -> str:
    """What each verb takes and does."""
    lines = [
        f"  diffmoe {f'{verb} {words}'.strip():<28}{what}" for verb, (words, what) in verbs.items()
    ]
    return "\n".join(
        [
            "usage: diffmoe VERB ... [--field.name VALUE]",
            "",
            *lines,
            "",
            "diffmoe VERB ... --help lists the fields; --debug shows the traceback of an error;",
            "diffmoe --version names the versions that work here",
        ]
    )


def needs_lines(found: "Needs") -> list[str]:
    """Parameters and memory of a run."""
    return [
        f"parameters   {found.parameters:,}",
        f"activated    {found.activated['eq40']:,.0f} at C = 1 by Eq. 40",
        f"             {found.activated['executed']:,.0f} with routers and predictors whole",
        "memory on one device, GiB",
        *(
            f"  {part:<28}{size / 2**30:10.3f}"
            for part, size in {**found.memory, "all": found.total}.items()
        ),
        "less: --machine.micro-batch, --machine.activation-checkpointing, --training.precision"
        " bfloat16",
        f"disk: {found.checkpoint / 2**30:.3f} GiB a checkpoint, up to {found.checkpoints} at once"
        + (", and one more every --loop.keep-every steps" if found.milestones else ""),
    ]


def report_lines(found: "RunReport") -> list[str]:
    """The findings of a report, and where it lies."""
    figures = ", ".join(str(path) for path in found.figures.values())
    return [*found.findings, f"report: {found.page}", f"figures: {figures}"]


def evaluation_lines(found: "Evaluated") -> list[str]:
    """What was compared with what, the numbers, and what to say beside them."""
    protocol = found.content["protocol"]
    width = max(map(len, found.values))
    return [
        *_compared("samples", protocol["samples"]),
        *_compared("reference", protocol["reference"]),
        _network_line(protocol["network"]),
        "",
        *(
            f"{name:<{width}}  {value:>12.6g}{_apart(found.content['deviations'].get(name))}"
            for name, value in found.values.items()
        ),
        *(f"caution: {sentence}" for sentence in found.cautions),
        f"all of it: {found.path}",
    ]


def _compared(what: str, told: dict[str, Any] | None) -> list[str]:
    if told is None:
        return []
    size = " x ".join(map(str, told["side"])) if told.get("side") else "unknown size"
    count = "unknown" if told.get("count") is None else f"{told['count']:,}"
    return [f"{what:<10} {told['place']}: {count} images of {size}"]


def _network_line(told: dict[str, Any]) -> str:
    known = told.get("held_out_accuracy")
    judge = "" if known is None else f", reads {known:.1%} of held-out images right"
    return f"{'network':<10} {told['name']}, sha256 {told['sha256'][:16]}{judge}"


def _apart(deviation: float | None) -> str:
    return "" if deviation is None else f" ± {deviation:.3g}"


def conversion_lines(done: "Converted") -> list[str]:
    """What a conversion wrote and, of a file, what it was read as."""
    left = f", left out: {', '.join(done.dropped)}" if done.dropped else ""
    lines = [f"{done.tensors} tensors of model and ema, bit for bit: {done.path}{left}"]
    if done.heads is not None:
        known = done.preset or "a model that is no preset"
        lines.append(f"read as {known}: {done.heads} heads, objective {done.objective}")
    return lines


def preset_lines() -> list[str]:
    """The presets with their parameters."""
    from diffmoe.model import activated_parameters, count_parameters

    lines = [f"{'preset':<22}{'parameters':>14}{'activated':>12}  what it is"]
    for name, build in PRESETS.items():
        model = build().model
        total = count_parameters(model).total / 1e6
        activated = activated_parameters(model)["eq40"] / 1e6
        line = (build.__doc__ or "").splitlines()[0]
        lines.append(f"{name:<22}{total:>12.2f} M{activated:>10.2f} M  {line}")
    return lines


def selftest_lines(found: "SelfTest") -> list[str]:
    """The machine, what was tried on it, and how often each promise held."""
    about = {**found.machine, "seed": str(found.seed)}
    width = max(map(len, [*about, *(outcome.name for outcome in found.outcomes)]))
    rows = [
        f"{each.name:<{width}}  {each.tried:>5}  {each.held:>5}  "
        + (f"not tried: {each.not_tried}" if each.not_tried else each.seen)
        for each in found.outcomes
    ]
    tried = [each for each in found.outcomes if not each.not_tried]
    kept = len(tried) - len(found.broken)
    return [
        *(f"{name:<{width}}  {value}" for name, value in about.items()),
        "",
        f"{'fault':<{width}}  tried   held  what was seen",
        *rows,
        "",
        f"{kept} of {len(tried)} promises held"
        + (f", {len(found.outcomes) - len(tried)} not tried" if len(rows) > len(tried) else ""),
    ]


def broken_lines(found: "SelfTest") -> list[str]:
    """A line for each promise that was broken."""
    return [
        f"diffmoe: error: {each.promise}: it held in {each.held} of {each.tried} trials"
        f" — {each.name} — {each.seen}"
        for each in found.broken
    ]
