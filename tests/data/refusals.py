"""Damage to a set as a whole, which is met when the set is opened."""

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.containers import COUNT, VICTIM, WHOLE, flipped, labels_of, rows, whole_pictures
from data.damage import become_folder, relink
from data.packing import tar_of
from data.posteriors import LABELS
from diffmoe.data import read_record, shard_file, write_labels, write_record, write_shard

Change = Callable[[Path], object]


class Refused(NamedTuple):
    """What is done to a whole set, and parts of the sentence and of the file that it names."""

    change: Change
    said: str
    file: str


def of(name: str, change: Change) -> Change:
    """A change of one file of a set."""
    return lambda folder: change(folder / name)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_bytes(b"this is text\n" * 99)


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps([1, 2, 3]))


def huge(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"(6,", b"(6000000000000,", 1))


def bit(place: int) -> Change:
    """Flips a bit of the byte at a place."""
    return lambda path: path.write_bytes(flipped(path.read_bytes(), place))


def directory_bit(path: Path) -> None:
    """Flip a bit of the directory at the end of a zip."""
    content = path.read_bytes()
    path.write_bytes(flipped(content, content.index(b"PK\1\2")))


def long_header(path: Path) -> None:
    path.write_bytes(b"\xff" * 7 + b"\x7f" + path.read_bytes()[8:])


def array(value: Any) -> Change:
    """Writes an array in the place of another."""
    return lambda path: np.save(path, np.asarray(value))


def shard(shape: tuple[int, ...], dtype: str = "f4") -> Change:
    """Writes a first shard of other posteriors."""
    moments = np.ones((4, 2, *shape), dtype)
    return lambda folder: write_shard(folder / FIRST, moments, LABELS[:4], np.arange(4))


def relabelled(values: Any) -> Change:
    """Gives a cache other labels, with a record that fits them."""

    def change(folder: Path) -> None:
        digest = write_labels(folder, np.asarray(values))
        write_record(folder, replace(read_record(folder), labels=digest))

    return change


def noted(content: bytes | None) -> Change:
    """Gives one sample of a shard another label, or none."""

    def change(folder: Path) -> None:
        note = [] if content is None else [(f"{VICTIM}.cls", content)]
        tar_of(folder / "shard-1.tar", [*note, (f"{VICTIM}.png", WHOLE), ("4.cls", b"2")])

    return change


def listed(label: object) -> Change:
    """Gives one sample of a record another label."""

    def change(folder: Path) -> None:
        content = json.loads((folder / RECORD).read_text())
        content["images"][VICTIM]["label"] = label
        (folder / RECORD).write_text(json.dumps(content))

    return change


def rewritten(label: Any, kind: str = "int64") -> Change:
    """Writes a data set anew in which one row has another label."""

    def change(folder: Path) -> None:
        import datasets

        cells = [*LABELLED[:VICTIM], label, *LABELLED[VICTIM + 1 :]]
        pictures = rows(whole_pictures()).remove_columns("label")
        made = pictures.add_column("label", cells, feature=datasets.Value(kind))
        is_parquet = (folder / TABLE).exists()
        shutil.rmtree(folder)
        folder.mkdir()
        if is_parquet:
            made.to_parquet(str(folder / TABLE))
        else:
            made.save_to_disk(str(folder))

    return change


NPY, LABEL_FILE, FIRST, FACTS = "latents.npy", "labels.npy", shard_file(0), "cache.json"
ARROW, INFO, TABLE = "data-00000-of-00001.arrow", "dataset_info.json", "train.parquet"
RECORD, SHARD = "samples.json", "shard-1.tar"
CUT, UNREAD, NO_ARRAY = r"is damaged or cut off \(", "data set cannot be read", r"cannot be read \("
LABELLED = labels_of(COUNT)


def with_label(label: Any) -> np.ndarray:
    """Labels of the latents, one of them another."""
    return np.array([*LABELLED[:VICTIM], label, *LABELLED[VICTIM + 1 :]])


