"""What is written beside the images."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from diffmoe.experiments import sample
from diffmoe.training import train
from runs import run_config


def test_what_a_cap_left_out_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = run_config()
    train(config, tmp_path / "run", progress=False)
    shares = []
    for capacity in (None, 0.25):
        settings = replace(config.sampling, max_capacity=capacity, policy="constant", gamma=0.2)
        with caplog.at_level("INFO"):
            path = sample(
                tmp_path / "run", [1, 2], [0, 1], settings=settings, device="cpu", progress=False
            )
        shares.append(json.loads((path / "samples.json").read_text()).get("dropped"))
    assert shares[0] is None and 0 < shares[1] < 1
    assert caplog.text.count("max_capacity left out") == 1
