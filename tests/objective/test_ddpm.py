"""DDPM's hybrid loss against data whose posterior is known, and against slow loops."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

import tiny
from diffmoe.config import DDPMConfig
from diffmoe.objective import DDPM, Draws
from diffmoe.objective.ddpm import grey_level_log_likelihood, normal_divergence
from diffmoe.randomness import uniforms
from gaussians import NO_CLASS, PLAN, Gaussian, Network

DATA = Gaussian()
STEPS = [1, 7, 250, 600, 999]


def ddpm(**changes: Any) -> DDPM:
    return DDPM(DDPMConfig(**changes))


def exact(x: Tensor, t: Tensor) -> Tensor:
    """The posterior mean of the noise, whatever the step."""
    return DATA.noise(x, ddpm().schedule.alpha_bar[t.long()])


def network(epsilon: Any = exact, variance: Any = lambda x, t: torch.zeros_like(x)) -> Network:
    return Network(lambda x, t: torch.cat([epsilon(x, t), variance(x, t)], dim=1))


# --- the optimum --------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, *STEPS])
def test_the_loss_of_the_exact_noise_is_its_conditional_variance(step: int) -> None:
    x, draws = DATA.points(step)
    a = ddpm().schedule.alpha_bar[step].item()
    signal = a * DATA.deviation**2
    found = ddpm().loss(network(), x, NO_CLASS, draws, PLAN).terms["mse"].item()
    assert found == pytest.approx(signal / (signal + 1 - a), rel=1e-9)


@pytest.mark.parametrize("step", [0, *STEPS])
@pytest.mark.parametrize(("slope", "shift"), [(0.1, 0.0), (-0.1, 0.0), (0.0, 0.1), (-0.2, 0.3)])
def test_no_other_linear_network_does_better(step: int, slope: float, shift: float) -> None:
    x, draws = DATA.points(step)
    a = ddpm().schedule.alpha_bar[step].item()
    other = network(lambda x, t: exact(x, t) + slope * x + shift)
    one, two = (ddpm().loss(n, x, NO_CLASS, draws, PLAN).terms["mse"] for n in (network(), other))
    spread = a * DATA.deviation**2 + 1 - a
    extra = (slope * a**0.5 * DATA.mean + shift) ** 2 + slope**2 * spread
    assert (two - one).item() == pytest.approx(extra, rel=1e-9)


@pytest.mark.parametrize("step", STEPS)
def test_the_bound_is_least_at_the_variance_of_the_reverse_step(step: int) -> None:
    """q(x_before | x_t) of normal data is normal; its variance is what must be learned."""
    objective, (x, draws) = ddpm(), DATA.points(step)
    schedule = objective.schedule
    a = schedule.alpha_bar[step]
    clean = DATA.deviation**2 * (1 - a) / (a * DATA.deviation**2 + 1 - a)  # Var[x_0 | x_t]
    slope = schedule.alpha_bar_before[step].sqrt() * schedule.beta[step] / (1 - a)
    wanted = (schedule.log_posterior_variance[step].exp() + slope**2 * clean).log()
    low, high = schedule.log_posterior_variance[step], schedule.beta[step].log()
    best = (2 * (wanted - low) / (high - low) - 1).item()

    def bound(place: float) -> float:
        chosen = network(variance=lambda x, t: torch.full_like(x, place))
        return objective.loss(chosen, x, NO_CLASS, draws, PLAN).terms["vb"].item()

    values = [bound(best + change) for change in (-0.5, 0.0, 0.5)]
    assert values[1] == min(values)
    assert (bound(best + 1e-4) - bound(best - 1e-4)) / 2e-4 == pytest.approx(0, abs=1e-6)


# --- the bound against a loop -------------------------------------------------------------------


def slow_schedule(steps: int = 1000) -> tuple[list[float], list[float]]:
    betas = [1e-4 + (0.02 - 1e-4) * i / (steps - 1) for i in range(steps)]
    products, product = [], 1.0
    for beta in betas:
        product *= 1 - beta
        products.append(product)
    return betas, products


def slow_bound(x: float, x_t: float, epsilon: float, v: float, t: int) -> float:
    """One pixel's term of the bound, in bits, by scalar arithmetic (Ho et al. 2020, Eq. 5-12)."""
    betas, bars = slow_schedule()
    bar, before, beta = bars[t], bars[t - 1] if t else 1.0, betas[t]

    def mean(x_0: float) -> float:
        noisy = math.sqrt(1 - beta) * (1 - before) * x_t
        return (math.sqrt(before) * beta * x_0 + noisy) / (1 - bar)

    first = max(t, 1)
    least = betas[first] * (1 - bars[first - 1]) / (1 - bars[first])
    log_variance = (v + 1) / 2 * math.log(beta) + (1 - v) / 2 * math.log(least)
    guess = mean((x_t - math.sqrt(1 - bar) * epsilon) / math.sqrt(bar))
    if t > 0:
        ratio = math.log(least) - log_variance
        shift = (mean(x) - guess) ** 2 * math.exp(-log_variance)
        return 0.5 * (-1 - ratio + math.exp(ratio) + shift) / math.log(2)

    def below(edge: float) -> float:
        return 0.5 * (1 + math.erf((edge - guess) * math.exp(-0.5 * log_variance) / math.sqrt(2)))

    upper = 1.0 if x > 1 - 1 / 255 else below(x + 1 / 255)
    lower = 0.0 if x < -1 + 1 / 255 else below(x - 1 / 255)
    return -math.log(max(upper - lower, 1e-12)) / math.log(2)


