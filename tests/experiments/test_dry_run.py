"""What a run would need is computed without weights, and is what a run then has."""

from pathlib import Path

import pytest
import torch

from diffmoe.checkpoint import RunFolder
from diffmoe.experiments import needs
from diffmoe.presets import preset
from diffmoe.training import new_state, train
from runs import ROUTER_KINDS, run_config


@pytest.mark.parametrize("router", ROUTER_KINDS)
def test_parameters_and_bytes_are_those_of_the_state(router: str) -> None:
    config = run_config(router)
    found, state = needs(config), new_state(config, torch.device("cpu"))
    sizes = [p.numel() for p in state.model.parameters()]
    trained = [p.numel() for p in state.model.parameters() if p.requires_grad]
    assert found.parameters == sum(sizes)
    assert found.memory["weights"] == found.memory["averaged weights"] == 4 * sum(sizes)
    assert found.memory["gradients"] == 4 * sum(trained)
    assert found.memory["AdamW moments"] == 8 * sum(trained)
    assert found.total == sum(found.memory.values())


def test_the_size_of_a_checkpoint_is_that_of_one(tmp_path: Path) -> None:
    config = run_config(model__width=64)
    newest = RunFolder(train(config, tmp_path, progress=False).path).checkpoints / "step-00000004"
    there = sum(file.stat().st_size for file in newest.glob("*.safetensors"))
    assert needs(config).checkpoint == pytest.approx(there, rel=0.05)
    assert needs(config).checkpoints == 3


def activations(**changes: object) -> int:
    return next(n for k, n in needs(run_config(**changes)).memory.items() if "activ" in k)


def test_activations_shrink_with_what_is_said_to_shrink_them() -> None:
    whole = activations()
    assert activations(machine__micro_batch=8) < 0.6 * whole
    assert activations(machine__activation_checkpointing=True) < 0.7 * whole
    assert activations(training__precision="bfloat16") < whole


def test_the_published_model_is_counted_to_the_parameter() -> None:
    assert needs(preset("diffmoe-l-e16-flow")).parameters == 1_981_946_064
