"""The shapes in the model room's signatures are true: its tests run once more under checks."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """A Python process that finds the plugin."""
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False
    )


def test_shapes_hold_in_the_tests_of_the_model_room() -> None:
    names = ("routers", "dit", "predictor_and_thresholds", "wide_pool")
    files = [f"{TESTS}/model/test_{name}.py" for name in names]
    left_out = "compiles or memory or low_precision or hostile or bits or rounding"
    chosen = ("-k", f"not ({left_out} or ten_thousand or real_processes)")
    done = run("-m", "pytest", "-q", "-x", "-p", "shape_checks", *chosen, *files)
    assert done.returncode == 0, done.stdout[-3000:]


def test_a_planted_shape_is_seen() -> None:
    source = """
import shape_checks, torch, diffmoe.model.layers as layers
layers.FeedForward(4, 8)(torch.zeros(3, 4))
layers.linear_high(torch.zeros(3, 4), torch.zeros(5, 4))
layers.Modulate(4, 2)(torch.zeros(2, 3, 4))
"""
    done = run("-c", source)
    assert done.returncode == 1 and "TypeCheckError" in done.stderr
    assert "Modulate" in done.stderr and "B D" in done.stderr
