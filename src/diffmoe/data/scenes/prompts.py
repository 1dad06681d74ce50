"""Prompts to evaluate on."""

from diffmoe.data.scenes.plans import make_plan, tasks_of
from diffmoe.data.scenes.records import Prompt
from diffmoe.errors import ConfigError

__all__ = ["make_prompts"]

_TRIES = 20  # scenes looked at for each prompt, before captions may come twice


def make_prompts(count_per_task: int, seed: int = 0, split: str = "validation") -> list[Prompt]:
    """Prompts of a split's first scenes, as many of each task, the tasks in GenEval's order.

    Captions come twice only where a task has too few: `single_object` has 42. The split
    `held_out` has prompts of the tasks that name colours, `counting`, `colors`, `position` and
    `color_attr`, each with a held-out pair. Raises ConfigError for a split that is not known or a
    count below 1.
    """
    if count_per_task < 1:
        raise ConfigError(
            f"count_per_task {count_per_task} is less than 1", remedy="ask for one prompt or more"
        )
    tasks = tasks_of(split)
    return [
        prompt
        for place in range(len(tasks))
        for prompt in _prompts(count_per_task, seed, split, place)
    ]


def _prompts(count: int, seed: int, split: str, place: int) -> list[Prompt]:
    """Prompts of one task: each caption once, and from the beginning again if they run out."""
    stride, found = len(tasks_of(split)), dict[str, Prompt]()
    for turn in range(_TRIES * count):
        prompt = make_plan(seed, split, turn * stride + place).prompt
        found.setdefault(prompt.caption, prompt)
        if len(found) == count:
            break
    each = list(found.values())
    return [each[index % len(each)] for index in range(count)]