FILES: dict[tuple[str, str], Refused] = {
    ("cut off", "samples.json"): Refused(of(RECORD, cut), "cannot be read", RECORD),
    ("cut off", "tar"): Refused(cut, CUT, "set.tar"),
    ("cut off", "zip"): Refused(cut, CUT, "set.zip"),
    ("cut off", "WebDataset"): Refused(of(SHARD, cut), CUT, SHARD),
    ("cut off", "saved"): Refused(of(ARROW, cut), UNREAD, "set"),
    ("cut off", "parquet"): Refused(of(TABLE, cut), UNREAD, "set"),
    ("cut off", "latents.npy"): Refused(of(NPY, cut), NO_ARRAY, NPY),
    ("cut off", "cache"): Refused(of(FIRST, cut), r"has \d+ bytes, not \d+", FIRST),
    ("emptied", "samples.json"): Refused(of(RECORD, empty), "cannot be read", RECORD),
    ("emptied", "tar"): Refused(empty, "is an empty file", "set.tar"),
    ("emptied", "zip"): Refused(empty, "is an empty file", "set.zip"),
    ("emptied", "WebDataset"): Refused(of(SHARD, empty), CUT, SHARD),
    ("emptied", "saved"): Refused(of(ARROW, empty), UNREAD, "set"),
    ("emptied", "parquet"): Refused(of(TABLE, empty), UNREAD, "set"),
    ("emptied", "latents.npy"): Refused(of(NPY, empty), NO_ARRAY, NPY),
    ("emptied", "cache"): Refused(of(FIRST, empty), "has 0 bytes, not", FIRST),
    ("text in its place", "samples.json"): Refused(of(RECORD, text), "cannot be read", RECORD),
    ("text in its place", "tar"): Refused(text, CUT, "set.tar"),
    ("text in its place", "zip"): Refused(text, "is a file and no archive", "set.zip"),
    ("text in its place", "WebDataset"): Refused(of(SHARD, text), CUT, SHARD),
    ("text in its place", "saved"): Refused(of(INFO, text), UNREAD, "set"),
    ("text in its place", "parquet"): Refused(of(TABLE, text), UNREAD, "set"),
    ("text in its place", "latents.npy"): Refused(of(NPY, text), NO_ARRAY, NPY),
    ("text in its place", "cache"): Refused(of(FACTS, text), NO_ARRAY, FACTS),
    ("flipped bit in an index", "samples.json"): Refused(of(RECORD, bit(0)), "cannot be", RECORD),
    ("flipped bit in an index", "tar"): Refused(bit(30), CUT, "set.tar"),
    ("flipped bit in an index", "zip"): Refused(directory_bit, CUT, "set.zip"),
    ("flipped bit in an index", "WebDataset"): Refused(of(SHARD, bit(30)), CUT, SHARD),
    ("flipped bit in an index", "saved"): Refused(of(INFO, bit(0)), UNREAD, "set"),
    ("flipped bit in an index", "parquet"): Refused(of(TABLE, bit(-5)), UNREAD, "set"),
    ("flipped bit in an index", "latents.npy"): Refused(of(NPY, bit(12)), NO_ARRAY, NPY),
    ("flipped bit in an index", "cache"): Refused(of(FACTS, bit(60)), "is damaged", FACTS),
    ("absent", "latents.npy"): Refused(of(LABEL_FILE, Path.unlink), NO_ARRAY, LABEL_FILE),
    ("absent", "cache"): Refused(of(FIRST, Path.unlink), "is missing", FIRST),
    ("dead link", "latents.npy"): Refused(of(NPY, relink), NO_ARRAY, NPY),
    ("dead link", "cache"): Refused(of(FIRST, relink), "is missing", FIRST),
    ("a folder in its place", "latents.npy"): Refused(of(NPY, become_folder), NO_ARRAY, NPY),
    ("a folder in its place", "cache"): Refused(of(FIRST, become_folder), "is missing", FIRST),
    ("pickled", "latents.npy"): Refused(of(NPY, pickled), NO_ARRAY, NPY),
    ("pickled", "cache"): Refused(of(LABEL_FILE, pickled), "is damaged", LABEL_FILE),
    ("endless", "latents.npy"): Refused(of(NPY, huge), NO_ARRAY, NPY),
    ("endless", "cache"): Refused(of(FIRST, long_header), "its header is damaged", FIRST),
    ("wrong shape", "latents.npy"): Refused(of(NPY, array(np.ones((6, 8, 8)))), "are neither", NPY),
    ("wrong shape", "cache"): Refused(shard((2, 5, 2, 8)), "its header is damaged", FIRST),
    ("wrong type", "latents.npy"): Refused(
        of(NPY, array(np.ones((6, 2, 1, 8, 8), int))), "latents are int64", NPY
    ),
    ("wrong type", "cache"): Refused(shard((2, 5, 4, 4), "f2"), r"has \d+ bytes, not \d+", FIRST),
}

