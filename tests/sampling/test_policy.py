"""From settings to a routing plan: every legal pair works, nothing else does."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
import trained
from diffmoe.checkpoint import to_ours, to_released
from diffmoe.config import LEGAL_POLICIES, FlowConfig, SamplingConfig
from diffmoe.errors import ConfigError
from diffmoe.model import DiT
from diffmoe.sampling import generate, sampling_plan

SELECTIONS, POLICIES = ("token", "pool", "gate", "image"), ("ema", "constant", "static", "target")
FREE = "image"  # selection without policy
PAIRS = list(product(SELECTIONS, POLICIES))
LEGAL = [
    (selection, policy)
    for selection, policy in PAIRS
    if policy in LEGAL_POLICIES[selection] or (selection, policy) == (FREE, "ema")
]
ILLEGAL = [pair for pair in PAIRS if pair not in LEGAL]
ASKED = torch.full((2, 4), 0.3)  # thresholds of policy `target`


def settings(selection: str = "token", policy: str = "ema", **more: Any) -> SamplingConfig:
    gamma = 0.4 if policy == "constant" else None
    capacity = 0.7 if policy == "target" else None
    given = {"selection": selection, "policy": policy, "gamma": gamma, "capacity": capacity}
    return SamplingConfig(**{**given, **more})


def thresholds(policy: str) -> Tensor | None:
    return ASKED if policy == "target" else None


def network(measured: bool = True) -> DiT:
    return trained.network(trained.config(), measured)


def test_which_pairs_are_legal() -> None:
    static = {(selection, "static") for selection in ("token", "gate", FREE)}
    assert set(ILLEGAL) == static | {(FREE, "constant"), (FREE, "target")}


@pytest.mark.parametrize(("selection", "policy"), LEGAL)
def test_every_legal_pair_plans_and_samples(selection: str, policy: str) -> None:
    model, chosen = network(), settings(selection, policy, steps=2, guidance=1.5)
    given = thresholds(policy)
    plan = sampling_plan(model, chosen, images=3, branches=2, thresholds=given)
    assert plan.selection == selection
    assert plan.policy == (None if selection == FREE else policy)
    if policy in ("constant", "target"):
        assert plan.thresholds is not None and plan.thresholds.shape == (2, 4)
        assert (plan.thresholds == torch.tensor(0.4 if given is None else 0.3)).all()
    run, labels = trained.config(), [1, 2, 3]
    images = generate(model, run, labels, [0, 1, 2], settings=chosen, thresholds=given)
    assert images.shape == (3, 1, 8, 8) and bool(images.isfinite().all())


@pytest.mark.parametrize(("selection", "policy"), ILLEGAL)
def test_every_other_pair_is_refused(selection: str, policy: str) -> None:
    refusal = f"{policy} does not go with selection {selection}"
    if selection == FREE:
        refusal = r"would change nothing: selection image has a fixed capacity"
    with pytest.raises(ConfigError, match=refusal):
        settings(selection, policy)


@pytest.mark.parametrize("gamma", [None, -0.1, 1.0, float("nan")])
def test_a_constant_that_is_no_threshold_is_refused(gamma: float | None) -> None:
    with pytest.raises(ConfigError, match=r"sampling\.gamma"):
        SamplingConfig(policy="constant", gamma=gamma)


def test_a_constant_or_a_capacity_says_which_policy_is_meant() -> None:
    assert SamplingConfig(gamma=0.5).policy == "constant"
    assert SamplingConfig(capacity=0.5).policy == "target"
    assert SamplingConfig(capacity=0.5, capacity_level="layer").capacity_level == "layer"


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"selection": "pool", "policy": "static", "gamma": 0.5}, "gamma 0.5 does not go with"),
        ({"policy": "target"}, "capacity None does not go with"),
        ({"policy": "target", "capacity": 0.7, "gamma": 0.5}, "are two ways to say how much"),
        ({"gamma": 0.5, "capacity": 0.7}, r"gamma 0.5 and sampling\.capacity 0.7 are two ways"),
        ({"policy": "ema", "gamma": 0.5}, "gamma 0.5 does not go with sampling.policy ema"),
        ({"policy": "ema", "capacity": 0.7}, "capacity 0.7 does not go with sampling.policy ema"),
        ({"capacity": 0.0}, "capacity 0.0 is not in"),
        ({"capacity": float("nan")}, "capacity nan is not in"),
        ({"capacity": float("inf")}, "capacity inf is not in"),
        ({"capacity_level": "layer"}, "capacity_level layer would change nothing"),
        ({"capacity": 2.0, "max_capacity": 1.5}, "capacity 2.0 is more than"),
        ({"selection": "image", "capacity": 0.7}, "capacity 0.7 would change nothing"),
    ],
)
def test_what_contradicts_the_policy_is_refused(bad: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        SamplingConfig(**bad)


def test_a_place_on_the_dial_can_be_left_for_any_other() -> None:
    """Whatever a run's own settings say; the rest of them stays."""
    runs = [
        SamplingConfig(steps=7, **own)
        for own in ({}, {"gamma": 0.4}, {"capacity": 0.5, "capacity_level": "layer"})
    ]
    for own in runs:
        assert own.at() == SamplingConfig(steps=7)
        assert own.at(gamma=0.3) == SamplingConfig(steps=7, gamma=0.3)
        assert own.at(capacity=0.7).policy == "target"
        assert own.at(policy="ema").gamma is None
        assert own.undecided().policy is None


