"""Solvers from noise to data, all of one signature: (field, x, times, noise, callback) -> x.

`times` descend from noise to data. `noise(step)` gives each image its own normal draw.
"""

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from diffmoe.config import SamplingConfig
from diffmoe.errors import ConfigError, NonFiniteError
from diffmoe.objective import DDPM, Field, FieldOutput, Objective, Schedule

__all__ = ["Evaluation", "Solver", "build_solver", "evaluations"]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of the field, as a callback sees it."""

    step: int  # step of the solver, from 0 at the noise
    time: float  # in the objective's own time
    x: Tensor  # noisy images (B, C, H, W)
    output: FieldOutput


_GAVE_UP = re.compile("underflow in dt|non-finite|max_num_steps")  # torchdiffeq's assertions
_MOST_STEPS = 10_000  # of dopri5: a hundred times what its default tolerances take

Callback = Callable[[Evaluation], None]
Noise = Callable[[int], Tensor]


class Solver(Protocol):
    """Integrates a field from `times[0]` to `times[-1]`."""

    def __call__(
        self,
        field: Field,
        x: Tensor,
        times: Tensor,
        *,
        noise: Noise | None = None,
        callback: Callback | None = None,
    ) -> Tensor: ...


def _watched(field: Field, callback: Callback | None) -> Callable[[int, Tensor, float], Tensor]:
    """The field's value alone, with every evaluation shown to the callback."""

    def evaluate(step: int, x: Tensor, t: float) -> Tensor:
        output = field(x, t)
        if callback is not None:
            callback(Evaluation(step, t, x, output))
        return output.value

    return evaluate


def euler(
    field: Field,
    x: Tensor,
    times: Tensor,
    *,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """First order: one evaluation a step."""
    velocity, grid = _watched(field, callback), times.tolist()
    for step, (t, following) in enumerate(itertools.pairwise(grid)):
        x = x + (following - t) * velocity(step, x, t)
    return x


def heun(
    field: Field,
    x: Tensor,
    times: Tensor,
    *,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Second order: two evaluations a step, the last step included (125 steps = 250)."""
    velocity, grid = _watched(field, callback), times.tolist()
    for step, (t, following) in enumerate(itertools.pairwise(grid)):
        first = velocity(step, x, t)
        second = velocity(step, x + (following - t) * first, following)
        x = x + (following - t) * 0.5 * (first + second)
    return x


@dataclass(frozen=True)
class Dopri5:
    """Dormand-Prince 4(5) with adaptive steps, by torchdiffeq; ignores all but the end times.

    The step size comes from the error of the whole batch: give it one image at a time where an
    image must not depend on its batch mates.
    """

    rtol: float
    atol: float

    def __call__(
        self,
        field: Field,
        x: Tensor,
        times: Tensor,
        *,
        noise: Noise | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """The state at the last time."""
        try:
            from torchdiffeq import odeint
        except ImportError as error:
            raise ConfigError(
                "sampling.sampler dopri5 needs the package torchdiffeq",
                remedy='pip install "diffmoe[ode]", or use euler or heun',
            ) from error
        velocity, evaluations = _watched(field, callback), itertools.count()
        ends = times[[0, -1]].to(x.device, torch.float32)

        def slope(t: Tensor, state: Tensor) -> Tensor:
            value = velocity(next(evaluations), state, float(t))
            _refuse_non_finite(value, state)
            return value

        # Without `step_t` its last step evaluates the field beyond the data.
        options = {"step_t": ends[-1:], "max_num_steps": _MOST_STEPS}
        try:
            path = odeint(
                slope, x, ends, method="dopri5", rtol=self.rtol, atol=self.atol, options=options
            )
        except AssertionError as error:
            if not _GAVE_UP.match(str(error)):
                raise
            raise ConfigError(
                f"sampling.rtol {self.rtol} and sampling.atol {self.atol} are finer than dopri5 can"
                " keep in float32",
                remedy="use 1e-3 and 1e-6, or the sampler heun",
            ) from error
        return path[-1]


def _refuse_non_finite(value: Tensor, state: Tensor) -> None:
    """Tell a broken field, of a sound state, from the NaN that tolerances bring about."""
    if state.isfinite().all() and not value.isfinite().all():
        raise NonFiniteError(
            "dopri5 met NaN or infinity", remedy="lower sampling.guidance, or use other weights"
        )


@dataclass(frozen=True)
class Ancestral:
    """DDPM's ancestral sampling over the respaced process with the learned variance."""

    schedule: Schedule

    def __call__(
        self,
        field: Field,
        x: Tensor,
        times: Tensor,
        *,
        noise: Noise | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """Draws x_before ~ N(mean, learned variance) at each step; the last adds no noise."""
        assert noise is not None, "ancestral sampling needs noise"
        process = self.schedule.respaced(times.flip(0))
        for step, t in enumerate(times.tolist()):
            output = field(x, t)
            if callback is not None:
                callback(Evaluation(step, t, x, output))
            index = _index(len(times) - 1 - step, x)
            mean = process.posterior_mean(process.clean(x, output.value, index), x, index)
            if step == len(times) - 1:
                return mean
            assert output.variance is not None, "ancestral sampling needs a learned variance"
            deviation = torch.exp(0.5 * process.log_variance(output.variance, index))
            x = mean + deviation * noise(step)
        return x


@dataclass(frozen=True)
class DDIM:
    """Song et al. 2021 over the respaced process; eta 0 is deterministic."""

    schedule: Schedule
    eta: float

    def __call__(
        self,
        field: Field,
        x: Tensor,
        times: Tensor,
        *,
        noise: Noise | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """The last step's x_0."""
        assert noise is not None or self.eta == 0, "DDIM with eta > 0 needs noise"
        process = self.schedule.respaced(times.flip(0))
        epsilon = _watched(field, callback)
        for step, t in enumerate(times.tolist()):
            index = _index(len(times) - 1 - step, x)
            predicted = epsilon(step, x, t)
            clean = process.clean(x, predicted, index)
            before = process.at(process.alpha_bar_before, index, x)
            deviation = self.eta * torch.exp(
                0.5 * process.at(process.log_posterior_variance, index, x)
            )
            deviation = deviation * (before < 1)
            left = (1 - before - deviation**2).clamp_min(0)  # rounding may go below
            x = before.sqrt() * clean + left.sqrt() * predicted
            if noise is not None and self.eta > 0:
                x = x + deviation * noise(step)
        return x


def _index(step: int, x: Tensor) -> Tensor:
    return torch.full((x.shape[0],), step, device=x.device)


def evaluations(settings: SamplingConfig) -> int | None:
    """Evaluations of the field for an image; None where the solver chooses its steps."""
    return {"heun": 2 * settings.steps, "dopri5": None}.get(settings.sampler, settings.steps)


def build_solver(settings: SamplingConfig, objective: Objective) -> Solver:
    """The solver `settings.sampler` names."""
    if isinstance(objective, DDPM):
        if settings.sampler == "ddim":
            return DDIM(objective.schedule, settings.eta)
        return Ancestral(objective.schedule)
    if settings.sampler == "dopri5":
        return Dopri5(settings.rtol, settings.atol)
    return {"euler": euler, "heun": heun}[settings.sampler]
