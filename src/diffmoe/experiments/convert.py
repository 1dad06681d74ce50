"""Checkpoints of the authors' released layout to run folders, and back."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from diffmoe.checkpoint import (
    RunFolder,
    contradictions,
    infer_config,
    new_folder,
    newest_checkpoint,
    read_part,
    read_released,
    to_ours,
    to_released,
    write,
    write_released,
    write_text,
)
from diffmoe.config import RunConfig, read_config, to_dict, to_yaml
from diffmoe.errors import ConfigError, StorageError
from diffmoe.presets import PRESETS, preset

__all__ = ["Converted", "export_run", "import_released"]

Kind = Literal["flow", "ddpm"]


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote and what it left out."""

    path: Path
    tensors: int
    dropped: tuple[str, ...]


def import_released(
    source: Path,
    target: Path,
    *,
    name: str | None = None,
    heads: int | None = None,
    objective: Kind | None = None,
) -> Converted:
    """Write a released checkpoint as the run folder `target`.

    `name` is the preset it belongs to; without it the preset whose sizes fit is taken. Raises
    ConfigError when `heads` or `objective` is needed, StorageError for a bad file or a target
    that exists.
    """
    _refuse_existing(target)
    released = read_released(source)
    base = preset(name) if name else _fitting(released.model, objective)
    config = infer_config(released.model, base=base, heads=heads, objective=objective)
    parts = {"model": to_ours(released.model, config), "ema": to_ours(released.ema, config)}
    with new_folder(target) as aside:
        write_text(aside / "config.yaml", to_yaml(config))
        write(aside / "checkpoints", 0, 0, parts, to_dict(config))
    return Converted(target, len(released.model) + len(released.ema), released.dropped)


def _refuse_existing(target: Path) -> None:
    if target.exists():
        raise StorageError("the target exists", where=str(target), remedy="choose another path")


def _fitting(tensors: dict[str, Tensor], objective: Kind | None) -> RunConfig | None:
    """The published model of these sizes, if there is one; its objective must be said."""
    candidates = [build() for build in PRESETS.values()]
    fitting = [base for base in candidates if not contradictions(tensors, base)]
    if fitting and objective is None:
        raise ConfigError(
            "the objective cannot be read from tensors", remedy="give --objective flow or ddpm"
        )
    return next((base for base in fitting if base.objective.kind == objective), None)


def export_run(source: Path, target: Path) -> Converted:
    """Write the newest checkpoint of a run as one file of the released layout."""
    _refuse_existing(target)
    folder = RunFolder(source)
    config = read_config(folder.config)
    found = newest_checkpoint(folder.checkpoints)
    if found is None:
        raise StorageError("the run has no checkpoint yet", where=str(source))
    parts = {name: to_released(read_part(found[0], name), config) for name in ("model", "ema")}
    write_released(target, **parts)
    has_moments = (found[0] / "optimizer.safetensors").exists()
    return Converted(target, sum(map(len, parts.values())), ("optimizer",) if has_moments else ())
