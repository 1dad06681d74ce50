"""Small networks that were trained before, kept so that nobody trains them twice."""

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from jaxtyping import Int, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffmoe.checkpoint import write_file
from diffmoe.errors import StorageError
from diffmoe.evaluation.networks.recipe import RECIPE, train_small_network
from diffmoe.evaluation.networks.small import SmallNetwork, made_of

__all__ = ["CACHE_VARIABLE", "cache_folder", "find_small_network", "small_network"]

CACHE_VARIABLE = "DIFFMOE_CACHE"
_LOG = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where networks are kept: DIFFMOE_CACHE, else diffmoe in XDG_CACHE_HOME, else in ~/.cache."""
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared).expanduser() if shared else Path.home() / ".cache") / "diffmoe"


def small_network(
    images: UInt8[Tensor, "N 3 H W"],
    labels: Int[Tensor, "N"],
    *,
    classes: int,
    fingerprint_of_data: str,
    seed: int = 0,
    progress: bool = False,
) -> SmallNetwork:
    """The network of a data set: the one kept if there is one, else trained now and kept.

    A damaged file is trained anew; a cache that cannot be written to is only warned of.
    """
    side = images.shape[-1]
    if kept := find_small_network(fingerprint_of_data, side=side, classes=classes, seed=seed):
        return kept
    network = train_small_network(images, labels, classes=classes, seed=seed, progress=progress)
    path = _path(fingerprint_of_data, side, classes, seed)
    try:
        write_file(path, lambda aside: _write(aside, network))
    except (StorageError, RuntimeError) as error:
        _LOG.warning("the small network is not kept and will be trained again: %s", error)
    return network


def find_small_network(
    fingerprint_of_data: str, *, side: int, classes: int, seed: int = 0
) -> SmallNetwork | None:
    """The network kept for a data set, None if there is none: it needs no image to be read."""
    path = _path(fingerprint_of_data, side, classes, seed)
    try:
        return _read(path, side, classes) if path.is_file() else None
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        _LOG.warning("%s is damaged and will be trained again: %s", path, reason)
        return None


def _path(data: str, side: int, classes: int, seed: int) -> Path:
    named = json.dumps([RECIPE, data, side, classes, seed])
    key = hashlib.sha256(named.encode()).hexdigest()[:32]
    return cache_folder() / "networks" / f"small-v{RECIPE}-{key}.safetensors"


def _write(path: Path, network: SmallNetwork) -> None:
    told = {"held_out_accuracy": network.held_out_accuracy, "fingerprint": network.fingerprint}
    state = {name: tensor.contiguous() for name, tensor in network.classifier.state_dict().items()}
    save_file(state, path, metadata={"small_network": json.dumps(told)})


def _read(path: Path, side: int, classes: int) -> SmallNetwork:
    """The network of a file; an error of some kind if anything about it is not as written."""
    with safe_open(path, "pt") as file:
        told: dict[str, Any] = json.loads(file.metadata()["small_network"])
        state = {name: file.get_tensor(name) for name in file.offset_keys()}
    network = made_of(state, side, classes, float(told["held_out_accuracy"]))
    if network.fingerprint != told["fingerprint"]:
        raise ValueError("its tensors are not those that were written")
    return network
