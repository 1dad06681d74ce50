"""An image depends on its seed, its label and the settings alone."""

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import trained
from diffmoe.codec import Pixels
from diffmoe.config import SamplingConfig
from diffmoe.errors import ConfigError, NonFiniteError
from diffmoe.objective import build_objective
from diffmoe.randomness import normals
from diffmoe.sampling import (
    Moment,
    balanced_labels,
    build_solver,
    check_request,
    decode,
    generate,
    sampling_plan,
)

LABELS, SEEDS = [3, 1, 4, 1, 5, 9, 2], [11, 5, 3, 7, 2**62, 0, 6]
# Selections and solvers in which an image has no mates.
ALONE = [
    {"sampler": "euler"},
    {"sampler": "heun"},
    {"sampler": "ancestral"},
    {"sampler": "ddim", "eta": 0.5},
    {"sampler": "euler", "guidance": 1.5},
    {"sampler": "ancestral", "guidance": 1.5},
    {"sampler": "euler", "selection": "gate"},
    {"sampler": "euler", "selection": "image"},
]


def samples(
    run: Any, labels: list[int] = LABELS, seeds: list[int] = SEEDS, **changes: Any
) -> Tensor:
    settings = replace(run.sampling, **changes)
    return generate(trained.network(run), run, labels, seeds, settings=settings)


def worst(one: Tensor, other: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return ((one - other).abs().max() / other.abs().max()).item()


def products_are_steady() -> bool:
    """Whether a row's product has the same bits in every batch on this machine."""
    generator = torch.Generator().manual_seed(0)
    for wide, long in ((64, 256), (256, 64), (64, 64)):
        rows = torch.randn(224, wide, generator=generator)
        weight = torch.randn(long, wide, generator=generator)
        whole = rows @ weight.T
        if not all(torch.equal(rows[:n] @ weight.T, whole[:n]) for n in range(16, 224)):
            return False
    return True


@pytest.mark.parametrize("settings", ALONE, ids=str)
def test_an_image_is_the_same_in_any_batch(settings: dict[str, Any]) -> None:
    """The same bits on this machine's CPU kernels if they are steady, else within 1e-5."""
    run = trained.config(**settings)
    whole = samples(run)
    assert len(whole.flatten(1).unique(dim=0)) == len(LABELS)
    limit = 0 if products_are_steady() else 1e-5
    for batch in range(1, 7):
        assert worst(samples(run, batch=batch), whole) <= limit
    order = [4, 2, 6, 0, 5, 1, 3]
    mixed = samples(run, [LABELS[i] for i in order], [SEEDS[i] for i in order], batch=3)
    assert worst(mixed, whole[order]) <= limit
    mates = samples(run, [8, 1, 0], [100, 5, 200])
    assert worst(mates[1], whole[1]) <= limit


def test_in_pool_selection_it_depends_on_its_mates() -> None:
    run = trained.config(selection="pool")
    whole = samples(run)
    assert worst(samples(run, batch=1), whole) > 1e-3
    assert worst(samples(run, [8, 1, 0], [100, 5, 200])[1], whole[1]) > 1e-3
    assert torch.equal(samples(run), whole)


DOPRI5 = {"sampler": "dopri5", "rtol": 0.3, "atol": 0.3}


def test_dopri5_integrates_each_image_by_itself() -> None:
    """The same bits whatever the machine: an image never shares a batch."""
    run = trained.config(**DOPRI5)
    whole = samples(run, LABELS[:4], SEEDS[:4])
    for index in range(4):
        alone = samples(run, [LABELS[index]], [SEEDS[index]], batch=1)
        assert torch.equal(alone[0], whole[index])


def test_a_shared_step_of_dopri5_depends_on_the_batch() -> None:
    run = trained.config(**DOPRI5, shared_step=True)
    together = samples(run, LABELS[:4], SEEDS[:4])
    apart = samples(run, LABELS[:4], SEEDS[:4], shared_step=False)
    assert worst(together, apart) > 1e-4
    assert torch.equal(samples(run, LABELS[:4], SEEDS[:4], batch=1), apart)
    samples(run, LABELS[:2], SEEDS[:2], selection="pool")


@pytest.mark.parametrize("sampler", ["euler", "ancestral"])
def test_the_same_request_gives_the_same_bits_whatever_the_global_generator(sampler: str) -> None:
    run = trained.config(sampler=sampler)
    torch.manual_seed(1)
    one = samples(run)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(samples(run), one) and torch.equal(torch.get_rng_state(), state)


def test_seed_and_label_both_matter() -> None:
    images = samples(trained.config(), [1, 1, 2], [0, 1, 0])
    assert (images[0] - images[1]).abs().max() > 0.1 and (images[0] - images[2]).abs().max() > 1e-3


def test_an_image_begins_at_the_noise_of_its_seed() -> None:
    seen: list[Moment] = []
    run = trained.config()
    generate(trained.network(run), run, [1, 2], [9, 4], callback=seen.append)
    for index, seed in enumerate((9, 4)):
        start = normals(seed, "sampling", 0, 1, (1, 8, 8))
        assert torch.equal(seen[0].evaluation.x[index : index + 1], start)


def test_each_step_draws_the_next_row_of_its_seeds_own_stream() -> None:
    """Row 0 is where an image begins, row k + 1 the noise of step k."""
    run = trained.config(sampler="ancestral")
    model, objective = trained.network(run), build_objective(run.objective)
    plan = sampling_plan(model, run.sampling, 2)

    def noise(step: int) -> Tensor:
        rows = [normals(seed, "sampling", step + 1, 1, (1, 8, 8)) for seed in (9, 4)]
        return torch.cat(rows)

    with torch.no_grad():
        wanted = build_solver(run.sampling, objective)(
            objective.field(model, torch.tensor([1, 2]), plan),
            noise(-1),
            objective.grid(4),
            noise=noise,
        )
    assert torch.equal(generate(model, run, [1, 2], [9, 4]), wanted)


def test_samples_are_plain_float32_in_the_order_asked_for() -> None:
    run = trained.config(precision="bfloat16")
    images = samples(run)
    assert images.dtype == torch.float32 and images.shape == (7, 1, 8, 8)
    assert not images.requires_grad and bool(images.isfinite().all())
    assert worst(images, samples(run, precision="float32")) < 0.5


def test_half_precision_is_not_float32() -> None:
    run = trained.config()
    assert worst(samples(run, precision="bfloat16"), samples(run)) > 1e-4


def test_the_model_is_left_as_it_was() -> None:
    run = trained.config()
    model = trained.network(run)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generate(model, run, [1], [0])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# --- requests -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "seeds", "named"),
    [
        ([10], [0], r"label 10 is the null class .* use 0\.\.9"),
        ([11], [0], r"label 11 is out of range .* classes 0\.\.9"),
        ([3, -1], [0, 1], "label -1 is out of range"),
        ([2.5], [0], "label 2.5 is no whole number"),
        (["3"], [0], "label '3' is no whole number"),
        ([3], [-1], "seed -1 is out of range"),
        ([3], [2**63], "seed 9223372036854775808 is out of range"),
        ([3], [0.5], "seed 0.5 is no whole number"),
        ([3, 3], [0], "2 labels and 1 seed do not pair up"),
        ([], [], "no images are asked for"),
    ],
)
def test_a_bad_request_is_one_sentence(labels: list, seeds: list, named: str) -> None:
    run = trained.config()
    with pytest.raises(ConfigError, match=named):
        check_request(run, labels, seeds)
    with pytest.raises(ConfigError, match=named):
        generate(trained.network(run), run, labels, seeds)


