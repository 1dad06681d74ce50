"""Solvers against normal data, whose flow and reverse process are known, and against diffusers."""

import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from diffmoe.config import DDPMConfig, FlowConfig, SamplingConfig
from diffmoe.errors import ConfigError, NonFiniteError
from diffmoe.objective import DDPM, FieldOutput, Flow, Schedule
from diffmoe.sampling import Evaluation, build_solver
from diffmoe.sampling.solvers import DDIM, Ancestral, Dopri5, euler, heun
from gaussians import Gaussian

DATA = Gaussian(mean=0.4, deviation=0.5)
FLOW, DDPM_1000 = Flow(FlowConfig()), DDPM(DDPMConfig())
NOISE = tiny.normals(6, 1, 2, 2)


def velocity(x: Tensor, t: float | Tensor) -> FieldOutput:
    times = torch.as_tensor(t, dtype=x.dtype).expand(x.shape[0])
    return FieldOutput(DATA.velocity(x, times), None, ())


def error(solver: Any, steps: int) -> float:
    """How far the solver's end is from the exact one: the flow of normal data is affine."""
    end = solver(velocity, NOISE, FLOW.grid(steps))
    return (end - (DATA.mean + DATA.deviation * NOISE)).abs().max().item()


# --- flow ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("solver", "order"), [(euler, 1), (heun, 2)], ids=["euler", "heun"])
def test_a_solver_has_its_order(solver: Any, order: int) -> None:
    errors = [error(solver, steps) for steps in (20, 40, 80, 160)]
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2**order, rel=0.1)
    assert errors[-1] < (2e-2 if order == 1 else 1e-4)


def test_heun_beats_euler_for_the_same_evaluations() -> None:
    assert error(heun, 125) < 0.02 * error(euler, 250)


@pytest.mark.parametrize("tolerance", [1e-4, 1e-6, 1e-8])
def test_dopri5_keeps_its_tolerance(tolerance: float) -> None:
    assert error(Dopri5(rtol=tolerance, atol=tolerance), 1) < 10 * tolerance


def test_dopri5_never_asks_for_a_time_outside() -> None:
    """A network has learned nothing of times below 0, and guidance has no interval there."""
    asked: list[float] = []

    def watched(x: Tensor, t: float | Tensor) -> FieldOutput:
        asked.append(float(t))
        return velocity(x, t)

    for tolerance in (1e-1, 1e-3, 1e-6):
        Dopri5(rtol=tolerance, atol=tolerance)(watched, NOISE.float(), FLOW.grid(1))
    assert min(asked) >= 0 and max(asked) == 1 and min(asked) < 1e-6


def test_dopri5_ends_at_the_data_of_a_field_that_explodes_beyond() -> None:
    def field(x: Tensor, t: float | Tensor) -> FieldOutput:
        return FieldOutput(torch.ones_like(x) if float(t) >= 0 else x * torch.nan, None, ())

    end = Dopri5(rtol=1e-3, atol=1e-6)(field, NOISE, FLOW.grid(1))
    torch.testing.assert_close(end, NOISE - 1)


def test_tolerances_that_dopri5_cannot_keep_are_one_sentence() -> None:
    generator = torch.Generator().manual_seed(0)

    def rough(x: Tensor, t: float | Tensor) -> FieldOutput:
        noise = torch.randn(x.shape, generator=generator)  # as rounding is, only larger
        return FieldOutput(noise, None, ())

    with pytest.raises(ConfigError, match=r"sampling\.rtol 1e-30 and sampling\.atol 1e-30 are fin"):
        Dopri5(rtol=1e-30, atol=1e-30)(rough, NOISE.float(), FLOW.grid(1))


def test_dopri5_takes_no_more_steps_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffmoe.sampling.solvers._MOST_STEPS", 5)
    with pytest.raises(ConfigError, match="finer than dopri5 can keep"):
        Dopri5(rtol=1e-9, atol=1e-9)(velocity, NOISE, FLOW.grid(1))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_field_that_is_not_finite_is_one_sentence(bad: float) -> None:
    def field(x: Tensor, t: float | Tensor) -> FieldOutput:
        return FieldOutput(torch.full_like(x, bad if float(t) < 0.5 else 1.0), None, ())

    with pytest.raises(NonFiniteError, match="dopri5 met NaN or infinity"):
        Dopri5(rtol=1e-3, atol=1e-6)(field, NOISE.float(), FLOW.grid(1))


def test_an_assertion_of_the_field_is_not_explained_away() -> None:
    def field(x: Tensor, t: float | Tensor) -> FieldOutput:
        raise AssertionError("the field's own")

    with pytest.raises(AssertionError, match="the field's own"):
        Dopri5(rtol=1e-3, atol=1e-6)(field, NOISE, FLOW.grid(1))


