"""Long promises leave a record, and are not tried again while the code is the same."""

import hashlib
import json
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "docs" / "results" / "long"


def code_state(root: Path = ROOT / "src") -> str:
    """A digest of every source file and its place."""
    total = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        total.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return total.hexdigest()[:16]


def hold(
    name: str,
    promise: str,
    count: int,
    measure: Callable[[], dict[str, Any]],
    folder: Path = RECORDS,
) -> None:
    """Record what `measure` returns; skip where this code state has a record already.

    A `measure` that raises leaves no record, so the next run tries again.
    """
    path, state = folder / f"{name}.json", code_state()
    if path.exists() and json.loads(path.read_text())["code"] == state:
        pytest.skip(f"recorded for this code in docs/results/long/{path.name}")
    outcome = measure()
    record = {
        "promise": promise,
        "count": count,
        "outcome": outcome,
        "code": state,
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("torch", "numpy", "safetensors")},
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")
