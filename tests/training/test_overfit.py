"""The parts work together: a tiny model learns four digits by heart."""

import pytest
import torch

from diffmoe.config import RunConfig
from diffmoe.data import Batch, open_source
from diffmoe.objective import build_objective
from diffmoe.sampling import generate
from diffmoe.training import TrainingState, make_draws, new_state, train_step
from runs import run_config

STEPS, TAIL = 600, 50


def four_digits(config: RunConfig) -> Batch:
    """The first scans of four classes, each four times."""
    source = open_source(config)
    index = [int((source.labels == digit).nonzero()[0]) for digit in (0, 1, 4, 7)] * 4
    images = torch.stack([source.load(i, False) for i in index])
    return Batch(images, source.labels[index], 0)


def learned(config: RunConfig, batch: Batch) -> tuple[TrainingState, float]:
    """The state after training, and the mean denoising loss of the last steps."""
    state, objective = new_state(config, torch.device("cpu")), build_objective(config.objective)
    losses = []
    for step in range(STEPS):
        found = train_step(state, objective, [batch._replace(first=16 * step)], config)
        losses.append(found.terms["mse"])
    return state, torch.stack(losses[-TAIL:]).mean().item()


def mean_predictor(config: RunConfig, batch: Batch) -> float:
    """The loss of the best prediction that knows the data's mean only."""
    objective = build_objective(config.objective)
    noise = [
        make_draws(objective, config.training.seed, batch._replace(first=16 * step)).noise
        for step in range(STEPS - TAIL, STEPS)
    ]
    centred = batch.x - batch.x.mean(dim=0)
    return torch.stack([(n - centred).square().mean() for n in noise]).mean().item()


@pytest.mark.parametrize("router", ["batch_pool", "dense"])
def test_four_digits_are_learned_by_heart(router: str) -> None:
    config = run_config(
        router,
        model__width=32,
        training__learning_rate=3e-3,
        training__warmup_steps=20,
        training__decay_steps=STEPS,
        training__label_dropout=0.0,
        training__ema_decay=0.98,
        sampling__steps=20,
        sampling__guidance=1.0,
    )
    batch = four_digits(config)
    state, loss = learned(config, batch)
    assert loss < 0.2 * mean_predictor(config, batch)
    labels = batch.label[:4].tolist() * 4
    samples = generate(state.average, config, labels, range(16))
    distance = (samples[:, None] - batch.x[None, :4]).square().mean(dim=(2, 3, 4)).sqrt()
    wanted = torch.arange(4).repeat(4)
    own = distance.gather(1, wanted[:, None])[:, 0]
    apart = (batch.x[:4, None] - batch.x[None, :4]).square().mean(dim=(2, 3, 4)).sqrt()
    assert (distance.argmin(dim=1) == wanted).sum() >= 15
    assert own.quantile(0.9) < 0.3 * apart[apart > 0].median()
