"""Checkpoints of the authors' released layout to run folders, and back."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from diffmoe.checkpoint import (
    ReleasedFile,
    RunFolder,
    contradictions,
    find_checkpoint,
    infer_config,
    new_folder,
    read_part,
    read_released,
    refuse_foreign,
    to_ours,
    write,
    write_released,
    write_text,
)
from diffmoe.config import RunConfig, to_dict, to_yaml
from diffmoe.errors import ConfigError, StorageError
from diffmoe.experiments.draw import config_of
from diffmoe.presets import PRESETS, preset
from diffmoe.sampling import refuse_unwritable

__all__ = ["Converted", "convert"]

Kind = Literal["flow", "ddpm"]


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote and what it left out."""

    path: Path
    tensors: int
    dropped: tuple[str, ...]


def convert(
    source: Path,
    target: Path,
    *,
    name: str | None = None,
    heads: int | None = None,
    objective: Kind | None = None,
) -> Converted:
    """Write a released checkpoint as the run folder `target`, or a run as a released checkpoint.

    `name` is the preset a file belongs to; without it the preset whose sizes fit is taken. Raises
    ConfigError when `heads` or `objective` is needed, or given with a run, which knows its own;
    StorageError for a bad file or run or a target that exists.
    """
    if target.exists():
        raise StorageError("the target exists", where=str(target), remedy="choose another path")
    refuse_unwritable(target.parent, target.name)
    if not source.is_dir():
        return _import(source, target, name, heads, objective)
    given = {"preset": name, "heads": heads, "objective": objective}
    needless = [option for option, value in given.items() if value is not None]
    if needless:
        raise ConfigError(
            f"{' and '.join(needless)} cannot be chosen for a run, which knows its own",
            where=str(source),
            remedy="leave out what belongs to reading a file",
        )
    return _export(source, target)


def _import(
    source: Path, target: Path, name: str | None, heads: int | None, objective: Kind | None
) -> Converted:
    base = preset(name) if name else None
    released = read_released(source)
    base = base or _fitting(released.model, objective)
    config = infer_config(released.model, base=base, heads=heads, objective=objective)
    parts = {"model": to_ours(released.model, config), "ema": to_ours(released.ema, config)}
    with new_folder(target) as aside:
        write_text(aside / "config.yaml", to_yaml(config))
        write(aside / "checkpoints", 0, 0, parts, to_dict(config))
    return Converted(target, len(released.model) + len(released.ema), released.dropped)


def _fitting(tensors: dict[str, Tensor], objective: Kind | None) -> RunConfig | None:
    """The published model of these sizes, if there is one; its objective must be said."""
    candidates = [build() for build in PRESETS.values()]
    fitting = [base for base in candidates if not contradictions(tensors, base)]
    if fitting and objective is None:
        raise ConfigError(
            "the objective cannot be read from tensors", remedy="give --objective flow or ddpm"
        )
    return next((base for base in fitting if base.objective.kind == objective), None)


def _export(source: Path, target: Path) -> Converted:
    """Write the newest checkpoint of a run as one file of the released layout."""
    config = config_of(source)
    found = find_checkpoint(RunFolder(source).checkpoints)
    if found is None:
        raise StorageError("the run has no checkpoint yet", where=str(source))
    path, manifest = found
    refuse_foreign(manifest, config, path)
    file = ReleasedFile.of(read_part(path, "model"), read_part(path, "ema"), config)
    write_released(target, file.model, file.ema)
    others = (part for part in manifest.tensors if part not in ("model", "ema"))
    return Converted(target, len(file.model) + len(file.ema), (*others, *file.dropped))
