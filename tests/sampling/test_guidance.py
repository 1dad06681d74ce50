"""Classifier-free guidance: its formula, its interval of times and what it costs."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
import trained
from diffmoe.config import FlowConfig, SamplingConfig
from diffmoe.errors import ConfigError
from diffmoe.objective import FieldOutput, Flow
from diffmoe.sampling import Moment, generate, guided

X = tiny.normals(3, 4, 2, 2)


class Fields:
    """A conditional field and one of both branches; they count their calls."""

    def __init__(self, with_variance: bool = False) -> None:
        self.calls: list[str] = []
        self.with_variance = with_variance

    def _output(self, value: Tensor) -> FieldOutput:
        return FieldOutput(value, value + 1 if self.with_variance else None, ())

    def conditional(self, x: Tensor, t: float | Tensor) -> FieldOutput:
        self.calls.append("conditional")
        return self._output(2 * x + float(t))

    def both(self, x: Tensor, t: float | Tensor) -> FieldOutput:
        self.calls.append("both")
        first, second = x.chunk(2)
        assert torch.equal(first, second)
        return self._output(torch.cat([2 * first + float(t), -second]))

    def guided(self, level: Any = lambda t: t, **settings: Any) -> Any:
        return guided(self.conditional, self.both, SamplingConfig(**settings), level)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.5, 4.0])
def test_guidance_leads_away_from_no_condition(scale: float) -> None:
    output = Fields().guided(guidance=scale)(X, 0.5)
    torch.testing.assert_close(output.value, -X + scale * (2 * X + 0.5 + X))
    assert output.branches == 2


def test_scale_one_evaluates_one_branch() -> None:
    fields = Fields()
    output = fields.guided(guidance=1.0)(X, 0.5)
    assert fields.calls == ["conditional"] and output.branches == 1
    assert torch.equal(output.value, 2 * X + 0.5)


def test_outside_its_interval_the_condition_alone_is_evaluated() -> None:
    fields = Fields()
    field = fields.guided(guidance=3.0, guidance_start=0.8, guidance_end=0.2)
    branches = [field(X, t).branches for t in (1.0, 0.81, 0.8, 0.5, 0.2, 0.19, 0.0)]
    assert branches == [1, 1, 2, 2, 2, 1, 1]
    assert fields.calls == ["both" if n == 2 else "conditional" for n in branches]
    assert torch.equal(field(X, 0.9).value, 2 * X + 0.9)


@pytest.mark.parametrize("steps", [3, 7, 10, 49, 250])
def test_a_time_of_the_grid_that_is_an_edge_up_to_rounding_lies_inside(steps: int) -> None:
    grid = Flow(FlowConfig()).grid(steps).tolist()
    for at, t in enumerate(grid[1:-1], start=1):
        edge = round(1 - at / steps, 12)  # as it is typed
        for interval in ({"guidance_start": edge}, {"guidance_end": edge}):
            assert Fields().guided(guidance=3.0, **interval)(X, t).branches == 2
    field = Fields().guided(guidance=3.0, guidance_start=0.5, guidance_end=0.5)
    assert [field(X, 0.5 + d).branches for d in (-1e-8, -1e-10, 1e-10, 1e-8)] == [1, 2, 2, 1]


def test_the_interval_is_a_fraction_of_the_objectives_time() -> None:
    field = Fields().guided(lambda t: t / 999, guidance=3.0, guidance_start=0.5)
    assert [field(X, t).branches for t in (999, 500, 499, 0)] == [1, 1, 2, 2]


def test_only_the_channels_asked_for_are_guided() -> None:
    output = Fields().guided(guidance=4.0, guided_channels=3)(X, 0.5)
    conditional = 2 * X + 0.5
    torch.testing.assert_close(output.value[:, :3], (-X + 4 * (conditional + X))[:, :3])
    assert torch.equal(output.value[:, 3:], conditional[:, 3:])


def test_the_variance_is_that_of_the_conditional_branch() -> None:
    output = Fields(with_variance=True).guided(guidance=4.0)(X, 0.5)
    assert output.variance is not None and torch.equal(output.variance, 2 * X + 1.5)


# --- in a sampling run --------------------------------------------------------------------------

LABELS, SEEDS = [3, 1, 4, 1], [0, 1, 2, 3]


def batches(run: Any, labels: Sequence[int] = LABELS) -> tuple[list[int], list[Tensor]]:
    """Images of each forward pass of a sampling run, and the classes of each."""
    model, sizes, classes = trained.network(run), [], []

    def count(module: Any, args: tuple[Tensor, ...]) -> None:
        sizes.append(len(args[0]))
        classes.append(args[2])

    model.register_forward_pre_hook(count)
    generate(model, run, labels, SEEDS[: len(labels)])
    return sizes, classes


@pytest.mark.parametrize("sampler", ["euler", "heun", "ancestral", "ddim"])
def test_guidance_doubles_the_forward_passes_inside_its_interval_only(sampler: str) -> None:
    each = 2 if sampler == "heun" else 1
    assert batches(trained.config(sampler=sampler))[0] == [4] * 4 * each
    assert batches(trained.config(sampler=sampler, guidance=2.0))[0] == [8] * 4 * each
    part = trained.config(
        sampler=sampler, guidance=2.0, guidance_start=0.7, guidance_end=0.3, steps=5
    )
    # Times of five steps: 1, .8, .6, .4, .2 (0) for flow and 1, .75, .5, .25, 0 for DDPM.
    inside = {"euler": [4, 4, 8, 8, 4], "heun": [4, 4, 4, 8, 8, 8, 8, 4, 4, 4]}
    assert batches(part)[0] == inside.get(sampler, [4, 4, 8, 4, 4])


def test_the_unconditional_branch_has_the_null_class() -> None:
    _, classes = batches(trained.config(guidance=2.0))
    assert all(labels.tolist() == [*LABELS, 10, 10, 10, 10] for labels in classes)
    _, classes = batches(trained.config())
    assert all(labels.tolist() == LABELS for labels in classes)


def samples(**settings: Any) -> Tensor:
    run = trained.config(guidance=2.0, **settings)
    return generate(trained.network(run), run, LABELS, SEEDS)


@pytest.mark.parametrize("sampler", ["euler", "ancestral"])
def test_in_token_selection_joint_and_separate_pools_are_the_same(sampler: str) -> None:
    one, other = (samples(sampler=sampler, guidance_pool=p) for p in ("joint", "separate"))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("policy", ["ema", "static"])
def test_in_pool_selection_they_differ(policy: str) -> None:
    one, other = (
        samples(selection="pool", policy=policy, guidance_pool=p) for p in ("joint", "separate")
    )
    assert (one - other).abs().max() > 1e-3


def test_guidance_changes_the_image() -> None:
    run = trained.config()
    plain = generate(trained.network(run), run, LABELS, SEEDS)
    assert (samples() - plain).abs().max() > 1e-2


def test_to_guide_as_many_channels_as_there_are_is_to_guide_them_all() -> None:
    assert torch.equal(samples(guided_channels=1), samples())


def test_a_guided_run_shows_both_branches_to_the_callback() -> None:
    seen: list[Moment] = []
    run = trained.config(guidance=2.0, batch=3)
    generate(trained.network(run), run, LABELS, SEEDS, callback=seen.append)
    assert [one.images for one in seen] == [range(3)] * 4 + [range(3, 4)] * 4
    for one in seen:
        assert one.labels.tolist() == LABELS[one.images.start : one.images.stop]
        assert one.evaluation.output.branches == 2
        rows = one.evaluation.output.routing[0].rows
        assert rows == 2 * len(one.images) * run.model.tokens


@pytest.mark.parametrize(
    "bad",
    [
        {"guidance": -1.0},
        {"guidance": float("nan")},
        {"guidance": float("inf")},
        {"guidance_start": 0.2, "guidance_end": 0.5},
        {"guidance_start": 1.5},
        {"guidance_end": float("nan")},
    ],
)
def test_bad_guidance_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        SamplingConfig(**bad)  # type: ignore[arg-type]
