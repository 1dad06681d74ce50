"""Which room of the package may import from which, and only through its door, its `__init__`."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "diffmoe"
TABLE = {
    "errors": "",
    "randomness": "",
    "captions": "",
    "config": "errors",
    "arguments": "config errors",
    "device": "errors",
    "distributed": "errors",
    "presets": "config errors",
    "codec": "captions config errors randomness",
    "data": "captions config errors randomness codec",
    "model": "captions config errors",
    "objective": "captions config errors model",
    "checkpoint": "config errors model",
    "training": "captions config device distributed errors randomness codec data model objective"
    " checkpoint",
    "sampling": "captions config errors randomness codec model objective checkpoint",
    "evaluation": "captions config errors randomness data codec model objective checkpoint"
    " sampling",
    "analysis": "captions config errors randomness data model objective checkpoint sampling"
    " evaluation",
    "experiments": "__init__ captions errors randomness config device distributed presets codec"
    " data model objective checkpoint training sampling evaluation analysis",
}
DOORS = {room: frozenset(may.split()) for room, may in TABLE.items()}
ROOMS = frozenset(DOORS) | {"_public", "cli", "console"}
EVERYWHERE = ROOMS | {"__init__"}
DOORS |= dict.fromkeys(("cli", "console", "__init__", "__main__", "_public"), EVERYWHERE)


def room_of(path: Path) -> str:
    """The sub-package or top-level module a file of the package belongs to."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path, source: str) -> Iterator[tuple[int, str, str | None]]:
    """Line, absolute module and name of each import, those inside functions included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                folder = path.parents[node.level - 1].parts[len(PACKAGE.parent.parts) :]
                module = ".".join([*folder, module]).rstrip(".")
            yield from ((node.lineno, module, alias.name) for alias in node.names)


def target(module: str, name: str | None) -> str | None:
    """The room an import leads to, None if it leads out of the package."""
    package, *inside = module.split(".")
    if package != "diffmoe":
        return None
    if inside:
        return inside[0]
    return name if name in ROOMS else "__init__"


def by_window(module: str, name: str | None) -> bool:
    """Whether an import reaches into a room instead of taking what its `__init__` offers."""
    _, *inside = module.split(".")
    if len(inside) != 1:
        return len(inside) > 1
    room = PACKAGE / inside[0]
    if name not in {path.stem for path in room.glob("*")}:
        return False
    door = room / "__init__.py"
    return name not in {offered for _, _, offered in imports(door, door.read_text())}


def wrong_doors(path: Path, source: str) -> list[str]:
    """Imports that the table forbids or that climb into another room by a window."""
    own, faults = room_of(path), []
    for line, module, name in imports(path, source):
        room = target(module, name)
        if room in (own, None):
            continue
        if room not in DOORS.get(own, ()):
            faults.append(f"{path.name}:{line}: {own} may not import {room}")
        elif by_window(module, name):
            faults.append(f"{path.name}:{line}: import from diffmoe.{room}, not from inside it")
    return faults


def broken_packages(path: Path, source: str) -> list[str]:
    """Imports of torchvision, which breaks CPU environments."""
    modules = ((line, module.split(".")[0]) for line, module, _ in imports(path, source))
    return [f"{path.name}:{line}: torchvision" for line, top in modules if top == "torchvision"]


def test_every_room_has_its_row() -> None:
    found = {room_of(path) for path in PACKAGE.rglob("*.py")}
    assert found == DOORS.keys()


@pytest.mark.parametrize(
    "path",
    sorted(PACKAGE.rglob("*.py")),
    ids=lambda path: path.relative_to(PACKAGE).as_posix(),
)
def test_imports_go_through_the_doors(path: Path) -> None:
    assert not wrong_doors(path, path.read_text())


def test_nothing_imports_torchvision() -> None:
    files = [path for top in ("src", "tests", "benchmarks") for path in (ROOT / top).rglob("*.py")]
    assert not [fault for path in files for fault in broken_packages(path, path.read_text())]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("model/dit.py", "from diffmoe.training import train"),
        ("model/dit.py", "from ..training import train"),
        ("model/dit.py", "from .. import sampling"),
        ("model/dit.py", "import diffmoe"),
        ("model/dit.py", "import diffmoe.cli"),
        ("errors.py", "def late():\n    from diffmoe.config import ModelConfig"),
        ("experiments/demo.py", "from diffmoe import cli"),
        ("training/step.py", "from diffmoe.model.routing import Router"),
        ("training/step.py", "from ..model.routing import Router"),
        ("training/step.py", "import diffmoe.model.routing"),
        ("cli/verbs.py", "from ..model.routing import Router"),
        ("new_room.py", "from diffmoe.model import DiT"),
    ],
)
def test_a_wrong_door_is_seen(file: str, source: str) -> None:
    assert len(wrong_doors(PACKAGE / file, source)) == 1


def test_a_window_in_a_from_import_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "__init__.py").write_text("from .loss import loss\n")
    for module in ("loss", "hidden"):
        (tmp_path / "model" / f"{module}.py").touch()
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    assert wrong_doors(tmp_path / "sampling" / "a.py", "from diffmoe.model import hidden")
    assert not wrong_doors(tmp_path / "sampling" / "a.py", "from diffmoe.model import loss")


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("model/dit.py", "import torch\nfrom . import layers\nfrom .layers import Attention"),
        ("model/dit.py", "from diffmoe.model.layers import Attention"),
        ("training/step.py", "from diffmoe.model import DiT\nfrom ..config import RunConfig"),
        ("cli/verbs.py", "from diffmoe import experiments, train"),
    ],
)
def test_a_right_door_passes(file: str, source: str) -> None:
    assert not wrong_doors(PACKAGE / file, source)


def test_a_torchvision_import_is_seen() -> None:
    source = "def late():\n    from torchvision.datasets import MNIST"
    assert len(broken_packages(PACKAGE / "data" / "images.py", source)) == 1