@pytest.mark.parametrize(
    ("solver", "steps", "evaluations"),
    [(euler, 5, [0, 1, 2, 3, 4]), (heun, 3, [0, 0, 1, 1, 2, 2])],
    ids=["euler", "heun"],
)
def test_the_callback_sees_every_evaluation(solver: Any, steps: int, evaluations: list) -> None:
    seen: list[Evaluation] = []
    grid = FLOW.grid(steps)
    solver(velocity, NOISE, grid, callback=seen.append)
    assert [one.step for one in seen] == evaluations
    assert seen[0].time == 1 and torch.equal(seen[0].x, NOISE)
    second = [grid[one.step + place % 2].item() for place, one in enumerate(seen)]
    assert [one.time for one in seen] == (second if solver is heun else grid[:-1].tolist())
    for one in seen:
        assert torch.equal(one.output.value, velocity(one.x, one.time).value)


def test_dopri5_shows_its_evaluations_in_order() -> None:
    seen: list[Evaluation] = []
    Dopri5(rtol=1e-3, atol=1e-6)(velocity, NOISE, FLOW.grid(250), callback=seen.append)
    assert [one.step for one in seen] == list(range(len(seen))) and 7 < len(seen) < 200


def still(x: Tensor, t: float | Tensor) -> FieldOutput:
    return FieldOutput(torch.zeros_like(x), torch.zeros_like(x), ())


# --- DDPM on normal data ------------------------------------------------------------------------


class Posterior:
    """The exact noise, and the learned variance that makes each reverse step exact."""

    def __init__(self, times: Tensor) -> None:
        self.process = DDPM_1000.schedule.respaced(times.flip(0))
        self.place = {t: index for index, t in enumerate(times.flip(0).tolist())}

    def __call__(self, x: Tensor, t: float | Tensor) -> FieldOutput:
        step = self.place[int(t)]
        a = self.process.alpha_bar[step]
        epsilon = DATA.noise(x, a.expand(x.shape[0]))
        return FieldOutput(epsilon, torch.full_like(x, self.variance(step)), ())

    def variance(self, step: int) -> float:
        process = self.process
        a, least = process.alpha_bar[step], process.log_posterior_variance[step]
        clean = DATA.deviation**2 * (1 - a) / (a * DATA.deviation**2 + 1 - a)
        slope = process.alpha_bar_before[step].sqrt() * process.beta[step] / (1 - a)
        wanted = (least.exp() * (step > 0) + slope**2 * clean).log()
        return (2 * (wanted - least) / (process.beta[step].log() - least) - 1).item()


def moments(solver: Any, times: Tensor, start: tuple[float, float]) -> tuple[float, float]:
    """Mean and variance of what a linear sampler makes of normal noise, exactly.

    Image 0 is the mean; image k + 1 is moved by the k-th draw alone, by one deviation.
    """
    count = len(times) + 1
    x = torch.full((count + 1, 1, 1, 1), start[0], dtype=torch.float64)
    x[1] += start[1]

    def noise(step: int) -> Tensor:
        draws = torch.zeros(count + 1, 1, 1, 1, dtype=torch.float64)
        draws[step + 2] = 1
        return draws

    end = solver(Posterior(times), x, times, noise=noise).flatten()
    return end[0].item(), (end[1:] - end[0]).square().sum().item()


def true_start() -> tuple[float, float]:
    a = DDPM_1000.schedule.alpha_bar[-1].item()
    return a**0.5 * DATA.mean, (a * DATA.deviation**2 + 1 - a) ** 0.5


@pytest.mark.parametrize("steps", [4, 25, 250])
def test_ancestral_sampling_of_the_exact_posterior_is_exact(steps: int) -> None:
    """The last step gives the mean of x_0, whose variance is a little smaller than x_0's."""
    mean, variance = moments(Ancestral(DDPM_1000.schedule), DDPM_1000.grid(steps), true_start())
    a = DDPM_1000.schedule.alpha_bar[0].item()
    last = a * DATA.deviation**4 / (a * DATA.deviation**2 + 1 - a)
    assert mean == pytest.approx(DATA.mean, rel=1e-7)
    assert variance == pytest.approx(last, rel=1e-7)


def test_ancestral_sampling_from_pure_noise_reaches_the_data() -> None:
    mean, variance = moments(Ancestral(DDPM_1000.schedule), DDPM_1000.grid(250), (0.0, 1.0))
    assert mean == pytest.approx(DATA.mean, rel=1e-3)
    assert variance == pytest.approx(DATA.deviation**2, rel=1e-2)


def test_ddim_reaches_the_data_and_comes_nearer_with_more_steps() -> None:
    far = []
    for steps in (10, 50, 250, 1000):
        mean, variance = moments(DDIM(DDPM_1000.schedule, 0.0), DDPM_1000.grid(steps), (0.0, 1.0))
        assert mean == pytest.approx(DATA.mean, rel=1e-2)
        far.append(abs(variance**0.5 / DATA.deviation - 1))
    assert far == sorted(far, reverse=True) and far[-1] < 0.01


def test_ddim_with_all_of_its_noise_reaches_the_data() -> None:
    mean, variance = moments(DDIM(DDPM_1000.schedule, 1.0), DDPM_1000.grid(1000), (0.0, 1.0))
    assert mean == pytest.approx(DATA.mean, rel=1e-2)
    assert variance == pytest.approx(DATA.deviation**2, rel=0.03)


