"""What a model costs: parameters, operations and seconds, beside its dense twin."""

import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from diffmoe.analysis import Cost
from diffmoe.checkpoint import LoadedRun
from diffmoe.config import SamplingConfig
from diffmoe.model import activated_parameters, count_flops, count_parameters

__all__ = ["cost_of"]

_GIGA = 1e9


@dataclass(frozen=True)
class _Line:
    """A number under its name for programs, and how readers see it."""

    key: str
    number: float
    name: str
    value: str
    meaning: str


def cost_of(
    run: LoadedRun,
    settings: SamplingConfig,
    capacity: float,
    *,
    evaluations_per_image: float,
    timings: Mapping[int, float],
) -> Cost:
    """Parameters, operations and seconds of the images that `settings` draw.

    `capacity` is the realised one, over everything executed; `evaluations_per_image` counts both
    branches of guidance, where both are evaluated; `timings` are seconds per image by batch size.
    """
    lines = [
        *_parameters(run, capacity),
        *_operations(run, settings, capacity, evaluations_per_image),
    ]
    numbers = {line.key: line.number for line in lines}
    lines += _seconds(timings, numbers["image_gflops"])
    return Cost(
        rows=[(line.name, line.value, line.meaning) for line in lines],
        numbers={line.key: line.number for line in lines},
    )


def _parameters(run: LoadedRun, capacity: float) -> Iterator[_Line]:
    model = run.config.model
    activated = activated_parameters(model, capacity)
    for key, number, name, meaning in (
        ("total_parameters", count_parameters(model).total, "parameters", "of the whole network"),
        (
            "eq40_parameters",
            activated["eq40"],
            "activated parameters",
            f"by the paper's Eq. 40, at capacity {capacity:.3f}",
        ),
        (
            "executed_parameters",
            activated["executed"],
            "executed parameters",
            "the same, routers and predictors counted whole",
        ),
    ):
        yield _Line(key, float(number), name, f"{number / 1e6:,.3f} M", meaning)


def _operations(
    run: LoadedRun, settings: SamplingConfig, capacity: float, evaluations: float
) -> Iterator[_Line]:
    flops = count_flops(run.config.model)
    own = flops.at(capacity)
    how = f"{settings.steps} steps of {settings.sampler}, guidance {settings.guidance:g}"
    if settings.sampler == "dopri5":
        how = f"dopri5 chooses its steps, guidance {settings.guidance:g}"
    yield _gflops("dense", flops.dense, "dense evaluation", "one image, every FFN dense")
    meaning = f"one image at capacity {capacity:.3f}, {own / flops.dense:.1%} of dense"
    yield _gflops("evaluation", own, "evaluation", meaning)
    meaning = f"routers and predictors, {flops.routing / own:.1%} of the evaluation"
    yield _gflops("routing", flops.routing, "routing", meaning)
    number = f"{evaluations:,.4g}"
    yield _Line("evaluations_per_image", evaluations, "evaluations per image", number, how)
    yield _gflops("image", own * evaluations, "operations per image", "a multiply-add is two")


def _seconds(timings: Mapping[int, float], operations: float) -> Iterator[_Line]:
    """Seconds per image and what they make of the machine; `operations` of an image in GFLOP."""
    for size, seconds in timings.items():
        speed = operations / seconds
        yield _Line(
            f"batch_{size}_seconds",
            seconds,
            f"seconds per image, batch of {size}",
            f"{seconds:.3g} s",
            f"wall clock, median; {_machine()}; without decoding",
        )
        yield _Line(
            f"batch_{size}_gflops_per_second",
            speed,
            f"speed, batch of {size}",
            f"{speed:.3g} GFLOP/s",
            "operations per image / seconds per image",
        )


def _machine() -> str:
    threads = torch.get_num_threads()
    own = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return f"{own}, {threads} CPU thread{'s' if threads > 1 else ''}"


def _gflops(key: str, operations: float, name: str, meaning: str) -> _Line:
    number = operations / _GIGA
    shown = f"{number:,.4g} GFLOP" if number >= 1 else f"{1e3 * number:,.4g} MFLOP"
    return _Line(f"{key}_gflops", number, name, shown, meaning)
