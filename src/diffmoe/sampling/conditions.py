"""What the numbers of a request stand for: classes of a model, or prompts given beside them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from diffmoe.captions import Captions
from diffmoe.config import RunConfig
from diffmoe.errors import ConfigError
from diffmoe.model import Condition

__all__ = ["ClassConditions", "Conditions", "PromptConditions", "conditions_of", "join", "some_of"]


class Conditions(Protocol):
    """Conditions by number, as a model takes them."""

    @property
    def count(self) -> int:
        """Numbers 0 .. count - 1 stand for something."""

    def of(self, labels: Sequence[int], device: torch.device) -> Condition:
        """The condition of an image for each number."""

    def nothing(self, images: int, device: torch.device) -> Condition:
        """What guidance steers away from: no condition, or the negative prompt."""


@dataclass(frozen=True)
class ClassConditions:
    """Classes are their numbers, and the null class is the next one."""

    count: int

    def of(self, labels: Sequence[int], device: torch.device) -> Condition:
        """The numbers themselves."""
        return torch.tensor(labels, device=device)

    def nothing(self, images: int, device: torch.device) -> Condition:
        """The null class."""
        return torch.full((images,), self.count, device=device)


@dataclass(frozen=True)
class PromptConditions:
    """Prompts that a text encoder has read; an empty one is no condition."""

    prompts: Captions
    negative: Captions | None = None  # one prompt; None = no condition

    @property
    def count(self) -> int:
        """How many prompts there are."""
        return len(self.prompts.mask)

    def of(self, labels: Sequence[int], device: torch.device) -> Condition:
        """The prompt of each number."""
        return self.prompts.rows(torch.tensor(labels)).to(device)

    def nothing(self, images: int, device: torch.device) -> Condition:
        """The negative prompt for each image, or none."""
        away = self.prompts.rows(slice(0, 1)).silent if self.negative is None else self.negative
        return away.rows(torch.zeros(images, dtype=torch.int64)).to(device)


def conditions_of(config: RunConfig, given: Conditions | None) -> Conditions:
    """The conditions that are `given`, or the classes; ConfigError if prompts are missing."""
    if given is not None:
        return given
    if config.model.reads_text:
        raise ConfigError(
            "the model reads captions, and no prompts are given",
            remedy="give `conditions`: diffmoe.encode_prompts(run, [...]) makes them",
        )
    return ClassConditions(config.model.num_classes)


def join(one: Condition, other: Condition) -> Condition:
    """The conditions of one batch and, behind them, those of another."""
    if isinstance(one, Captions) and isinstance(other, Captions):
        return Captions.joined([one, other])
    assert isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
    return torch.cat([one, other])


def some_of(condition: Condition, which: slice | Int[Tensor, " B"]) -> Condition:
    """The conditions of some images."""
    return condition.rows(which) if isinstance(condition, Captions) else condition[which]
