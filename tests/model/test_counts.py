"""Parameter counts against the published ones."""

import pytest
import torch

from diffmoe.model import DiT, activated_parameters, build_model, count_parameters
from diffmoe.presets import PRESETS, preset

# Exact totals at 8 output channels (the DDPM presets), the position table included.
TOTALS = {
    "dit-s": 32_963_360,
    "dit-b": 130_512_416,
    "dit-l": 458_102_816,
    "dit-xl": 675_129_632,
    "dit-xxl": 951_252_512,
    "dit-xxxl": 1_352_946_272,
    "diffmoe-s-e16": 140_265_344,
    "diffmoe-b-e16": 559_222_400,
    "diffmoe-l-e2": 571_471_928,
    "diffmoe-l-e4": 772_970_576,
    "diffmoe-l-e8": 1_175_967_872,
    "diffmoe-l-e16": 1_981_962_464,
    "diffmoe-xl-e16": 2_924_985_856,
}
# Activated at C = 1, in millions: by Eq. 40, and with router and predictor counted whole.
ACTIVATED = {
    "diffmoe-s-e16": (33.08, 33.92),
    "diffmoe-b-e16": (130.95, 134.20),
    "diffmoe-l-e16": (459.63, 471.09),
    "diffmoe-xl-e16": (677.38, 694.24),
}


def router_parameters(width: int, depth: int, experts: int, predictor: bool) -> int:
    """Those of all MoE layers: W_r, and Linear(D, D) and Linear(D, E) of the predictor."""
    each = width * experts
    if predictor:
        each += width * (width + 1) + (width + 1) * experts
    return depth // 2 * each


def ffn(width: int) -> int:
    return 8 * width * width + 5 * width


@pytest.mark.parametrize("name", TOTALS)
def test_totals_are_the_published_ones(name: str) -> None:
    config = preset(f"{name}-ddpm").model
    assert config.out_channels == 8
    assert count_parameters(config).total == TOTALS[name]
    flow = preset(f"{name}-flow").model
    assert flow.out_channels == 4
    assert count_parameters(flow).total == TOTALS[name] - 16 * (config.width + 1)


@pytest.mark.parametrize("name", [n for n in TOTALS if n.startswith("diffmoe")])
def test_a_mixture_is_its_dense_twin_and_its_parts(name: str) -> None:
    config = preset(f"{name}-ddpm").model
    width, depth, experts = config.width, config.depth, config.router.num_experts
    counts = count_parameters(config)
    dense = TOTALS[name.replace("diffmoe", "dit").rsplit("-", 1)[0]]
    assert counts.dense_ffn == depth // 2 * ffn(width)
    assert counts.experts == depth // 2 * experts * ffn(width)
    assert counts.routing == router_parameters(width, depth, experts, predictor=True)
    assert counts.total == dense + (experts - 1) * depth // 2 * ffn(width) + counts.routing


@pytest.mark.parametrize("name", ["tc-dit-l-e16", "ec-dit-l-e16"])
def test_the_baselines_have_no_predictor(name: str) -> None:
    counts = count_parameters(preset(f"{name}-flow").model)
    assert counts.routing == router_parameters(1024, 24, 16, predictor=False)
    dense = TOTALS["dit-l"] - 16 * 1025
    assert counts.total == dense + 15 * 12 * ffn(1024) + counts.routing


@pytest.mark.parametrize("name", ACTIVATED)
def test_activated_parameters(name: str) -> None:
    activated = activated_parameters(preset(f"{name}-ddpm").model)
    for key, wanted in zip(("eq40", "executed"), ACTIVATED[name], strict=True):
        assert activated[key] / 1e6 == pytest.approx(wanted, abs=0.005), key


def test_activated_parameters_follow_the_capacity() -> None:
    config = preset("diffmoe-s-e16-ddpm").model
    counts, whole = count_parameters(config), activated_parameters(config, capacity=16)
    assert whole["executed"] == pytest.approx(counts.total)
    assert whole["eq40"] == pytest.approx(counts.total)
    none = activated_parameters(config, capacity=0)
    assert none["executed"] == pytest.approx(counts.total - counts.experts)
    one = activated_parameters(config)
    assert one["executed"] - none["executed"] == pytest.approx(counts.experts / 16)
    for name in ("dit-s-flow", "dit-xl-ddpm"):
        dense = preset(name).model
        assert set(activated_parameters(dense).values()) == {count_parameters(dense).total}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds(name: str) -> None:
    config = preset(name).model
    with torch.device("meta"):
        model = DiT(config)
    assert len(model.moe_layers) == len(config.moe_blocks)
    assert (config.depth // 2 if config.router.num_experts else 0) == len(config.moe_blocks)
    assert sum(p.numel() for p in model.parameters()) == count_parameters(config).total
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("name", ["digits-dense", "digits-diffmoe", "digits-tc", "digits-ec"])
def test_counts_of_a_model_that_is_there(name: str) -> None:
    config = preset(name).model
    model = build_model(config, seed=0)
    assert count_parameters(config).total == sum(p.numel() for p in model.parameters())
