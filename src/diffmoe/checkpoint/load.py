"""A trained model out of its run folder."""

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from diffmoe.checkpoint.choice import find_checkpoint
from diffmoe.checkpoint.folder import RunFolder
from diffmoe.checkpoint.manifest import Manifest
from diffmoe.checkpoint.store import read_part
from diffmoe.config import RunConfig, from_dict, identity_differences
from diffmoe.errors import StorageError
from diffmoe.model import DiT, empty_model

_LOG = logging.getLogger(__name__)

__all__ = ["LoadedRun", "load", "load_tensors", "refuse_foreign", "refuse_misfit"]


@dataclass(frozen=True)
class LoadedRun:
    """A trained model and where it came from."""

    folder: RunFolder
    config: RunConfig
    model: DiT
    step: int
    weights: str  # `ema` or `raw`
    fingerprint: str  # sha256 of the weights file
    trained_on: dict[str, str] = field(default_factory=dict)  # `codec` and `data`, where known
    state: dict[str, int | float] = field(default_factory=dict)  # what the training has met

    @property
    def trained_classes(self) -> int:
        """How many classes the training had, the first of the model's."""
        return self.folder.trained_classes(self.config.model.num_classes)


def load(
    path: Path | str,
    *,
    weights: Literal["ema", "raw"] = "ema",
    device: torch.device | str = "cpu",
    step: int | None = None,
) -> LoadedRun:
    """The newest checkpoint of a run, or that of `step`, ready to sample from.

    Raises NoRunError when the folder is no run, StorageError when it has no such checkpoint or
    that one is damaged: another one would be another model.
    """
    folder = RunFolder(Path(path))
    config = folder.read_config()
    part = {"ema": "ema", "raw": "model"}[weights]
    with ExitStack() as holding:
        found = find_checkpoint(folder.checkpoints, step, holding)
        if found is None:
            raise _no_checkpoint(folder)
        checkpoint, manifest = found
        refuse_foreign(manifest, config, checkpoint)
        model = _read_model(config, checkpoint, part).to(device)
    if step is None and manifest.step < (folder.saved_step or 0):
        _LOG.warning(
            "the checkpoint of step %d, which was saved last, is gone: taking step %d",
            *(folder.saved_step, manifest.step),
        )
    facts = (manifest.step, weights, manifest.fingerprint(part))
    return LoadedRun(folder, config, model, *facts, manifest.trained_on, manifest.state)


def _no_checkpoint(folder: RunFolder) -> StorageError:
    saved, where = folder.saved_step, str(folder.path)
    if saved is None:
        what, remedy = "the run has no checkpoint yet", f"diffmoe train {where}"
    else:
        what = f"the run saved a checkpoint of step {saved} and has none now"
        remedy = "restore its checkpoints"
    return StorageError(what, where=where, remedy=remedy)


def _read_model(config: RunConfig, checkpoint: Path, part: str) -> DiT:
    """The model of one part of a checkpoint, frozen."""
    model = empty_model(config.model)
    load_tensors(model, read_part(checkpoint, part), where=str(checkpoint))
    return model.requires_grad_(False).eval()


def refuse_foreign(manifest: Manifest, config: RunConfig, checkpoint: Path) -> None:
    """Raise StorageError if a checkpoint was written by a run that is not `config`.

    Equal shapes do not make an equal model: the number of heads, say, leaves none.
    """
    if not manifest.config:
        return
    try:
        theirs = from_dict(manifest.config, where=str(checkpoint))
    except RecursionError as error:
        raise StorageError(
            "the config in the checkpoint's manifest is no config", where=str(checkpoint)
        ) from error
    changed = identity_differences(theirs, config)
    if changed:
        name, (there, here) = next(iter(changed.items()))
        raise StorageError(
            f"the checkpoint belongs to another model: {name} is {there} there and {here} in"
            " config.yaml",
            where=str(checkpoint),
            remedy="restore config.yaml or the checkpoint",
        )


def load_tensors(model: torch.nn.Module, tensors: dict[str, Tensor], *, where: str) -> None:
    """Copy tensors into a model; raises StorageError naming what is missing, extra or misshapen."""
    _refuse_misfit(_shapes(model.state_dict()), _shapes(tensors), where)
    model.load_state_dict(tensors)


def refuse_misfit(
    manifest: Manifest, part: str, wanted: Mapping[str, tuple[int, ...]], *, where: str
) -> None:
    """Raise StorageError naming what a part of a checkpoint lacks of the `wanted` shapes."""
    found = {name: tuple(row[1]) for name, row in manifest.tensors.get(part, {}).items()}
    _refuse_misfit(wanted, found, where)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def _refuse_misfit(
    wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], where: str
) -> None:
    fault = _misfit(wanted, found)
    if fault:
        raise StorageError(fault, where=where, remedy="it belongs to another model")


def _misfit(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> str:
    """Why tensors do not fit a model, empty if they do."""
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing:
        return f"the checkpoint lacks {_tensors(missing)}, e.g. {missing[0]}"
    if extra:
        return f"the checkpoint has {_tensors(extra)} that the model has not, e.g. {extra[0]}"
    shapes = {n: (list(found[n]), list(wanted[n])) for n in sorted(wanted)}
    wrong = [name for name, (there, here) in shapes.items() if there != here]
    if not wrong:
        return ""
    there, here = shapes[wrong[0]]
    verb = "has" if len(wrong) == 1 else "have"
    return (
        f"{_tensors(wrong)} {verb} another shape than the model's, e.g. {wrong[0]} is {there} there"
        f" and {here} here"
    )


def _tensors(names: list[str]) -> str:
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''}"
