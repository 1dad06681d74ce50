"""Networks of `transformers` from files at hand: nothing is downloaded, unpickled or run from them.

transformers is imported when a network is loaded and not before: its import takes seconds.
"""

import hashlib
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from diffmoe.errors import ConfigError, StorageError

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "Wanted",
    "fingerprint_of",
    "load_model",
    "load_tokenizer",
    "locate",
]

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
_HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")
_LOADING_ERRORS = (OSError, RuntimeError, ValueError, TypeError, KeyError, SafetensorError)


@dataclass(frozen=True)
class Wanted:
    """A kind of network, and what to say where there is none."""

    title: str  # DINOv2
    kind: str  # `model_type` of its config.json
    model: str  # its class in transformers
    example: str  # its name on the hub
    licence: str
    files: tuple[tuple[str, ...], ...]  # sets of files; one of them must be whole


def locate(place: str | Path, wanted: Wanted) -> Path:
    """The folder of a network: itself, else in the hub's cache; ConfigError if it is not there."""
    folder = Path(place).expanduser()
    named = not folder.is_dir() and _HUB_NAME.fullmatch(str(place))
    folder = _in_hub_cache(str(place), folder) if named else folder
    lacks = [_missing(folder, files) for files in wanted.files]
    if all(lacks):
        raise _absence(place, folder, lacks[0], wanted)
    return folder


def _missing(folder: Path, files: tuple[str, ...]) -> list[str]:
    return [file for file in files if not (folder / file).is_file()]


def _in_hub_cache(name: str, otherwise: Path) -> Path:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, CONFIG)
    return Path(found).parent if isinstance(found, str) else otherwise


def _absence(place: str | Path, folder: Path, lacks: list[str], wanted: Wanted) -> ConfigError:
    from huggingface_hub.constants import HF_HUB_CACHE

    own = Path(place).expanduser().absolute()
    looked = [own] if folder.absolute() == own else [own, folder]
    return ConfigError(
        f"the {wanted.title} network {place} lacks {' and '.join(lacks)}",
        where=f"looked in the folder {' and in '.join(map(str, looked))} and for such a name in"
        f" {HF_HUB_CACHE}",
        remedy=f"run `hf download {wanted.example}` ({wanted.licence}) where there is a network,"
        " or name a folder that holds these files",
    )


def load_model(folder: Path, wanted: Wanted, device: torch.device | str) -> Any:
    """The frozen float32 network of a folder; its attention is plain products, which repeat.

    Raises ConfigError if it is of another kind or transformers is missing, StorageError if its
    files are damaged.
    """
    _check_kind(folder, wanted)
    with _quiet() as transformers:
        try:
            model, report = getattr(transformers, wanted.model).from_pretrained(
                str(folder),
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                attn_implementation="eager",
                output_loading_info=True,
            )
        except _LOADING_ERRORS as error:
            raise _damage(folder, wanted, _first_line(error)) from error
    if missing := sorted(report["missing_keys"]):
        what = f"{len(missing)} tensors are missing, {missing[0]} for one"
        raise _damage(folder, wanted, what)
    return model.requires_grad_(False).eval().to(device)


def load_tokenizer(folder: Path, wanted: Wanted) -> Any:
    """The tokenizer of a folder; StorageError if its files are damaged."""
    with _quiet() as transformers:
        try:
            return transformers.CLIPTokenizerFast.from_pretrained(
                str(folder), local_files_only=True
            )
        except Exception as error:  # its reader, written in Rust, raises plain exceptions
            raise _damage(folder, wanted, _first_line(error)) from error


def fingerprint_of(folder: Path) -> str:
    """SHA-256 of the weight file, hexadecimal."""
    with (folder / WEIGHTS).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_kind(folder: Path, wanted: Wanted) -> None:
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
        kind = config.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise _damage(folder, wanted, f"{CONFIG} cannot be read") from error
    if kind != wanted.kind:
        raise ConfigError(
            f"the network is of the kind {kind}, not {wanted.kind}",
            where=str(folder.absolute()),
            remedy=f"name a folder of {wanted.title}, {wanted.example} for one",
        )


@contextmanager
def _quiet() -> Iterator[Any]:
    """transformers, without what it says of an attempt and without a trace in the random state."""
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            "this network needs the package transformers, which is not installed",
            remedy="pip install 'diffmoe[networks]'",
        ) from error
    told = transformers.utils.logging
    level, bars = told.get_verbosity(), told.is_progress_bar_enabled()
    told.set_verbosity(told.CRITICAL)
    told.disable_progress_bar()
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")  # the library speaks of its own deprecations
            yield transformers
    finally:
        told.set_verbosity(level)
        if bars:
            told.enable_progress_bar()


def _damage(folder: Path, wanted: Wanted, what: str) -> StorageError:
    return StorageError(
        f"the {wanted.title} network cannot be loaded ({what})",
        where=str(folder.absolute()),
        remedy=f"run `hf download {wanted.example} --force-download` or restore its files",
    )


def _first_line(error: Exception) -> str:
    return " ".join(str(error).strip().splitlines()[:1]).rstrip(" .:")
