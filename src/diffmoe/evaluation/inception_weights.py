"""Where the Inception network's weights are found, and how they are read: never downloaded."""

import hashlib
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffmoe.errors import ConfigError, StorageError
from diffmoe.evaluation.inception import Inception

__all__ = ["INCEPTION_FILES", "INCEPTION_VARIABLE", "find_inception", "load_inception"]

INCEPTION_VARIABLE = "DIFFMOE_INCEPTION"
INCEPTION_FILES = (
    "weights-inception-2015-12-05-6726825d.pth",  # release v0.2.0 of toshas/torch-fidelity
    "pt_inception-2015-12-05-6726825d.pth",  # release fid_weights of mseitzer/pytorch-fid
)
_COUNTER = (
    "num_batches_tracked"  # of batch normalization: some files hold it, evaluation needs none
)


def load_inception(
    path: str | Path | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Inception:
    """The Inception network with the weights of a file, its fingerprint set.

    In float32 the last digits of features may depend on the batch; in float64, which is slower by
    far, that is lost in rounding. Raises ConfigError if there is no file, StorageError if it is
    not that network's.
    """
    file = find_inception(path)
    state = _read(file)
    with torch.device("meta"):  # initial values would draw from the global generator
        network = Inception()
    _check_fit(state, network.state_dict(), file)
    network.load_state_dict(state, assign=True)
    network.fingerprint = _hash(file)
    return network.requires_grad_(False).eval().to(device, dtype)


def find_inception(path: str | Path | None = None) -> Path:
    """The weight file: a path, else that of the environment variable, else in torch's cache."""
    named = path or os.environ.get(INCEPTION_VARIABLE)
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    places = [Path(named).expanduser()] if named else [cache / name for name in INCEPTION_FILES]
    for place in places:
        if place.is_file():
            return place
    raise ConfigError(
        f"the Inception weights {INCEPTION_FILES[0]} (or {INCEPTION_FILES[1]}) are not there",
        where=f"looked for {' and '.join(str(place.absolute()) for place in places)}",
        remedy="get the one from release v0.2.0 of github.com/toshas/torch-fidelity or the other"
        " from release fid_weights of github.com/mseitzer/pytorch-fid (Apache-2.0, converted from"
        " Google's graph inception-2015-12-05) and give its path (--network-weights) or set"
        f" {INCEPTION_VARIABLE}",
    )


def _read(file: Path) -> dict[str, Tensor]:
    """The tensors of the file by name, without counters of batches."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of formats older than the reader
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises whatever its bytes happen to say
        raise _refusal("are damaged, or a pickle of more than tensors", file) from error
    if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()):
        raise _refusal("are no dict of tensors", file)
    return {name: t for name, t in content.items() if not str(name).endswith(_COUNTER)}


def _check_fit(found: dict[str, Tensor], wanted: dict[str, Tensor], file: Path) -> None:
    if lacks := sorted(wanted.keys() - found.keys()):
        raise _refusal(f"lack {len(lacks)} tensors, {lacks[0]} for one", file)
    if unknown := sorted(found.keys() - wanted.keys(), key=str):
        raise _refusal(f"hold {len(unknown)} tensors too many, {unknown[0]} for one", file)
    for name, tensor in wanted.items():
        if found[name].shape != tensor.shape:
            shapes = f"{tuple(found[name].shape)} instead of {tuple(tensor.shape)}"
            raise _refusal(f"hold {name} of shape {shapes}", file)
        if not found[name].is_floating_point():
            raise _refusal(f"hold {name} of {found[name].dtype}", file)


def _refusal(what: str, file: Path) -> StorageError:
    return StorageError(
        f"the Inception weights {what}",
        where=str(file),
        remedy=f"fetch {INCEPTION_FILES[0]} again, the network of 2015-12-05 with 1,008 outputs",
    )


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
