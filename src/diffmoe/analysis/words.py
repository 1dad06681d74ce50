"""Capacity by the words of prompts, from sums by prompt."""

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool

from diffmoe.analysis.findings import Groups, WordCapacity
from diffmoe.analysis.tallies import ClassTally
from diffmoe.analysis.tallies.numbers import clustered_error, deviation, ratio

__all__ = ["word_capacity", "words_of"]

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_MOST_WORDS = 40  # where words are of no kind


def words_of(prompt: str) -> list[str]:
    """The words of a prompt in small letters, without signs, each as often as it is said."""
    return _WORD.findall(prompt.lower())


def word_capacity(
    tally: ClassTally, prompts: Sequence[str], kind_of: Callable[[str], str] | None = None
) -> WordCapacity | None:
    """What images took whose prompt has a word; None before the first image, or without words.

    `tally` counts images by their prompts. `kind_of` names the kind of each word; without it words
    have none, and only the most frequent 40 count. Images of one prompt are alike: standard errors
    take prompts for independent, not images.
    """
    drawn = tally.images.sum(axis=0) > 0
    said = [
        frozenset(words_of(prompt)) if seen else frozenset()
        for prompt, seen in zip(prompts, drawn, strict=True)
    ]
    counted = Counter(word for words in said for word in words)
    if not counted:
        return None
    ranked = sorted(counted, key=lambda word: (-counted[word], word))
    words = ranked if kind_of else ranked[:_MOST_WORDS]
    kinds = {word: kind_of(word) if kind_of else "" for word in words}
    own = _groups(tally, words, [[word in here for here in said] for word in words])
    order = sorted(range(len(words)), key=lambda i: (_rank(kinds[words[i]]), -own.capacity[i]))
    names = sorted(set(kinds.values()) - {""}, key=_rank)
    of_kind = [[any(kinds[word] == name for word in here) for here in said] for name in names]
    total = tally.selected.sum()
    return WordCapacity(
        words=_ordered(own, order),
        kinds=[kinds[words[i]] for i in order] if kind_of else [],
        by_kind=_groups(tally, names, of_kind),
        average=float(total / tally.images.sum()),
    )


def _rank(kind: str) -> tuple[bool, str]:
    """Kinds in the order of the alphabet, other words last."""
    return kind == "other", kind


def _groups(tally: ClassTally, names: list[str], members: Sequence[Sequence[bool]]) -> Groups:
    """Each group of prompts with the capacity of its images."""
    every = tally.images.sum(axis=0)
    chosen: Bool[np.ndarray, "groups prompts"] = np.array(members, bool)
    chosen = chosen.reshape(len(names), len(every))
    images = every * chosen
    total, squares = (
        np.where(chosen, sums.sum(axis=0), 0.0) for sums in (tally.selected, tally.selected_squared)
    )
    number = images.sum(axis=1)
    spread = deviation(total.sum(axis=1), squares.sum(axis=1), number)
    return Groups(
        names=names,
        prompts=(images > 0).sum(axis=1),
        images=number,
        capacity=ratio(total.sum(axis=1), number),
        error=clustered_error(total.T, images.T),
        error_of_images=ratio(spread, np.sqrt(number)),
    )


def _ordered(groups: Groups, order: list[int]) -> Groups:
    return Groups(
        names=[groups.names[i] for i in order],
        prompts=groups.prompts[order],
        images=groups.images[order],
        capacity=groups.capacity[order],
        error=groups.error[order],
        error_of_images=groups.error_of_images[order],
    )