def test_the_bound_is_that_of_a_slow_loop() -> None:
    steps = torch.tensor([0, 0, 1, 2, 500, 999])
    x = (tiny.normals(6, 2, 3, 3) * 0.6).clamp(-1, 1)
    x[0, 0, 0], x[1, 0, 0] = 1.0, -1.0
    noise = tiny.normals(6, 2, 3, 3, seed=1)
    epsilon, v = noise + 0.1 * tiny.normals(6, 2, 3, 3, seed=2), tiny.normals(6, 2, 3, 3, seed=3)
    fixed = Network(lambda x, t: torch.cat([epsilon, v], dim=1))
    objective = ddpm(variational_weight=0.25)
    loss = objective.loss(fixed, x, steps % 5, Draws(steps, noise), PLAN)
    _, bars = slow_schedule()
    slow = []
    for image, t in enumerate(steps.tolist()):
        x_t = math.sqrt(bars[t]) * x[image] + math.sqrt(1 - bars[t]) * noise[image]
        parts = (x[image], x_t, epsilon[image], v[image])
        pixels = zip(*(part.flatten().tolist() for part in parts), strict=True)
        values = [slow_bound(*pixel, t) for pixel in pixels]
        slow.append(sum(values) / len(values))
    assert loss.terms["vb"].item() == pytest.approx(sum(slow) / 6, rel=1e-8)
    squared = (epsilon - noise).square().flatten(1).mean(1)
    assert loss.terms["mse"].item() == pytest.approx(squared.mean().item(), rel=1e-12)
    wanted = squared + 0.25 * torch.tensor(slow, dtype=torch.float64)
    torch.testing.assert_close(loss.per_image, wanted, rtol=1e-8, atol=0)
    assert loss.total.item() == pytest.approx(wanted.mean().item(), rel=1e-8)


def test_the_divergence_is_that_of_two_normals() -> None:
    mean1, log1, mean2, log2 = (tiny.normals(50, seed=seed) for seed in range(4))
    wanted = kl_divergence(Normal(mean1, (log1 / 2).exp()), Normal(mean2, (log2 / 2).exp()))
    torch.testing.assert_close(normal_divergence(mean1, log1, mean2, log2), wanted)
    assert not normal_divergence(mean1, log1, mean1, log1).any()


@pytest.mark.parametrize("log_variance", [-6.0, -3.0, 0.0, 2.0])
@pytest.mark.parametrize("mean", [-1.3, 0.0, 0.71])
def test_the_grey_levels_share_all_of_the_probability(mean: float, log_variance: float) -> None:
    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    law = (torch.full((256,), value, dtype=torch.float64) for value in (mean, log_variance))
    assert grey_level_log_likelihood(levels, *law).exp().sum().item() == pytest.approx(1, abs=1e-9)


# --- who learns what ----------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 1, 400])
def test_the_bound_trains_the_variance_and_never_the_mean(step: int) -> None:
    x, draws = DATA.points(step)
    answer = tiny.normals(4, 2, 2, 2, seed=5).requires_grad_()
    loss = ddpm().loss(Network(lambda x, t: answer), x, NO_CLASS, draws, PLAN)
    (of_bound,) = torch.autograd.grad(loss.terms["vb"], answer, retain_graph=True)
    (of_squares,) = torch.autograd.grad(loss.terms["mse"], answer, retain_graph=True)
    (of_total,) = torch.autograd.grad(loss.total, answer)
    assert not of_bound[:, :1].any() and of_bound[:, 1:].any()
    assert of_squares[:, :1].any() and not of_squares[:, 1:].any()
    torch.testing.assert_close(of_total, of_bound + of_squares)


def test_without_weight_the_bound_is_reported_and_not_trained() -> None:
    x, draws = DATA.points(400)
    answer = tiny.normals(4, 2, 2, 2, seed=5).requires_grad_()
    loss = ddpm(variational_weight=0.0).loss(Network(lambda *_: answer), x, NO_CLASS, draws, PLAN)
    (gradient,) = torch.autograd.grad(loss.total, answer, retain_graph=True)
    assert loss.terms["vb"] > 0 and not gradient[:, 1:].any()
    assert loss.total == loss.terms["mse"]


