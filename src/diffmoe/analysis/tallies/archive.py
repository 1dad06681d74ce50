"""A trace as two files: arrays, and a text that says what each of them means."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from diffmoe.checkpoint import write_file, write_text
from diffmoe.errors import StorageError

__all__ = ["Described", "read_trace", "write_trace"]

_VERSION = 1
_ARRAYS, _SCHEMA = "trace.safetensors", "trace.json"
_REMEDY = "make the analysis again"


@dataclass(frozen=True)
class Described:
    """An array and what an outsider must know to use it."""

    values: np.ndarray
    axes: str  # a name for each axis, apart by spaces
    unit: str
    meaning: str

    @property
    def entry(self) -> dict[str, Any]:
        """The description as JSON."""
        return {
            "axes": self.axes.split(),
            "dtype": str(self.values.dtype),
            "shape": list(self.values.shape),
            "unit": self.unit,
            "meaning": self.meaning,
        }


def write_trace(folder: Path, arrays: dict[str, Described], facts: dict[str, Any]) -> None:
    """Write `trace.safetensors` and `trace.json`, its schema, which vouches for its bytes."""
    data = save({name: np.ascontiguousarray(one.values) for name, one in arrays.items()})
    schema = {
        "version": _VERSION,
        **facts,
        "sha256": hashlib.sha256(data).hexdigest(),
        "arrays": {name: one.entry for name, one in arrays.items()},
    }
    write_file(folder / _ARRAYS, lambda aside: aside.write_bytes(data))
    write_text(folder / _SCHEMA, json.dumps(schema, indent=2) + "\n")


def read_trace(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a trace by name, and its schema.

    Raises StorageError if a file is missing, damaged, or not the one the other was written with.
    """
    schema = _schema(folder / _SCHEMA)
    data = _bytes(folder / _ARRAYS)
    if hashlib.sha256(data).hexdigest() != schema["sha256"]:
        raise _fault(f"{_ARRAYS} is damaged, or was not written with {_SCHEMA}", folder)
    try:
        arrays = load(data)
    except SafetensorError as error:
        raise _fault(f"{_ARRAYS} is no safetensors file ({error})", folder) from error
    _refuse_mismatch(arrays, schema["arrays"], folder)
    return arrays, schema


def _fault(what: str, where: Path) -> StorageError:
    return StorageError(what, where=str(where), remedy=_REMEDY)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _fault(f"{path.name} cannot be read ({error.strerror})", path) from error


def _schema(path: Path) -> dict[str, Any]:
    data = _bytes(path)
    try:
        schema = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _fault(f"{path.name} is no JSON", path) from error
    if not isinstance(schema, dict) or not {"version", "sha256", "arrays"} <= schema.keys():
        raise _fault(f"{path.name} is no schema of a trace", path)
    if schema["version"] != _VERSION:
        raise _fault(f"{path.name} has version {schema['version']!r}, not {_VERSION}", path)
    if not isinstance(schema["arrays"], dict):
        raise _fault(f"{path.name} lists no arrays", path)
    return schema


def _refuse_mismatch(arrays: dict[str, np.ndarray], listed: dict[str, Any], folder: Path) -> None:
    for name in sorted(arrays.keys() ^ listed.keys()):
        where = "is not listed" if name in arrays else "is missing"
        raise _fault(f"the array {name} {where}", folder)
    for name, values in arrays.items():
        found = {"dtype": str(values.dtype), "shape": list(values.shape)}
        entry = listed[name]
        if not isinstance(entry, dict) or any(entry.get(key) != found[key] for key in found):
            raise _fault(f"the array {name} is not as {_SCHEMA} says", folder)