def test_no_more_than_every_expert_can_be_asked_for() -> None:
    assert trained.config(capacity=4.0).sampling.policy == "target"
    with pytest.raises(ConfigError, match=r"sampling\.capacity 4\.5 is not in \(0, 4\]"):
        trained.config(capacity=4.5)


@pytest.mark.parametrize("router", ["dense", "token_choice", "expert_choice"])
def test_a_router_of_fixed_capacity_has_no_dial(router: str) -> None:
    with pytest.raises(ConfigError, match=r"capacity 0\.7 would change nothing: the router is"):
        trained.config(tiny.ROUTERS[router], capacity=0.7)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (None, "policy target needs thresholds"),
        (torch.full((2, 3), 0.3), r"\(2, 3\), the model needs \(2, 4\)"),
        (torch.full((2, 4), float("nan")), "no numbers"),
    ],
    ids=["none", "shape", "nan"],
)
def test_a_target_needs_thresholds_of_the_model(given: Tensor | None, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        sampling_plan(network(), settings(policy="target"), 2, thresholds=given)


def test_thresholds_are_for_a_target_alone() -> None:
    with pytest.raises(ConfigError, match="policy ema takes no thresholds"):
        sampling_plan(network(), settings(), 2, thresholds=ASKED)


# --- tracked thresholds -------------------------------------------------------------------------


@pytest.mark.parametrize("selection", ["token", "pool", "gate"])
def test_thresholds_that_were_never_measured_are_refused(selection: str) -> None:
    with pytest.raises(ConfigError, match=r"layer 0 .* never measured"):
        sampling_plan(network(measured=False), settings(selection), 2)


@pytest.mark.parametrize(
    ("selection", "policy"), [pair for pair in LEGAL if pair[1] != "ema" or pair[0] == FREE]
)
def test_other_policies_need_no_measurement(selection: str, policy: str) -> None:
    chosen = settings(selection, policy)
    sampling_plan(network(measured=False), chosen, 2, thresholds=thresholds(policy))


@pytest.mark.parametrize("selection", ["token", "pool", "gate"])
@pytest.mark.parametrize("value", [torch.nan, -0.1, 1.0, torch.inf])
def test_unsound_thresholds_are_refused(selection: str, value: float) -> None:
    model = network()
    router = model.moe_layers[1].router
    (router.gate_threshold if selection == "gate" else router.threshold)[2] = value
    with pytest.raises(ConfigError, match="layer 1"):
        sampling_plan(model, settings(selection), 2)
    other = "token" if selection == "gate" else "gate"
    sampling_plan(model, settings(other), 2)


def test_a_converted_model_has_thresholds_but_none_for_gates() -> None:
    """The released layout holds no thresholds of the router's affinity."""
    run, model = trained.config(), network()
    run = replace(run, objective=FlowConfig(convention="released"))
    model.load_state_dict(to_ours(to_released(model.state_dict(), run), run))
    sampling_plan(model, settings("token"), 2)
    sampling_plan(model, settings("pool"), 2)
    with pytest.raises(ConfigError, match="selection gate"):
        sampling_plan(model, settings("gate"), 2)
    sampling_plan(model, settings("gate", "constant"), 2)


@pytest.mark.parametrize("router", tiny.ROUTERS.values(), ids=tiny.ROUTERS.keys())
def test_every_router_samples_with_the_default_plan(router: Any) -> None:
    run = trained.config(router)
    model = trained.network(run)
    assert generate(model, run, [1, 2], [0, 1]).shape == (2, 1, 8, 8)


# --- pools --------------------------------------------------------------------------------------


def pools(branches: int = 1, images: int = 5, **more: Any) -> tuple[int, ...] | None:
    chosen = settings("pool", **more)
    return sampling_plan(network(), chosen, images, branches).pool_of_image


def test_the_pool_is_the_batch_unless_it_is_said() -> None:
    assert pools() == (0, 0, 0, 0, 0)
    assert pools(pool_images=2, batch=6) == (0, 0, 1, 1, 2)


def test_branches_share_a_pool_only_when_it_is_joint() -> None:
    assert pools(2, 2) == (0, 0, 1, 1)
    assert pools(2, 2, guidance_pool="joint") == (0, 0, 0, 0)
    assert pools(2, 3, pool_images=2, batch=4) == (0, 0, 1, 2, 2, 3)
    assert pools(2, 3, pool_images=2, batch=4, guidance_pool="joint") == (0, 0, 1, 0, 0, 1)


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"selection": "token", "pool_images": 4}, "pool_images 4 has no meaning"),
        ({"selection": "pool", "pool_images": 4, "batch": 6}, "batch 6 is not a multiple"),
        ({"selection": "pool", "pool_images": 0}, "pool_images 0"),
        ({"selection": "pool", "sampler": "dopri5"}, "dopri5 integrates each image by itself"),
        ({"batch": 0}, "batch 0"),
        ({"steps": 0}, "steps 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(bad: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        SamplingConfig(**bad)


def test_images_of_one_pool_do_not_see_those_of_another() -> None:
    """In `pool` selection a pool of two within a batch of four is a batch of two."""
    run = trained.config()

    def samples(labels: list[int], **more: Any) -> Tensor:
        seeds = list(range(len(labels)))
        chosen = settings("pool", steps=3, **more)
        return generate(network(), run, labels, seeds, settings=chosen)

    small = samples([1, 2, 3, 4], batch=2)
    torch.testing.assert_close(samples([1, 2, 3, 4], batch=4, pool_images=2), small)
    assert (samples([1, 2, 3, 4], batch=4) - small).abs().max() > 1e-3


def test_a_cap_goes_into_the_plan() -> None:
    run = trained.config(max_capacity=1.5)
    assert sampling_plan(trained.network(run), run.sampling, 3).max_capacity == 1.5
    with pytest.raises(ConfigError, match=r"max_capacity 1\.5 has no meaning in selection pool"):
        trained.config(selection="pool", max_capacity=1.5)
    with pytest.raises(ConfigError, match=r"sampling\.max_capacity -1"):
        trained.config(max_capacity=-1.0)
