"""Help is quick: no command imports a tensor library before it needs one."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "diffusers", "numpy", "sklearn", "matplotlib", "PIL")


def imported(*words: str) -> tuple[int, list[str]]:
    """The exit code of a command and the heavy packages it imported."""
    code = (
        "import sys\nfrom diffmoe.cli import main\n"
        f"code = main({list(words)!r})\n"
        f"print('imported', code, *(name for name in {HEAVY!r} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    _, exit_code, *names = done.stdout.splitlines()[-1].split()
    return int(exit_code), names


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["train", "digits-diffmoe", "--help"], 0),
        (["train", "digits-difmoe"], 2),
        (["train", "digits-diffmoe", "--model.heads", "7"], 2),
        (["presets", "digits-diffmoe"], 0),
        (["sample", "nowhere"], 5),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_what_needs_no_tensor_imports_no_tensor_library(words: list[str], code: int) -> None:
    assert imported(*words) == (code, [])


def test_a_heavy_import_is_seen(tmp_path: Path) -> None:
    assert "torch" in imported("presets")[1]