KINDS_OF_LABELS = {
    "too few labels": (None, "no label"),
    "the number of the null class": (3, "num_classes 3 is less than the 4 classes"),
    "label too large": (10**7, "10000000.* is no class"),
    "negative label": (-1, "-1.* is no class"),
    "label that is no whole number": (1.5, r"1\.5.* is no|no column of labels"),
    "NaN for a label": (float("nan"), "(nan|NaN).* is no|no column of labels"),
}


def labels_refused() -> dict[tuple[str, str], Refused]:
    """Every kind of wrong label in every container that stores labels."""
    found = {}
    for kind, (label, said) in KINDS_OF_LABELS.items():
        note = None if label is None else str(label).encode()
        column = "float64" if isinstance(label, float) else "int64"
        found |= {
            (kind, "samples.json"): Refused(listed(label), said, RECORD),
            (kind, "WebDataset"): Refused(noted(note), said, SHARD),
            (kind, "saved"): Refused(rewritten(label, column), said, "set"),
            (kind, "parquet"): Refused(rewritten(label, column), said, "set"),
        }
    return found


ARRAYS_OF_LABELS = {
    "too few labels": (LABELLED[:4], "do not fit 6 latents"),
    "too many labels": ([*LABELLED, 0], "do not fit 6 latents"),
    "the number of the null class": (with_label(3), "label 3 of sample 3 .*null class"),
    "label too large": (with_label(10**7), "label 10000000 of sample 3"),
    "negative label": (with_label(-1), "label -1 of sample 3"),
    "label that is no whole number": (with_label(1.5), "labels are float64"),
    "NaN for a label": (with_label(np.nan), "labels are float64"),
}
OF_A_CACHE = {
    "too few labels": (LABELS[:5], r"shape \(5,\) do not fit the 7 images"),
    "too many labels": ([*LABELS, 0], r"shape \(8,\) do not fit the 7 images"),
    "the number of the null class": (
        [0, 0, 0, 3, 0, 0, 0],
        r"label 3 of sample 3 is not in 0\.\.2",
    ),
    "label too large": ([0, 0, 0, 10**7, 0, 0, 0], "label 10000000 of sample 3"),
    "negative label": ([0, 0, 0, -1, 0, 0, 0], "label -1 of sample 3"),
}

REFUSED = (
    FILES
    | labels_refused()
    | {
        (kind, "latents.npy"): Refused(of(LABEL_FILE, array(values)), said, LABEL_FILE)
        for kind, (values, said) in ARRAYS_OF_LABELS.items()
    }
    | {
        (kind, "cache"): Refused(relabelled(values), said, LABEL_FILE)
        for kind, (values, said) in OF_A_CACHE.items()
    }
)
