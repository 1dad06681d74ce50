"""Help is quick: no command imports a tensor library before it needs one."""

import os
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
        (["sample", "nowhere"], 2),
        (["--version"], 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_what_needs_no_tensor_imports_no_tensor_library(words: list[str], code: int) -> None:
    assert imported(*words) == (code, [])


def first_import_of_torch(code: str, **environment: str) -> str:
    """What OMP_WAIT_POLICY is when a program first asks for torch."""
    watch = (
        "import os, sys\nclass Watch:\n"
        "    def find_spec(self, name, *others):\n"
        "        if name == 'torch':\n"
        "            sys.exit(print(os.environ.get('OMP_WAIT_POLICY')))\n"
        "sys.meta_path.insert(0, Watch())\n"
    )
    own = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    return subprocess.run(
        [sys.executable, "-c", watch + code],
        capture_output=True,
        text=True,
        check=True,
        env=own | environment,
    ).stdout.strip()


@pytest.mark.parametrize(
    "code", ["import diffmoe; diffmoe.train", "from diffmoe.cli import main; main(['presets'])"]
)
def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise(code: str) -> None:
    assert first_import_of_torch(code) == "PASSIVE"
    assert first_import_of_torch(code, OMP_WAIT_POLICY="ACTIVE") == "ACTIVE"
    assert first_import_of_torch("import torch") == "None"


def test_a_heavy_import_is_seen(tmp_path: Path) -> None:
    assert "torch" in imported("presets")[1]
