"""What was written beside images when they were drawn."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["record_of"]

# Said of files or of each image: it names nothing that a number depends on.
_OF_FILES = (
    "images",
    "shards",
    "files",
    "seeds",
    "bytes",
    "pixels_sha256",
    "labels_sha256",
    "request",
    "format",
)


def record_of(path: Path) -> dict[str, Any] | None:
    """How the images at `path` were made, their seeds in short; None if nobody wrote it."""
    place = path / "samples.json" if path.is_dir() else path.with_suffix(".json")
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or "weights_sha256" not in content:
        return None
    made = {name: value for name, value in content.items() if name not in _OF_FILES}
    if isinstance(made.get("prompts"), list):  # as many as there are images, or nearly
        made["prompts"] = _hashed(made["prompts"], "prompts")
    return made | {"seeds": _in_short(_seeds(content))}


def _seeds(content: dict[str, Any]) -> list[Any]:
    """The seed of each image, as far as they are told."""
    if isinstance(content.get("seeds"), list):
        return list(content["seeds"])
    images, shards = content.get("images"), content.get("shards")
    if isinstance(shards, list):
        lists = (shard.get("seeds") for shard in shards if isinstance(shard, dict))
        return [seed for seeds in lists if isinstance(seeds, list) for seed in seeds]
    entries = images if isinstance(images, list) else []
    return [entry.get("seed") for entry in entries if isinstance(entry, dict)]


def _in_short(seeds: Sequence[Any]) -> str:
    """Seeds that follow each other by their ends, others by a hash; empty where none are told."""
    if not seeds:
        return ""
    if all(isinstance(seed, int) for seed in seeds):
        first = seeds[0]
        if list(seeds) == list(range(first, first + len(seeds))):
            return f"{first}..{first + len(seeds) - 1}"
    return _hashed(seeds, "seeds")


def _hashed(values: Sequence[Any], what: str) -> str:
    digest = hashlib.sha256(json.dumps(list(values)).encode()).hexdigest()
    return f"{len(values)} {what} sha256:{digest[:16]}"
