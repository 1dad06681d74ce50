"""What a checkpoint says of itself: JSON that ends with its own digest."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from diffmoe.errors import StorageError

__all__ = ["MANIFEST", "RESTORE", "SCHEMA", "Manifest", "manifest_text", "read_manifest"]

SCHEMA = 2
MANIFEST = "manifest.json"
RESTORE = "restore the file or use another checkpoint"
_MOST = 10**15  # steps, samples and sizes that count as such, far inside 64 bits
_LARGEST = 2 << 20  # bytes, five times that of the largest published model; read, JSON takes 60 MB


@dataclass(frozen=True)
class Manifest:
    """The step, what is in each file, and the digest of each.

    A part (`model`, `ema`, `optimizer`) may lie in several files, and a tensor in pieces, one of
    them to a file: `tensors` names for each the dtype, the whole shape, and each file with the
    place of the piece's first element on every axis.
    """

    schema: int
    step: int
    samples: int  # training images seen
    diffmoe: str  # versions that wrote it
    torch: str
    config: dict[str, Any]  # the resolved config of the run
    trained_on: dict[str, str]  # `codec` and `data`, where known
    state: dict[str, int | float]  # the counters of the run
    tensors: dict[str, dict[str, list[Any]]]  # part -> tensor -> dtype, shape, {file: offsets}
    files: dict[str, dict[str, str | int]] = field(default_factory=dict)  # name -> sha256, bytes

    def fingerprint(self, part: str) -> str:
        """Names the bytes of a part: the digest of its file, or one over those of its files."""
        names = sorted({file for row in self.tensors.get(part, {}).values() for file in row[2]})
        digests = [str(self.files[name]["sha256"]) for name in names]
        return (
            digests[0]
            if len(digests) == 1
            else hashlib.sha256("".join(digests).encode()).hexdigest()
        )


def manifest_text(manifest: Manifest) -> str:
    """The manifest as JSON that ends with its own digest: it too can be damaged."""
    content = asdict(manifest)
    own = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, "sha256": own}, indent=2) + "\n"


def read_manifest(path: Path) -> Manifest:
    """The manifest of a checkpoint, if it is as this version writes it down to the last byte."""
    try:
        text = _text(path / MANIFEST)
        content = json.loads(text)
        schema = content["schema"]
        if schema == SCHEMA:
            del content["sha256"]
            manifest = Manifest(**content)
            if manifest_text(manifest) == text and _is_plain(manifest):
                return manifest
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise StorageError(
            "the checkpoint has no readable manifest", where=str(path), remedy=RESTORE
        ) from error
    if schema != SCHEMA:
        raise StorageError(
            f"the checkpoint's manifest is not of schema {SCHEMA}",
            where=str(path),
            remedy="use the version that wrote it",
        )
    raise StorageError("the checkpoint's manifest is damaged", where=str(path), remedy=RESTORE)


def _text(path: Path) -> str:
    if path.stat().st_size > _LARGEST:
        raise ValueError("no manifest is so large")
    return path.read_text()


def _is_plain(manifest: Manifest) -> bool:
    """Whether a manifest speaks of files of its own folder, with a digest for each."""
    records = (manifest.files, manifest.trained_on, manifest.state)
    return (
        all(map(_is_count, (manifest.step, manifest.samples)))
        and all(isinstance(record, dict) for record in records)
        and all(map(_is_number, manifest.state.values()))
        and all(_is_file(name, facts) for name, facts in manifest.files.items())
        and all(
            _is_tensor(row, manifest.files)
            for tensors in manifest.tensors.values()
            for row in tensors.values()
        )
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST


def _is_number(value: Any) -> bool:
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _is_file(name: str, facts: dict[str, Any]) -> bool:
    own = Path(name).name == name and name not in ("", "..")
    return own and isinstance(facts["sha256"], str) and _is_count(facts["bytes"])


def _is_tensor(row: list[Any], files: dict[str, Any]) -> bool:
    dtype, shape, pieces = row
    return (
        isinstance(dtype, str)
        and all(map(_is_count, shape))
        and bool(pieces)
        and pieces.keys() <= files.keys()
        and all(
            len(place) == len(shape) and all(map(_is_count, place)) for place in pieces.values()
        )
    )
