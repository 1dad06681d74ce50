"""Files of Hugging Face data sets on disk to their rows, without a word of the library's own."""

import errno
import logging
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffmoe.errors import ConfigError, DataError, StorageError

__all__ = ["datasets_package", "is_saved", "load_rows", "parquet_files"]

_LOG = logging.getLogger(__name__)
_SAVED = ("dataset_dict.json", "dataset_info.json", "state.json")
_SPLIT = re.compile(r"(.+)-\d+-of-\d+(-.*)?\.parquet")  # as the hub calls the files of a split
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # of the copy, never of what is read


def is_saved(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk`, be it damaged since."""
    return any((folder / name).exists() for name in _SAVED)


def parquet_files(folder: Path) -> list[Path]:
    """The parquet files of a folder or of its sub-folder `data`; of splits, those of `train`.

    Raises DataError if there are several splits and none is called `train`.
    """
    files = sorted(folder.glob("*.parquet")) or sorted((folder / "data").glob("*.parquet"))
    splits = {path: _split_of(path) for path in files}
    if "train" in splits.values():
        return [path for path, split in splits.items() if split == "train"]
    named = {split for split in splits.values() if split}
    if len(named) > 1:
        raise _no_train(folder, sorted(named))
    return files


def _split_of(path: Path) -> str:
    """The split a file belongs to; empty if its name tells none."""
    match = _SPLIT.fullmatch(path.name)
    return match[1] if match else path.stem if path.stem == "train" else ""


def _no_train(folder: Path, splits: Sequence[str]) -> DataError:
    return DataError(
        f"the data set has no split `train`, only {', '.join(sorted(splits))}",
        where=str(folder),
        remedy="give the folder or file of one of them",
    )


def datasets_package() -> Any:
    """The library that reads data sets; raises ConfigError if it is not installed."""
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            "a data set of Hugging Face is read by the package datasets, which is not installed",
            remedy="pip install 'diffmoe[data]'",
        ) from error
    return datasets


def load_rows(place: Path, files: Sequence[Path]) -> Any:
    """The rows of a data set: of parquet files, if there are any, else of what was saved.

    The library reads parquet from a copy that it makes. Raises StorageError if that has no place,
    DataError if the set is damaged.
    """
    datasets = datasets_package()
    if files:
        _claim_copies(place, _copies(datasets))
    try:
        with _quiet(datasets):
            found = _load(datasets, place, files)
    except Exception as error:  # damaged tables raise nearly anything
        raise _told(error, place, _copies(datasets)) from error
    if not isinstance(found, dict):
        return found
    if "train" not in found:
        raise _no_train(place, list(found))
    return found["train"]


def _load(datasets: Any, place: Path, files: Sequence[Path]) -> Any:
    if files:
        return datasets.Dataset.from_parquet([str(path) for path in files])
    return datasets.load_from_disk(str(place))


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """No bars and no log of the library as long as the block runs: errors are told by us."""
    level, bars = datasets.logging.get_verbosity(), not datasets.are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an environment variable may insist on bars
        datasets.disable_progress_bars()
        datasets.logging.set_verbosity(logging.CRITICAL + 1)
        try:
            yield
        finally:
            datasets.logging.set_verbosity(level)
            if bars:
                datasets.enable_progress_bars()


def _copies(datasets: Any) -> Path:
    """Where the library keeps its copies."""
    return Path(datasets.config.HF_DATASETS_CACHE)


def _claim_copies(place: Path, copies: Path) -> None:
    """Tell where the rows are copied to; raises StorageError if nothing can be written there."""
    try:
        copies.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=copies).close()
    except OSError as error:
        raise _no_copy(error, copies) from error
    _LOG.info("%s is read from a copy of all its rows in %s, made the first time", place, copies)


def _no_copy(error: OSError, copies: Path) -> StorageError:
    return StorageError(
        f"the copy of the data set cannot be written ({error.strerror or error})",
        where=str(copies),
        remedy="set HF_DATASETS_CACHE to a folder with space for it",
    )


def _told(error: Exception, place: Path, copies: Path) -> DataError | StorageError:
    """The error in our words, by what caused it: the library wraps what it meets."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, OSError) and cause.errno in _FULL:
        return _no_copy(cause, copies)
    return DataError(
        f"the data set cannot be read ({_first_line(cause)})",
        where=str(place),
        remedy="copy or save it again",
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
