"""What experts do: how much, with whom, and for which class."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from diffmoe.analysis.findings import ExpertUse
from diffmoe.analysis.tallies.archive import Described
from diffmoe.analysis.tallies.numbers import counter, information, ratio, total_bytes
from diffmoe.analysis.tallies.observed import BatchSums, Observed
from diffmoe.randomness import permutation

__all__ = ["ExpertTally", "chance_labels"]

_DEAD = 0.01  # of an even share
_STREAM = "labels exchanged"


@dataclass
class ExpertTally:
    """Counts of pairs by class, and of rows that two experts share."""

    together: Int[np.ndarray, "L E E"]
    of_class: Int[np.ndarray, "classes L E"]
    of_chance: Int[np.ndarray, "classes L E"]  # by labels exchanged between the images
    rows: int = 0  # of a layer

    @classmethod
    def empty(cls, classes: int, layers: int, experts: int) -> "ExpertTally":
        """A tally of no images."""
        of_class, of_chance = (counter(classes, layers, experts) for _ in range(2))
        return cls(counter(layers, experts, experts), of_class, of_chance)

    def see(self, seen: Observed) -> None:
        """Take in which experts met in one evaluation."""
        self.together += seen.together
        self.rows += len(seen.images) * seen.tokens

    def add(self, batch: BatchSums) -> None:
        """Take in the images of a batch."""
        chance = chance_labels(batch.images, batch.labels, len(self.of_class))
        np.add.at(self.of_class, batch.labels, batch.taken)
        np.add.at(self.of_chance, chance, batch.taken)

    def use(
        self, level_information: Float[np.ndarray, "L"], noun: str = "class"
    ) -> ExpertUse | None:
        """The finding, in which classes are called `noun`; None before the first image."""
        if not self.rows:
            return None
        share = np.diagonal(self.together, axis1=1, axis2=2) / self.rows
        return ExpertUse(
            share=share,
            dead=share <= _DEAD * share.mean(axis=1, keepdims=True),
            overlap=self._overlap(),
            class_information=information(self.of_class),
            class_chance=information(self.of_chance),
            level_information=level_information,
            noun=noun,
        )

    def _overlap(self) -> Float[np.ndarray, "L E E"]:
        """Rows of both over rows of either; 0 where neither took any."""
        own = np.diagonal(self.together, axis1=1, axis2=2)
        either = own[:, :, None] + own[:, None, :] - self.together
        return np.nan_to_num(ratio(self.together, either))

    def arrays(self) -> dict[str, Described]:
        """What is written down."""
        exchanged = (
            "the same with the labels of each round of as many images as there are classes"
            " exchanged at random"
        )
        return {
            "together": Described(
                self.together, "L E E", "rows", "rows that both took; the diagonal, that each took"
            ),
            "rows": Described(np.array([self.rows], np.int64), "1", "rows", "rows of a layer"),
            "class_pairs": Described(
                self.of_class, "classes L E", "pairs", "rows of a class that each expert took"
            ),
            "chance_pairs": Described(self.of_chance, "classes L E", "pairs", exchanged),
        }

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return total_bytes(self.arrays())


def chance_labels(
    images: range, labels: Int[np.ndarray, "B"], classes: int
) -> Int[np.ndarray, "B"]:
    """Labels exchanged at random within each round of `classes` images, the same in any batch.

    A whole round of a balanced request holds each class once before and after. Of one round alone
    every exchange carries the same information: chance is a measure from two draws a class on.
    """
    rounds = np.asarray(images) // classes
    found = np.empty_like(labels)
    for one in np.unique(rounds):
        here = rounds == one
        found[here] = permutation(0, f"{_STREAM}/{one}", classes)[labels[here]]
    return found
