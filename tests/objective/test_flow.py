"""Flow against data whose velocity is known, its conventions and its laws of time."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from diffmoe.config import DDPMConfig, FlowConfig
from diffmoe.objective import DDPM, Draws, Flow, build_objective
from diffmoe.randomness import uniforms
from gaussians import NO_CLASS, PLAN, Gaussian, Network, wide

DATA = Gaussian()
TIMES = [0.0, 0.13, 0.5, 0.9, 1.0]


def flow(**changes: Any) -> Flow:
    return Flow(FlowConfig(**changes))


def loss_of(network: Network, t: float, **changes: Any) -> Tensor:
    x, draws = DATA.points(t)
    return flow(**changes).loss(network, x, NO_CLASS, draws, PLAN).total


# --- the optimum --------------------------------------------------------------------------------


@pytest.mark.parametrize("t", TIMES)
def test_the_loss_of_the_exact_velocity_is_its_conditional_variance(t: float) -> None:
    found = loss_of(Network(DATA.velocity), t).item()
    assert found == pytest.approx(DATA.velocity_variance(t), rel=1e-12)


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("change", [(0.1, 0.0), (-0.1, 0.0), (0.0, 0.1), (0.0, -0.1), (0.2, -0.3)])
def test_no_other_linear_network_does_better(t: float, change: tuple[float, float]) -> None:
    """A change of slope and shift costs exactly its mean square."""
    slope, shift = change
    other = Network(lambda x, time: DATA.velocity(x, time) + slope * x + shift)
    at_x = (1 - t) * DATA.mean
    spread = (1 - t) ** 2 * DATA.deviation**2 + t**2
    extra = (slope * at_x + shift) ** 2 + slope**2 * spread
    found = loss_of(other, t) - loss_of(Network(DATA.velocity), t)
    assert found.item() == pytest.approx(extra, rel=1e-9)


def test_the_loss_is_a_mean_over_images_of_means_over_pixels() -> None:
    x, noise = tiny.normals(3, 2, 4, 4), tiny.normals(3, 2, 4, 4, seed=1)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    network = Network(lambda x, t: 0.3 * x + wide(t))
    loss = flow().loss(network, x, NO_CLASS[:3], Draws(t, noise), PLAN)
    slow = []
    for image in range(3):
        mixed = (1 - t[image]) * x[image] + t[image] * noise[image]
        error = 0.3 * mixed + t[image] - (noise[image] - x[image])
        slow.append(sum(float(e) ** 2 for e in error.flatten()) / error.numel())
    assert loss.per_image.tolist() == pytest.approx(slow, rel=1e-12)
    assert loss.total.item() == pytest.approx(sum(slow) / 3, rel=1e-12)
    assert loss.terms.keys() == {"mse"} and loss.routing == ()


# --- conventions --------------------------------------------------------------------------------


def mirrored(x: Tensor, s: Tensor) -> Tensor:
    """What a network of the released convention answers at its time s = 1 - t."""
    return -DATA.velocity(x, 1 - s)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_the_released_convention_is_the_papers_in_a_mirror(t: float) -> None:
    mirror = Network(mirrored)
    found = loss_of(mirror, t, convention="released")
    assert found.item() == pytest.approx(loss_of(Network(DATA.velocity), t).item(), rel=1e-12)
    assert mirror.seen[0].tolist() == [1 - t] * 4
    x = tiny.normals(4, 1, 2, 2)
    paper = flow().field(Network(DATA.velocity), NO_CLASS, PLAN)(x, t).value
    released = flow(convention="released").field(mirror, NO_CLASS, PLAN)(x, t).value
    torch.testing.assert_close(released, paper, rtol=1e-12, atol=1e-12)


def test_the_conventions_differ_for_one_network() -> None:
    one, other = (loss_of(Network(DATA.velocity), 0.3, convention=c) for c in ("paper", "released"))
    assert (one - other).abs() > 0.1


@pytest.mark.parametrize(
    ("convention", "seen"), [("paper", 250.0), ("released", 750.0)], ids=["paper", "released"]
)
def test_time_is_scaled_as_the_network_sees_it(convention: str, seen: float) -> None:
    network = Network(lambda x, t: x)
    objective = flow(time_scale=1000.0, convention=convention)
    x, draws = DATA.points(0.25)
    objective.loss(network, x, NO_CLASS, draws, PLAN)
    objective.field(network, NO_CLASS, PLAN)(x, 0.25)
    objective.field(network, NO_CLASS, PLAN)(x, draws.t)
    assert [t.tolist() for t in network.seen] == [[seen] * 4] * 3


def test_channels_beyond_the_images_are_ignored() -> None:
    """Released flow models predict twice the channels and mean the first half."""
    doubled = Network(lambda x, t: torch.cat([DATA.velocity(x, t), torch.full_like(x, 9.0)], 1))
    found = loss_of(doubled, 0.5)
    assert found.item() == loss_of(Network(DATA.velocity), 0.5).item()


def test_a_field_takes_one_time_or_one_for_each_image() -> None:
    field = flow().field(Network(DATA.velocity), NO_CLASS, PLAN)
    x = tiny.normals(4, 1, 2, 2)
    each = torch.full((4,), 0.3, dtype=torch.float64)
    assert torch.equal(field(x, 0.3).value, field(x, each).value)
    assert field(x, 0.3).variance is None and field(x, 0.3).branches == 1


# --- times --------------------------------------------------------------------------------------


def test_uniform_times_are_the_numbers_themselves() -> None:
    u = uniforms(0, "time", 0, 100)[:, 0]
    assert torch.equal(flow().times(u), u)


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (-0.7, 0.4)])
def test_logit_normal_times_have_normal_logits(mean: float, deviation: float) -> None:
    objective = flow(time_sampling="logit_normal", logit_mean=mean, logit_std=deviation)
    u = uniforms(0, "time", 0, 40_000)[:, 0]
    t = objective.times(u)
    assert t.dtype == u.dtype and t.min() > 0 and t.max() < 1
    logits = torch.logit(t.double())
    assert logits.mean().item() == pytest.approx(mean, abs=4 * deviation / 200)
    assert logits.std().item() == pytest.approx(deviation, rel=0.02)
    inside = ((logits - mean).abs() < 1.959964 * deviation).double().mean().item()
    assert inside == pytest.approx(0.95, abs=0.005)
    assert (t[u.argsort()].diff() >= 0).all()


def test_logit_normal_quantiles_are_exact() -> None:
    objective = flow(time_sampling="logit_normal", logit_mean=0.5, logit_std=2.0)
    z = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0], dtype=torch.float64)
    t = objective.times(torch.special.ndtr(z))
    torch.testing.assert_close(t, torch.sigmoid(0.5 + 2 * z), rtol=1e-12, atol=0)


def test_the_ends_of_the_uniform_numbers_give_times_inside() -> None:
    t = flow(time_sampling="logit_normal").times(torch.tensor([0.0, 1 - 2**-24]))
    assert 0 < t[0] < 0.01 and 0.99 < t[1] < 1


def test_the_grid_runs_from_noise_to_data_in_equal_steps() -> None:
    grid = flow().grid(250)
    assert grid.shape == (251,) and grid[0] == 1 and grid[-1] == 0
    torch.testing.assert_close(grid.diff(), torch.full((250,), -1 / 250, dtype=torch.float64))
    assert flow().grid(1).tolist() == [1, 0]
    assert flow().noise_level(0.25) == 0.25


# --- routers' terms -----------------------------------------------------------------------------


def test_router_terms_are_averaged_over_layers_and_weighted() -> None:
    router = replace(tiny.batch_pool(4), predictor_weight=0.3)
    model = tiny.model(router, depth=4)
    x, t, labels = tiny.batch(4)
    draws = Draws(t, tiny.normals(*x.shape, seed=3))
    loss = flow().loss(model, x, labels, draws, tiny.TRAIN)
    each = [
        layer.router.losses(record)["predictor"]
        for layer, record in zip(model.moe_layers, loss.routing, strict=True)
    ]
    assert len(each) == 2 and each[0] != each[1]
    mean = torch.stack(each).mean()
    torch.testing.assert_close(loss.terms["predictor"], mean)
    torch.testing.assert_close(loss.terms["mse"], loss.per_image.mean())
    torch.testing.assert_close(loss.total, loss.per_image.mean() + 0.3 * mean)


def test_a_dense_model_has_no_router_terms() -> None:
    x, t, labels = tiny.batch(2)
    draws = Draws(t, tiny.normals(*x.shape, seed=3))
    loss = flow().loss(tiny.model(tiny.ROUTERS["dense"]), x, labels, draws, tiny.TRAIN)
    assert loss.terms.keys() == {"mse"} and loss.routing == ()


def test_an_objective_is_built_from_its_config() -> None:
    assert isinstance(build_objective(FlowConfig()), Flow)
    assert isinstance(build_objective(DDPMConfig()), DDPM)
