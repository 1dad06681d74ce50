"""The network of a diffusers `AutoencoderKL`, read from a folder or from the Hugging Face hub.

diffusers is imported when an autoencoder is loaded and not before: its import takes seconds.
"""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffmoe.errors import ConfigError, StorageError

__all__ = ["is_at_hand", "load_network"]

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")


def is_at_hand(name: str) -> bool:
    """Whether an autoencoder can be loaded without a network: from a folder or the hub's cache."""
    if Path(name).expanduser().is_dir():
        return True
    return bool(HUB_NAME.fullmatch(name)) and _cached(name) is not None


def load_network(name: str, flag: str, setting: str) -> Any:
    """The network in a folder or of a hub name, which was given as `flag`.

    `setting` begins what is said of how to give another one. Raises ConfigError if it is not found,
    StorageError if its files are damaged.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        _check_files(folder, setting)
        return _load_folder(folder)
    if HUB_NAME.fullmatch(name):
        return _load_hub(name, flag, setting)
    raise ConfigError(
        f"{flag} {name!r} does not exist",
        where=f"looked for the folder {folder.absolute()}",
        remedy=f"{setting} the folder of an AutoencoderKL or its hub name",
    )


def _check_files(folder: Path, setting: str) -> None:
    """Raise ConfigError for a missing file before the slow import."""
    weights = [folder / WEIGHTS, folder / f"{WEIGHTS}.index.json"]
    lacks = [] if (folder / CONFIG).is_file() else [CONFIG]
    lacks += [] if any(path.is_file() for path in weights) else [WEIGHTS]
    if lacks:
        raise ConfigError(
            f"the autoencoder lacks {' and '.join(lacks)}",
            where=str(folder.absolute()),
            remedy=f"{setting} a folder that AutoencoderKL.save_pretrained wrote",
        )


def _load_folder(folder: Path) -> Any:
    try:
        return _from_pretrained(str(folder))
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise StorageError(
            f"the autoencoder cannot be loaded ({_first_line(error)})",
            where=str(folder.absolute()),
            remedy="restore its config.json and weights",
        ) from error


def _cached(name: str) -> Path | None:
    """The folder of the hub's cache that holds an autoencoder, if one does."""
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(name, file) for file in (CONFIG, WEIGHTS)]
    return Path(str(found[0])).parent if all(isinstance(path, str) for path in found) else None


def _load_hub(name: str, flag: str, setting: str) -> Any:
    from huggingface_hub.constants import HF_HUB_CACHE

    try:
        if (cached := _cached(name)) is not None:  # as a folder: it needs no network
            return _from_pretrained(str(cached))
        _reach_hub()
        return _from_pretrained(name)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{flag} {name} cannot be loaded ({_first_line(error)})",
            where=f"looked for a folder of that name, in {HF_HUB_CACHE} and on huggingface.co",
            remedy=f"run `hf download {name}` where there is a network, or {setting} a folder"
            f" with config.json and {WEIGHTS}",
        ) from error


def _reach_hub() -> None:
    """Raise ConnectionError if the hub does not answer: its own client tries for half a minute."""
    from huggingface_hub import get_session
    from huggingface_hub.constants import ENDPOINT

    try:
        get_session().head(ENDPOINT, timeout=10)
    except Exception as error:  # of whichever client the library uses, or its offline mode
        raise ConnectionError(
            f"it is not in the cache, and {ENDPOINT} cannot be reached: {_first_line(error)}"
        ) from error


@contextmanager
def _silence(*names: str) -> Iterator[None]:
    """Hold back what libraries say of an attempt: what is left of it is told in one sentence."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _from_pretrained(name: str) -> Any:
    """The autoencoder; ValueError if it is another network or some weights are missing.

    Only safetensors are read; a pickle could run code.
    """
    with warnings.catch_warnings(), _silence("huggingface_hub", "diffusers"):
        warnings.simplefilter("ignore")  # the library speaks of its own deprecations
        from diffusers import AutoencoderKL

        kind = AutoencoderKL.load_config(name).get("_class_name", "AutoencoderKL")
        if kind != "AutoencoderKL":
            raise ValueError(f"it is a {kind}, not an AutoencoderKL")
        network, report = AutoencoderKL.from_pretrained(
            name, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    if missing := report["missing_keys"]:
        raise ValueError(f"its weights lack {len(missing)} tensors, {sorted(missing)[0]} for one")
    return network


def _first_line(error: Exception) -> str:
    return " ".join(str(error).strip().splitlines()[:1]).rstrip(" .:")
