"""The public names, pinned: a change of them is a change of tests/golden/exports.txt.

To write the file anew: `.venv/bin/python tests/policy/test_exports.py`.
"""

from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "exports.txt"
DOORS = [f"diffmoe.{path.parent.name}" for path in (ROOT / "src/diffmoe").glob("*/__init__.py")]


def exports(module: ModuleType) -> list[str]:
    """The full names of a module's `__all__`; AttributeError if one of them does not exist."""
    for name in module.__all__:
        getattr(module, name)
    return [f"{module.__name__}.{name}" for name in module.__all__]


def all_exports() -> list[str]:
    """The public names of the package and of each room."""
    return sorted(name for door in ("diffmoe", *DOORS) for name in exports(import_module(door)))


def changes(names: list[str], golden: list[str]) -> list[str]:
    """Names that came (+) and names that went (-), twice exported ones included."""
    twice = [name for name in set(names) if names.count(name) > 1]
    came = sorted({*names} - {*golden}) + sorted(twice)
    return [f"+{name}" for name in came] + [f"-{name}" for name in sorted({*golden} - {*names})]


def test_exports_are_the_pinned_ones() -> None:
    assert not changes(all_exports(), GOLDEN.read_text().split())


def test_planted_changes_are_seen() -> None:
    assert changes(["a.new", "a.old", "a.old"], ["a.old", "a.gone"]) == [
        "+a.new",
        "+a.old",
        "-a.gone",
    ]


def test_a_planted_empty_promise_is_seen() -> None:
    with pytest.raises(AttributeError, match="missing"):
        exports(SimpleNamespace(__name__="room", __all__=["missing"]))


if __name__ == "__main__":
    GOLDEN.write_text("\n".join(all_exports()) + "\n")
