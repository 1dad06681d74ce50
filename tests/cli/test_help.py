"""The help of every verb, pinned: a change of it is a change of tests/golden/cli_help.txt.

To write the file anew: `.venv/bin/python tests/cli/test_help.py`.
"""

import contextlib
import io
import os
from pathlib import Path

import pytest

from diffmoe.cli import main
from diffmoe.config import to_yaml
from diffmoe.presets import PRESETS, preset

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "cli_help.txt"
WIDTH = "100"
RUN = "runs/name"
COMMANDS = [
    "--help",
    "demo --help",
    "train --help",
    "train digits-diffmoe --help",
    "train diffmoe-l-e16-ddpm --help",
    "sample --help",
    f"sample {RUN} --help",
    "report --help",
    f"report {RUN} --help",
    "analyze --help",
    f"analyze {RUN} --help",
    "sweep --help",
    f"sweep {RUN} --help",
    "bench --help",
    "plan --help",
    "plan digits-diffmoe --help",
    "prepare --help",
    "prepare photos --help",
    "evaluate --help",
    "evaluate samples.npz --help",
    f"evaluate {RUN} --help",
    "compare --help",
    "selftest --help",
    "convert --help",
    "convert FILE TARGET --help",
    "presets --help",
]


def make_run() -> None:
    """The config of a run in the current folder: help needs no more."""
    Path(RUN).mkdir(parents=True)
    (Path(RUN) / "config.yaml").write_text(to_yaml(preset("digits-diffmoe")))


def help_of(command: str) -> str:
    """What a command prints to a text stream of unknown encoding, so without drawn lines."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(command.split()) == 0
    return "\n".join(line.rstrip() for line in said.getvalue().splitlines()).strip()


def all_help() -> str:
    return "\n\n".join(f"$ diffmoe {command}\n{help_of(command)}" for command in COMMANDS) + "\n"


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", WIDTH)
    make_run()


def test_the_help_of_every_verb_is_the_pinned_one() -> None:
    assert all_help() == GOLDEN.read_text()


@pytest.mark.parametrize("command", ["", "-h", "--help"])
def test_help_names_every_verb(command: str) -> None:
    said = help_of(command)
    for verb in ("demo", "train", "sample", "report", "convert", "presets"):
        assert f"  diffmoe {verb}" in said


def test_help_writes_nothing() -> None:
    before = sorted(Path().rglob("*"))
    all_help()
    assert sorted(Path().rglob("*")) == before


def test_a_preset_shows_its_own_defaults() -> None:
    said = " ".join(help_of("train diffmoe-l-e16-flow --help").split())
    assert "D (default: 1024)" in said and "E (default: 16)" in said
    assert "(default: runs/diffmoe-l-e16-flow)" in said


def test_presets_are_listed_with_their_sizes() -> None:
    said = help_of("presets")
    lines = {line.split()[0]: line for line in said.splitlines()}
    assert list(lines)[1:] == list(PRESETS)
    assert "1981.95 M" in lines["diffmoe-l-e16-flow"]
    assert "14.41 flow" in lines["diffmoe-l-e16-flow"]


def test_a_preset_is_printed_as_yaml() -> None:
    assert help_of("presets digits-diffmoe") == to_yaml(preset("digits-diffmoe")).strip()


if __name__ == "__main__":
    import tempfile

    os.environ["COLUMNS"] = WIDTH
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        make_run()
        content = all_help()
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(content)
