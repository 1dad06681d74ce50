"""The rows of a benchmark, one after the other, into a table and a JSON file."""

import json
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from diffmoe.checkpoint import write_text
from diffmoe.config import nearest
from diffmoe.device import keep_freed_memory, machine_of, resolve_device
from diffmoe.errors import ConfigError
from diffmoe.experiments.speed.accelerator import ACCELERATOR_ROWS
from diffmoe.experiments.speed.answer import Bench, Row
from diffmoe.experiments.speed.measure import Times, clock_of, measure_ceilings
from diffmoe.experiments.speed.rows import ROWS
from diffmoe.experiments.speed.workload import Machine
from diffmoe.presets import preset

__all__ = ["Measured", "bench"]


@dataclass(frozen=True)
class Measured:
    """The answers, and all that they depend on."""

    rows: tuple[Row, ...]
    facts: dict[str, Any]

    def lines(self) -> list[str]:
        """The table as text."""
        return [_heading(self.facts), "", *(line for row in self.rows for line in _lines(row))]

    def write(self, path: Path) -> None:
        """Write everything as JSON."""
        rows = [{**asdict(row), "met": row.met} for row in self.rows]
        write_text(path, json.dumps({"facts": self.facts, "rows": rows}, indent=2) + "\n")


def bench(
    *,
    model: str = "diffmoe-s-e16-flow",
    dense: str = "dit-s-flow",
    images: tuple[int, int] = (16, 4),
    rows: Sequence[str] = (),
    rounds: int = 7,
    device: str = "auto",
    precision: str = "float32",
    threads: int | None = None,
    compile: bool = False,
    out: Path | None = None,
    progress: bool = False,
) -> Measured:
    """Measure `rows` (none = all) of a DiffMoE preset beside a dense one; into `out` row by row.

    `images` are those of the large and of the small batch. Raises ConfigError for a row there is
    not, or presets that do not go together.
    """
    place = resolve_device(device)
    asked = _asked(rows, place)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    keep_freed_memory()
    try:
        setup = Bench(
            model=preset(model),
            dense=preset(dense),
            images=images,
            experts=(4, 32, 64),
            machine=Machine(place, dtype, compile),
            ceilings={kind: measure_ceilings(place, kind) for kind in {dtype, torch.float32}},
            rounds=rounds,
        )
        answers: list[Row] = []
        facts = _facts(setup, model, dense)
        for name in tqdm(asked, desc="bench", unit="row", disable=not progress):
            answers += {**ROWS, **ACCELERATOR_ROWS}[name](setup)
            if out is not None:  # what is measured is kept, whatever comes
                Measured(tuple(answers), facts).write(out)
        return Measured(tuple(answers), facts)
    finally:
        torch.set_num_threads(before)


def _asked(rows: Sequence[str], device: torch.device) -> list[str]:
    """The rows to measure: those named, or else all that the device is made for."""
    known = [*ROWS, *ACCELERATOR_ROWS]
    groups = [name if name in known else name.rpartition("-")[0] for name in rows]
    for name, group in zip(rows, groups, strict=True):
        if group not in known:
            near = nearest(name, known)
            hint = f"did you mean {near}?" if near else f"use {', '.join(known)}"
            raise ConfigError(f"there is no row {name!r} to measure", remedy=hint)
    return list(dict.fromkeys(groups)) or (list(ROWS) if device.type == "cpu" else known)


def _facts(setup: Bench, model: str, dense: str) -> dict[str, Any]:
    place, ceilings = setup.machine.device, setup.ceilings[setup.machine.dtype]
    return {
        "model": model,
        "dense": dense,
        "images": list(setup.images),
        "rounds": setup.rounds,
        "device": machine_of(place)["device_name"],
        "threads": torch.get_num_threads(),
        "precision": str(setup.machine.dtype).removeprefix("torch."),
        "compile": setup.machine.compile,
        "clock": clock_of(place),
        "gflops": round(ceilings.operations / 1e9, 1),
        "gbytes": round(ceilings.bandwidth / 1e9, 2),
        "diffmoe": version("diffmoe"),
        "commit": _commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _commit() -> str | None:
    """The commit of the source, with a + if it was changed since; None outside of a checkout."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def _heading(facts: dict[str, Any]) -> str:
    ceilings = f"{facts['gflops']:g} GFLOP/s and {facts['gbytes']:g} GB/s at best"
    where = f"{facts['device']}, threads: {facts['threads']}, {facts['precision']}, {ceilings}"
    return f"{facts['model']} beside {facts['dense']}, {facts['clock']}, on {where}"


def _lines(row: Row) -> list[str]:
    verdict = {None: "", True: "met", False: "MISSED"}[row.met]
    least = "at least " if row.at_least else ""
    bar = "" if row.bar is None else f"  bar {least}{row.bar:.2f} {verdict}"
    lines = [f"{row.name:<13}{row.value:>7.3f} ± {row.spread:.3f}{bar}  {row.what}"]
    for name, seconds in row.seconds.items():
        over = row.over_floor[name]
        spread = Times(row.rounds[name]).spread
        times = f"{seconds * 1e3:>10.1f} ± {spread * 1e3:.1f} ms"
        lines.append(f"{'':<13}{times}  {over:.2f} x floor  {name}")
    if row.check is not None:
        verdict = "" if row.check.passed else f", MORE than {row.check.tolerance:g}"
        lines.append(f"{'':<13}{row.check.difference:>10.1e}  from the loops at most{verdict}")
    return [*lines, f"{'':<13}{row.note}"] if row.note else lines
