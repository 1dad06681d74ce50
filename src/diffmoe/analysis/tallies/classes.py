"""Capacity of each class, as sums over draws."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from diffmoe.analysis.findings import ClassCapacity
from diffmoe.analysis.tallies.archive import Described
from diffmoe.analysis.tallies.numbers import (
    counter,
    deviation,
    rank_correlation,
    ratio,
    total_bytes,
)
from diffmoe.analysis.tallies.observed import BatchSums

__all__ = ["ClassTally"]


@dataclass
class ClassTally:
    """Sums by class over draws, one number each: the mean over the evaluations of an image.

    Two halves of the draws are kept apart. In a balanced request, where labels take turns, image i
    is draw i // classes of its class; even draws are the first half, odd ones the second.
    """

    images: Int[np.ndarray, "2 classes"]
    selected: Float[np.ndarray, "2 classes"]
    selected_squared: Float[np.ndarray, "2 classes"]
    above: Float[np.ndarray, "2 classes"]
    above_squared: Float[np.ndarray, "2 classes"]
    above_images: Int[np.ndarray, "2 classes"]  # fewer than `images` where there is no threshold

    @classmethod
    def empty(cls, classes: int) -> "ClassTally":
        """A tally of `classes` classes."""
        return cls(
            images=counter(2, classes),
            selected=np.zeros((2, classes)),
            selected_squared=np.zeros((2, classes)),
            above=np.zeros((2, classes)),
            above_squared=np.zeros((2, classes)),
            above_images=counter(2, classes),
        )

    def add(self, batch: BatchSums) -> None:
        """Take in the images of a batch."""
        place = (np.asarray(batch.images) // self.images.shape[1] % 2, batch.labels)
        np.add.at(self.images, place, 1)
        np.add.at(self.selected, place, batch.selected)
        np.add.at(self.selected_squared, place, np.square(batch.selected))
        if batch.above is not None:
            np.add.at(self.above_images, place, 1)
            np.add.at(self.above, place, batch.above)
            np.add.at(self.above_squared, place, np.square(batch.above))

    def capacity(self, names: list[str], noun: str = "class") -> ClassCapacity | None:
        """The finding, in which classes are called `noun`; None before the first image."""
        images = self.images.sum(axis=0)
        if not images.any():
            return None
        selected, seen = ratio(self.selected.sum(axis=0), images), images > 0
        known = np.array_equal(self.above_images, self.images)
        above = ratio(self.above.sum(axis=0), images)
        spread = deviation(self.selected.sum(axis=0), self.selected_squared.sum(axis=0), images)
        return ClassCapacity(
            names=list(names),
            images=images,
            selected=selected,
            above=above if known else None,
            error=ratio(spread, np.sqrt(images)),
            stability=self._stability(self.selected),
            stability_above=self._stability(self.above) if known else None,
            agreement=rank_correlation(selected[seen], above[seen]) if known else None,
            noun=noun,
        )

    def _stability(self, total: Float[np.ndarray, "2 classes"]) -> float:
        """Rank correlation between the halves, over the classes that have draws in both."""
        mean = ratio(total, self.images)[:, (self.images > 0).all(axis=0)]
        return rank_correlation(mean[0], mean[1])

    def arrays(self) -> dict[str, Described]:
        """What is written down."""
        axes = "halves classes"
        taken, above = "capacity by rows that experts took", "capacity by rows above a threshold"
        return {
            "class_images": Described(self.images, axes, "images", "draws of each class"),
            "class_selected": Described(
                self.selected, axes, "1", f"{taken}, mean over an image's evaluations, sum of draws"
            ),
            "class_selected_squared": Described(
                self.selected_squared, axes, "1", "the same squared before it is summed"
            ),
            "class_above_images": Described(
                self.above_images, axes, "images", "draws for which there are thresholds"
            ),
            "class_above": Described(
                self.above, axes, "1", f"{above}, mean over an image's evaluations, sum of draws"
            ),
            "class_above_squared": Described(
                self.above_squared, axes, "1", "the same squared before it is summed"
            ),
        }

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return total_bytes(self.arrays())
