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
    "SHARDS",
    "WEIGHTS",
    "Wanted",
    "damage",
    "digest_of",
    "fingerprint_of",
    "folder_of",
    "load_model",
    "load_tokenizer",
    "locate",
    "quiet",
]

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
SHARDS = "model.safetensors.index.json"  # lists the files of weights that lie in several
_HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")
_LOADING_ERRORS = (OSError, RuntimeError, ValueError, TypeError, KeyError, SafetensorError)


@dataclass(frozen=True)
class Wanted:
    """A kind of network, and what to say where there is none."""

    title: str  # DINOv2
    kinds: tuple[str, ...]  # what `model_type` of its config.json may be
    model: str  # its class in transformers
    example: str  # its name on the hub
    licence: str
    files: tuple[tuple[str, ...], ...]  # sets of files; one of them must be whole


def locate(place: str | Path, wanted: Wanted) -> Path:
    """The folder of a network: itself, else in the hub's cache; ConfigError if it is not there."""
    folder = folder_of(place)
    lacks = [_missing(folder, files, wanted) for files in wanted.files]
    if all(lacks):
        nearest = min(zip(wanted.files, lacks, strict=True), key=lambda one: _distance(*one))
        raise _absence(place, folder, nearest[1], wanted)
    return folder


def folder_of(place: str | Path) -> Path:
    """The folder that a path or a hub name stands for; it need not be there."""
    folder = Path(place).expanduser()
    named = not folder.is_dir() and _HUB_NAME.fullmatch(str(place))
    return _in_hub_cache(str(place), folder) if named else folder


def _missing(folder: Path, files: tuple[str, ...], wanted: Wanted) -> list[str]:
    lacks = [file for file in files if not (folder / file).is_file()]
    shards = _shards(folder, wanted) if SHARDS in files and SHARDS not in lacks else []
    return lacks + [file for file in shards if not (folder / file).is_file()]


def _distance(files: tuple[str, ...], lacks: list[str]) -> int:
    """How far a folder is from a set of files: a part of its weights counts for less than all."""
    return 2 * len({*files} & {*lacks}) + bool({*lacks} - {*files})


def _shards(folder: Path, wanted: Wanted) -> list[str]:
    """The files in which the weights lie, by their list."""
    try:
        files = set(json.loads((folder / SHARDS).read_text("utf-8"))["weight_map"].values())
        if not files or any(Path(file).name != file for file in files):
            raise ValueError("a file of another folder is listed")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise damage(folder, wanted, f"{SHARDS} cannot be read") from error
    return sorted(files)


def _in_hub_cache(name: str, otherwise: Path) -> Path:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, CONFIG)
    return Path(found).parent if isinstance(found, str) else otherwise


def _absence(place: str | Path, folder: Path, lacks: list[str], wanted: Wanted) -> ConfigError:
    from huggingface_hub.constants import HF_HUB_CACHE

    own = Path(place).expanduser().absolute()
    looked = [own] if folder.absolute() == own else [own, folder]
    pickles = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
    aside = f" ({pickles[0]} is a pickle, which could run code, and is not read)" if pickles else ""
    return ConfigError(
        f"the {wanted.title} network {place} lacks {' and '.join(lacks)}",
        where=f"looked in the folder {' and in '.join(map(str, looked))} and for such a name in"
        f" {HF_HUB_CACHE}{aside}",
        remedy=f"{_fetching(place, wanted)}, or name a folder that holds these files",
    )


def _fetching(place: str | Path, wanted: Wanted) -> str:
    """How to get a network where there is one: as it was asked for, or else an example."""
    asked = str(place)
    named = _HUB_NAME.fullmatch(asked) is not None and asked != wanted.example
    name = asked if named else wanted.example
    only = f", if it has safetensors, as {wanted.example} does" if named else ""
    return f"run `hf download {name}` ({wanted.licence}) where there is a network{only}"


def load_model(
    folder: Path,
    wanted: Wanted,
    device: torch.device | str,
    *,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """The frozen network of a folder; its attention is plain products, which repeat.

    Raises ConfigError if it is of another kind or transformers is missing, StorageError if its
    files are damaged.
    """
    _check_kind(folder, wanted)
    with quiet() as transformers:
        try:
            model, report = getattr(transformers, wanted.model).from_pretrained(
                str(folder),
                local_files_only=True,
                use_safetensors=True,
                dtype=dtype,
                attn_implementation="eager",
                output_loading_info=True,
            )
        except _LOADING_ERRORS as error:
            raise damage(folder, wanted, _first_line(error)) from error
    if missing := sorted(report["missing_keys"]):
        what = f"{len(missing)} tensors are missing, {missing[0]} for one"
        raise damage(folder, wanted, what)
    return model.requires_grad_(False).eval().to(device)


def load_tokenizer(folder: Path, wanted: Wanted) -> Any:
    """CLIP's tokenizer of a folder; StorageError if its files are damaged."""
    with quiet() as transformers:
        try:
            return transformers.CLIPTokenizerFast.from_pretrained(
                str(folder), local_files_only=True
            )
        except Exception as error:  # its reader, written in Rust, raises plain exceptions
            raise damage(folder, wanted, _first_line(error)) from error


def fingerprint_of(folder: Path, wanted: Wanted) -> str:
    """SHA-256 of the weights, hexadecimal: of their file, or of the digests of all their files."""
    if (folder / WEIGHTS).is_file():
        return digest_of(folder / WEIGHTS)
    digests = "".join(f"{name} {digest_of(folder / name)}\n" for name in _shards(folder, wanted))
    return hashlib.sha256(digests.encode()).hexdigest()


def digest_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_kind(folder: Path, wanted: Wanted) -> None:
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
        kind = config.get("model_type")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise damage(folder, wanted, f"{CONFIG} cannot be read") from error
    if kind not in wanted.kinds:
        raise ConfigError(
            f"the network is of the kind {kind}, not {' or '.join(wanted.kinds)}",
            where=str(folder.absolute()),
            remedy=f"name a folder of {wanted.title}, {wanted.example} for one",
        )


@contextmanager
def quiet() -> Iterator[Any]:
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


def damage(folder: Path, wanted: Wanted, what: str) -> StorageError:
    """The error of a network whose files are not as they should be."""
    return StorageError(
        f"the {wanted.title} network cannot be loaded ({what})",
        where=str(folder.absolute()),
        remedy=f"run `hf download {wanted.example} --force-download` or restore its files",
    )


def _first_line(error: Exception) -> str:
    return " ".join(str(error).strip().splitlines()[:1]).rstrip(" .:")