def test_labels_and_seeds_may_come_from_arrays() -> None:
    plain = samples(trained.config(), [3, 1], [2, 5])
    for make in (np.array, torch.tensor, tuple):
        assert torch.equal(samples(trained.config(), make([3, 1]), make([2, 5])), plain)


@pytest.mark.parametrize(
    ("trained_as", "asked", "named"),
    [
        ("ancestral", {"sampler": "euler"}, "sampler euler does not solve objective ddpm"),
        ("euler", {"sampler": "ddim"}, "sampler ddim does not solve objective flow"),
        ("ancestral", {"sampler": "ancestral", "steps": 1001}, "steps 1001 is more than"),
    ],
)
def test_settings_for_another_objective_are_refused(
    trained_as: str, asked: dict[str, Any], named: str
) -> None:
    run = trained.config(sampler=trained_as)
    with pytest.raises(ConfigError, match=named):
        generate(trained.network(run), run, [1], [0], settings=SamplingConfig(**asked))


@pytest.mark.parametrize("sampler", ["euler", "ancestral", "dopri5"])
def test_an_image_that_is_no_number_is_refused(sampler: str) -> None:
    """It would become a black picture."""
    run = trained.config(sampler=sampler)
    model = trained.network(run)
    model.labels.table.weight[4] = torch.nan
    generate(model, run, [3, 1], [0, 1])
    told = "dopri5 met NaN" if sampler == "dopri5" else r"image 5 \(label 4, seed 7\) is not finite"
    with pytest.raises(NonFiniteError, match=told) as caught:
        generate(model, run, [3, 3, 1, 1, 0, 4, 4], [0, 1, 2, 3, 4, 7, 8])
    assert caught.value.exit_code == 4


def test_a_batch_too_large_for_the_device_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(sys.modules["diffmoe.sampling.generate"], "_batch", full)
    run = trained.config(batch=50)
    with pytest.raises(ConfigError, match=r"sampling\.batch 50 is too large for the memory"):
        generate(trained.network(run), run, [1], [0])


@pytest.mark.parametrize("count", [-1, 0, 10**12])
def test_a_count_of_images_is_bounded(count: int) -> None:
    with pytest.raises(ConfigError, match=rf"count {count} is not in \[1, 1000000\]"):
        balanced_labels(count, 10)


def test_balanced_labels_give_every_class_its_turn() -> None:
    assert balanced_labels(7, 3) == [0, 1, 2, 0, 1, 2, 0]
    assert np.bincount(balanced_labels(1000, 10)).tolist() == [100] * 10


def test_decoding_in_parts_gives_8_bit_images_in_order() -> None:
    latents = torch.linspace(-1.5, 1.5, 70).view(70, 1, 1, 1)
    parts = list(decode(Pixels(), latents, torch.device("cpu"), batch=32))
    assert [len(part) for part in parts] == [32, 32, 6]
    images = torch.cat(parts).flatten()
    assert images.dtype == torch.uint8
    wanted = [round((min(1, max(-1, v)) + 1) * 127.5) for v in latents.flatten().tolist()]
    assert images.tolist() == wanted
