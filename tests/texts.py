"""Runs from captions, small enough to train in a test."""

from typing import Any

import torch

from diffmoe.captions import Captions
from diffmoe.config import FeatureText, ModelConfig, RunConfig, ScenesData, WordText
from diffmoe.presets import preset
from runs import changed
from tiny import ROUTERS

WORDS = WordText(tokens=6, words=40, width=8, layers=1, heads=2)
FEATURES = FeatureText(tokens=6, width=12)


def text_model(text: Any = WORDS, router: str = "batch_pool", **changes: Any) -> ModelConfig:
    """A network of two blocks that reads captions and sees 8 x 8 pixels."""
    small: dict[str, Any] = {
        "width": 16,
        "depth": 2,
        "heads": 2,
        "num_classes": 0,
        "text": text,
        "router": ROUTERS[router],
        "pool_images": 4,
    }
    return changed(preset("digits-diffmoe").model, small | changes)


def text_run(router: str = "batch_pool", **changes: Any) -> RunConfig:
    """A tiny run on scenes; `changes` are named `group__field`."""
    small: dict[str, Any] = {
        "model.width": 16,
        "model.depth": 2,
        "model.heads": 2,
        "model.patch_size": 8,
        "model.router": ROUTERS[router],
        "model.pool_images": 8,
        "model.text": WordText(tokens=20, words=96, width=8, layers=1, heads=2),
        "data": ScenesData(count=64),
        "training.global_batch": 16,
        "training.warmup_steps": 2,
        "training.decay_steps": 40,
        "loop.steps": 4,
        "loop.log_every": 2,
        "loop.checkpoint_every": 2,
        "sampling.steps": 3,
        "sampling.batch": 4,
    }
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return changed(preset("scenes-diffmoe"), small | named)


def some_captions(text: Any, lengths: list[int], seed: int = 0) -> Captions:
    """Random captions of so many tokens."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(text.tokens) < torch.tensor(lengths)[:, None]
    if isinstance(text, WordText):
        return Captions(torch.randint(2, text.words, mask.shape, generator=generator), mask)
    return Captions(torch.randn(*mask.shape, text.width, generator=generator), mask)
