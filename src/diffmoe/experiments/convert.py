"""Checkpoints of the authors' released layout to run folders, and back."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from diffmoe.checkpoint import (
    Content,
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
from diffmoe.errors import ConfigError, DiffMoEError, StorageError
from diffmoe.presets import PRESETS, preset
from diffmoe.sampling import refuse_unwritable

__all__ = ["Converted", "convert"]

_LOG = logging.getLogger(__name__)
Kind = Literal["flow", "ddpm"]


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote, what it left out and, of a file, what it was read as."""

    path: Path
    tensors: int
    dropped: tuple[str, ...]
    preset: str | None = None  # None = of sizes that no preset has
    heads: int | None = None
    objective: str | None = None


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
    ConfigError when there is no such source, when `heads` or `objective` is needed, or given with
    a run, which knows its own; StorageError for a bad file or run or a target that exists.
    """
    if not source.exists():
        raise ConfigError(
            "there is no such checkpoint file or run", where=str(source), remedy="check the path"
        )
    if target.exists():
        raise StorageError("the target exists", where=str(target), remedy="choose another path")
    refuse_unwritable(target.parent, target.name)
    if not source.is_dir():
        return _import(source, target, name, heads, objective)
    _refuse_choices(source, {"preset": name, "heads": heads, "objective": objective})
    if not target.suffix:  # without one torch's writer fails
        raise ConfigError(
            "the name of a checkpoint file needs a suffix",
            where=str(target),
            remedy=f"call it {target.name}.pt, say",
        )
    return _export(source, target)


def _refuse_choices(source: Path, given: dict[str, object]) -> None:
    """Raise ConfigError for what is read from a file but known of a run."""
    needless = [option for option, value in given.items() if value is not None]
    if needless:
        raise ConfigError(
            f"{' and '.join(needless)} cannot be chosen for a run, which knows its own",
            where=str(source),
            remedy="leave out what belongs to reading a file",
        )


def _import(
    source: Path, target: Path, name: str | None, heads: int | None, objective: Kind | None
) -> Converted:
    base = preset(name) if name else None
    released = read_released(source)
    with _about(source):
        if base is None:
            name, base = _fitting(released.model, objective)
        config = infer_config(released.model, base=base, heads=heads, objective=objective)
        parts = {"model": to_ours(released.model, config), "ema": to_ours(released.ema, config)}
    _warn_of_thresholds(parts["ema"], source)
    with new_folder(target) as aside:
        write_text(aside / "config.yaml", to_yaml(config))
        write(aside / "checkpoints", Content(0, 0, parts, to_dict(config)))
    count = len(released.model) + len(released.ema)
    read_as = (name, config.model.heads, config.objective.kind)
    return Converted(target, count, released.dropped, *read_as)


@contextmanager
def _about(source: Path) -> Iterator[None]:
    """Name the file in errors that speak of its tensors."""
    try:
        yield
    except DiffMoEError as error:
        if str(source) in str(error):
            raise
        what, _, remedy = str(error).partition(" — ")
        raise type(error)(what, where=str(source), remedy=remedy) from error


def _warn_of_thresholds(tensors: dict[str, Tensor], source: Path) -> None:
    """They are kept bit for bit, but sampling with policy `ema` will refuse them."""
    for name, value in tensors.items():
        if name.endswith("router.threshold") and not ((value >= 0) & (value < 1)).all():
            _LOG.warning("%s: %s is not in [0, 1): sample with --policy constant", source, name)


def _fitting(
    tensors: dict[str, Tensor], objective: Kind | None
) -> tuple[str, RunConfig] | tuple[None, None]:
    """The published model of these sizes, if there is one; its objective must be said."""
    candidates = {name: build() for name, build in PRESETS.items()}
    fitting = {n: base for n, base in candidates.items() if not contradictions(tensors, base)}
    if fitting and objective is None:
        raise ConfigError(
            "the objective cannot be read from tensors", remedy="give --objective flow or ddpm"
        )
    found = (pair for pair in fitting.items() if pair[1].objective.kind == objective)
    return next(found, (None, None))


def _export(source: Path, target: Path) -> Converted:
    """Write the newest checkpoint of a run as one file of the released layout."""
    folder = RunFolder(source)
    config = folder.read_config()
    found = find_checkpoint(folder.checkpoints)
    if found is None:
        raise StorageError("the run has no checkpoint yet", where=str(source))
    path, manifest = found
    refuse_foreign(manifest, config, path)
    file = ReleasedFile.of(read_part(path, "model"), read_part(path, "ema"), config)
    write_released(target, file.model, file.ema)
    # The sums of the next line of metrics are no part of a model.
    others = (part for part in manifest.tensors if part not in ("model", "ema", "window"))
    return Converted(target, len(file.model) + len(file.ema), (*others, *file.dropped))
