"""What was written beside images when they were drawn."""

import json
from pathlib import Path
from typing import Any

__all__ = ["record_of"]

_OF_IMAGES = ("images", "shards", "seeds", "labels", "files")  # a line for each image: too long


def record_of(path: Path) -> dict[str, Any] | None:
    """How the images at `path` were made, without what is said of each; None if nobody wrote it."""
    place = path / "samples.json" if path.is_dir() else path.with_suffix(".json")
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or "weights_sha256" not in content:
        return None
    return {name: value for name, value in content.items() if name not in _OF_IMAGES}
