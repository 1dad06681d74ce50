"""Files of the authors' released layout, read without running what they may hold, and written."""

import argparse
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffmoe.checkpoint.files import write_file
from diffmoe.checkpoint.released import to_released, unsaid
from diffmoe.config import RunConfig
from diffmoe.errors import StorageError

__all__ = ["ReleasedFile", "read_released", "write_released"]

_PREFIX = "module."  # distributed training wraps the model


@dataclass(frozen=True)
class ReleasedFile:
    """The tensors of a released checkpoint, by their released names."""

    model: dict[str, Tensor]  # the last weights
    ema: dict[str, Tensor]  # the averaged weights
    dropped: tuple[str, ...]  # left out: opt and args of a file, what it cannot say of a run

    @classmethod
    def of(
        cls, model: Mapping[str, Tensor], ema: Mapping[str, Tensor], config: RunConfig
    ) -> "ReleasedFile":
        """The file of a run's tensors; what it drops are buffers that tell more than it can."""
        raw, averaged = to_released(model, config), to_released(ema, config)
        lost = {name.rpartition(".")[2] for part in (model, ema) for name in unsaid(part, config)}
        return cls(raw, averaged, tuple(sorted(lost)))


def read_released(path: Path) -> ReleasedFile:
    """The tensors of a checkpoint file; nothing that the file holds is run.

    Of pickled classes only `argparse.Namespace` is admitted, which released files hold as `args`.
    Tensors are mapped from the file where its format allows. Raises StorageError when the file is
    missing, truncated, holds anything but data, or is no checkpoint of this layout.
    """
    content = _load(Path(path))
    if not isinstance(content, dict) or not {"model", "ema"} <= content.keys():
        held = ", ".join(map(repr, list(content)[:3])) if isinstance(content, dict) else ""
        raise StorageError(
            "the file is no checkpoint of the released layout: it holds"
            f" {held or type(content).__name__}, not 'model' and 'ema'",
            where=str(path),
            remedy="use a file whose top level is a dict of model, ema, opt and args",
        )
    return ReleasedFile(
        model=_tensors(content["model"], "model", path),
        ema=_tensors(content["ema"], "ema", path),
        dropped=tuple(str(key) for key in content if key not in ("model", "ema")),
    )


def write_released(path: Path, model: Mapping[str, Tensor], ema: Mapping[str, Tensor]) -> None:
    """Write a checkpoint file in one rename; raises StorageError if there is one already.

    `opt` and `args` are there and empty: readers that sample take `ema` or `model` and find all
    four keys they know, the file loads with `weights_only=True`, and a reader that would resume
    training fails at once for want of an optimizer state instead of starting from a false one.
    """
    if path.exists():
        raise StorageError(
            "the checkpoint exists already",
            where=str(path),
            remedy="choose another name or remove the file",
        )
    content: dict[str, dict[str, Tensor]] = {
        "model": {name: _own(tensor) for name, tensor in model.items()},
        "ema": {name: _own(tensor) for name, tensor in ema.items()},
        "opt": {},
        "args": {},
    }
    write_file(path, lambda aside: _save(content, aside))


def _save(content: dict[str, dict[str, Tensor]], path: Path) -> None:
    try:
        torch.save(content, path)
    except RuntimeError as error:  # what torch makes of a full disk
        raise OSError(str(error).split("\n")[0]) from error


def _own(tensor: Tensor) -> Tensor:
    """The tensor with a storage of its own size: torch.save writes whole storages."""
    tensor = tensor.detach().contiguous()
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


def _load(path: Path) -> Any:
    if not path.is_file():
        raise StorageError("there is no such checkpoint file", where=str(path))
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mapped = zipfile.is_zipfile(path)  # what the older formats cannot be
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged file raises whatever its bytes happen to say
        raise _refusal(error, path) from error


def _refusal(error: Exception, path: Path) -> StorageError:
    code = re.search(r"GLOBAL (\S+)|recognized function (.+)|but got (<class .+>)", str(error))
    if code:
        name = next(group for group in code.groups() if group)
        return StorageError(
            f"the checkpoint is a pickle that asks for {name}; it was not run",
            where=str(path),
            remedy="use a file of tensors; argparse.Namespace is the one class admitted",
        )
    if isinstance(error, PermissionError):
        return StorageError("the checkpoint may not be read", where=str(path))
    pickled = type(error).__name__ == "UnpicklingError"
    what = "or a pickle of more than tensors; it was not run" if pickled else "or truncated"
    return StorageError(
        f"the checkpoint is no file of tensors, damaged {what}",
        where=str(path),
        remedy="fetch it again and compare its checksum",
    )


def _tensors(entry: Any, name: str, path: Path) -> dict[str, Tensor]:
    if not isinstance(entry, dict) or not entry:
        raise StorageError(f"{name!r} of the checkpoint is no dict of tensors", where=str(path))
    for key, value in entry.items():
        if not (isinstance(key, str) and isinstance(value, Tensor) and _is_plain(value)):
            raise StorageError(
                f"{name!r} of the checkpoint holds {key!r}, which is no plain tensor of floating"
                f" point numbers but {_describe(value)}",
                where=str(path),
            )
    wrapped = all(key.startswith(_PREFIX) for key in entry)
    return {key.removeprefix(_PREFIX) if wrapped else key: entry[key].detach() for key in entry}


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor holds every number it shows: dense, in memory, not one number expanded."""
    dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
    held = dense and tensor.untyped_storage().nbytes() >= tensor.nbytes
    return held and tensor.is_floating_point()


def _describe(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"{value.dtype} of shape {tuple(value.shape)}"