def test_ddim_with_full_noise_is_finite_where_rounding_leaves_less_than_nothing() -> None:
    process = DDPM(DDPMConfig(beta_end=0.5))
    times = process.grid(7)[-3:]
    end = DDIM(process.schedule, 1.0)(still, NOISE.float(), times, noise=draws_of(0))
    assert end.isfinite().all()


def test_ddim_without_noise_draws_none() -> None:
    def no_noise(step: int) -> Tensor:
        raise AssertionError("drew noise")

    times = DDPM_1000.grid(10)
    solver = DDIM(DDPM_1000.schedule, 0.0)
    one = solver(Posterior(times), NOISE, times, noise=no_noise)
    assert torch.equal(one, solver(Posterior(times), NOISE, times))


@pytest.mark.parametrize("solver", [Ancestral(DDPM_1000.schedule), DDIM(DDPM_1000.schedule, 0.5)])
def test_a_solver_that_needs_noise_says_so(solver: Any) -> None:
    times = DDPM_1000.grid(3)
    with pytest.raises(AssertionError, match="needs noise"):
        solver(Posterior(times), NOISE, times)


@pytest.mark.parametrize("solver", [Ancestral(DDPM_1000.schedule), DDIM(DDPM_1000.schedule, 1.0)])
def test_the_callback_sees_every_step(solver: Any) -> None:
    seen: list[Evaluation] = []
    times = DDPM_1000.grid(5)
    solver(Posterior(times), NOISE, times, noise=draws_of(0), callback=seen.append)
    assert [one.step for one in seen] == list(range(5))
    assert [one.time for one in seen] == times.tolist() == [999, 749, 500, 250, 0]


# --- diffusers as an oracle ---------------------------------------------------------------------


def draws_of(seed: int) -> Callable[[int], Tensor]:
    return lambda step: tiny.normals(*NOISE.shape, seed=1000 * seed + step).to(NOISE.dtype)


def answer(x: Tensor, t: float) -> Tensor:
    """Some noise and variance that depend on image and time, as a network's would."""
    noise = torch.tanh(x + 0.3 * torch.sin(torch.tensor(t / 100.0)))
    return torch.cat([noise, 0.8 * torch.cos(x * 2)], dim=1)


def field(x: Tensor, t: float | Tensor) -> FieldOutput:
    value, variance = answer(x, float(t)).chunk(2, dim=1)
    return FieldOutput(value, variance, ())


@pytest.fixture(scope="module")
def diffusers() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import diffusers
    return diffusers


def trained_betas() -> dict[str, Any]:
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).numpy()
    return {"num_train_timesteps": 1000, "trained_betas": betas, "clip_sample": False}


@pytest.mark.parametrize("steps", [1000, 250, 20])
def test_ancestral_sampling_is_that_of_diffusers(
    diffusers: Any, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = diffusers.DDPMScheduler(
        **trained_betas(), variance_type="learned_range", timestep_spacing="linspace"
    )
    scheduler.set_timesteps(steps)
    times, noise = DDPM_1000.grid(steps), draws_of(1)
    assert scheduler.timesteps.tolist() == times.tolist()
    module = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
    x = NOISE
    for step, t in enumerate(times.tolist()):
        monkeypatch.setattr(module, lambda *_, step=step, **__: noise(step))
        x = scheduler.step(answer(x, t), t, x).prev_sample
    found = Ancestral(DDPM_1000.schedule)(field, NOISE, times, noise=noise)
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_that_of_diffusers(diffusers: Any, eta: float) -> None:
    scheduler = diffusers.DDIMScheduler(**trained_betas(), timestep_spacing="trailing")
    scheduler.set_timesteps(50)
    times, noise, x = scheduler.timesteps, draws_of(2), NOISE
    for step, t in enumerate(times.tolist()):
        epsilon = answer(x, t)[:, :1]
        drawn = noise(step) if eta else None
        x = scheduler.step(epsilon, t, x, eta=eta, variance_noise=drawn).prev_sample
    found = DDIM(DDPM_1000.schedule, eta)(field, NOISE, times, noise=noise)
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-4)


def test_noising_is_that_of_diffusers(diffusers: Any) -> None:
    scheduler = diffusers.DDPMScheduler(**trained_betas())
    steps = torch.tensor([0, 1, 10, 500, 998, 999])
    wanted = scheduler.add_noise(NOISE, draws_of(3)(0), steps)
    found = Schedule.whole(DDPMConfig()).noisy(NOISE, draws_of(3)(0), steps)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


# --- the choice ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "sampler", "kind"),
    [
        (FLOW, "euler", euler),
        (FLOW, "heun", heun),
        (FLOW, "dopri5", Dopri5(1e-3, 1e-6)),
        (DDPM_1000, "ancestral", Ancestral),
        (DDPM_1000, "ddim", DDIM),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_name_the_solver(objective: Any, sampler: str, kind: Any) -> None:
    settings = SamplingConfig(sampler=sampler, eta=0.3 if sampler == "ddim" else 0.0)  # type: ignore[arg-type]
    solver = build_solver(settings, objective)
    assert solver == kind or isinstance(solver, kind)
    assert not isinstance(solver, DDIM) or solver.eta == 0.3