# --- times --------------------------------------------------------------------------------------


def test_every_step_is_trained_alike() -> None:
    t = ddpm().times(uniforms(0, "time", 0, 200_000)[:, 0])
    counts = torch.bincount(t, minlength=1000)
    assert t.min() == 0 and t.max() == 999 and len(counts) == 1000
    assert counts.min() > 130 and counts.max() < 270  # 200 on average
    assert ddpm().times(torch.tensor([0.0, 0.0009999, 0.001, 1 - 2**-24])).tolist() == [
        0,
        0,
        1,
        999,
    ]


def test_250_of_1000_steps_are_the_rounded_even_spread() -> None:
    grid = ddpm().grid(250)
    wanted = [round(999 * i / 249) for i in range(250)]
    assert grid.flip(0).tolist() == wanted and len(set(wanted)) == 250


@pytest.mark.parametrize("steps", [1, 2, 3, 50, 999, 1000])
def test_a_grid_begins_at_the_noisiest_step(steps: int) -> None:
    grid = ddpm().grid(steps)
    assert len(grid) == steps and grid[0] == 999 and (grid.diff() < 0).all()
    assert steps == 1 or grid[-1] == 0
    assert ddpm().noise_level(999) == 1 and ddpm().noise_level(0) == 0


def test_the_network_sees_the_training_step() -> None:
    seen = network()
    ddpm().field(seen, NO_CLASS, PLAN)(tiny.normals(4, 1, 2, 2), 737)
    assert seen.seen[0].tolist() == [737.0] * 4


def test_a_field_gives_noise_and_variance_apart() -> None:
    x = tiny.normals(4, 1, 2, 2)
    output = ddpm().field(network(variance=lambda x, t: 0.1 * x), NO_CLASS, PLAN)(x, 40)
    assert torch.equal(output.value, exact(x, torch.full((4,), 40)))
    assert output.variance is not None and torch.equal(output.variance, 0.1 * x)


# --- the schedule -------------------------------------------------------------------------------


def test_the_schedule_is_that_of_linear_betas() -> None:
    betas, bars = slow_schedule()
    schedule = ddpm().schedule
    assert schedule.alpha_bar.tolist() == pytest.approx(bars, rel=1e-12)
    assert schedule.beta.tolist() == pytest.approx(betas, rel=1e-9)
    assert schedule.alpha_bar_before.tolist() == pytest.approx([1.0, *bars[:-1]], rel=1e-12)


@pytest.mark.parametrize("steps", [1, 10, 250])
def test_a_respaced_process_has_the_same_marginals(steps: int) -> None:
    objective = ddpm()
    times = objective.grid(steps).flip(0)
    respaced = objective.schedule.respaced(times)
    kept = (1 - respaced.beta).cumprod(0)
    torch.testing.assert_close(kept, objective.schedule.alpha_bar[times], rtol=1e-10, atol=0)


@pytest.mark.parametrize("step", [1, 3, 9])
def test_the_posterior_is_that_of_bayes(step: int) -> None:
    """Products of normals: precisions add up."""
    process = ddpm().schedule.respaced(ddpm().grid(10).flip(0))
    before, beta = process.alpha_bar_before[step], process.beta[step]
    x_0, x_t = tiny.normals(1, 1, 2, 2), tiny.normals(1, 1, 2, 2, seed=1)
    prior, likelihood = 1 / (1 - before), (1 - beta) / beta
    mean = prior * before.sqrt() * x_0 + likelihood * x_t / (1 - beta).sqrt()
    index = torch.tensor([step])
    found = process.posterior_mean(x_0, x_t, index)
    torch.testing.assert_close(found, mean / (prior + likelihood), rtol=1e-10, atol=1e-12)
    variance = process.log_posterior_variance[step].exp()
    assert variance.item() == pytest.approx(1 / (prior + likelihood).item(), rel=1e-10)


def test_the_learned_variance_lies_between_the_posteriors_and_beta() -> None:
    schedule = ddpm().schedule
    index, one = torch.tensor([300]), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    low, middle, high = (schedule.log_variance(v * one, index).item() for v in (-1, 0, 1))
    assert low == pytest.approx(schedule.log_posterior_variance[300].item(), rel=1e-12)
    assert high == pytest.approx(schedule.beta[300].log().item(), rel=1e-12)
    assert low < middle < high and middle == pytest.approx((low + high) / 2, rel=1e-12)


def test_noising_and_cleaning_are_inverse() -> None:
    schedule, x, noise = ddpm().schedule, tiny.normals(3, 1, 2, 2), tiny.normals(3, 1, 2, 2, seed=1)
    index = torch.tensor([0, 500, 999])
    found = schedule.clean(schedule.noisy(x, noise, index), noise, index)
    torch.testing.assert_close(found, x, rtol=1e-10, atol=1e-10)
