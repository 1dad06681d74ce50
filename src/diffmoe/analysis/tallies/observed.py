"""What tallies see: one evaluation, and the sums over all evaluations of a batch.

Both hold the conditional branch only, whose rows stand first.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffmoe.model import Routing
from diffmoe.sampling import Moment

__all__ = ["BatchSums", "Observed"]


@dataclass(frozen=True)
class Observed:
    """One evaluation of a routed network; what tallies share is computed once, when asked for."""

    images: range  # their numbers among all images of the run
    classes: Int[Tensor, "B"]
    step: int
    level: float  # noise level, 1 = pure noise
    x: Float[Tensor, "B C H W"]
    routing: tuple[Routing, ...]  # of all branches
    tokens: int  # T

    @classmethod
    def of(cls, moment: Moment, tokens: int, first: int = 0, level: float = math.nan) -> "Observed":
        """A moment of a call whose images count from `first`."""
        images = range(moment.images.start + first, moment.images.stop + first)
        evaluation = moment.evaluation
        routing = evaluation.output.routing
        return cls(images, moment.labels, evaluation.step, level, evaluation.x, routing, tokens)

    @cached_property
    def labels(self) -> Int[np.ndarray, "B"]:
        """The class of each image."""
        return self.classes.cpu().numpy()

    @cached_property
    def chosen(self) -> Bool[Tensor, "L B T E"]:
        """Whether each expert took each row, where the model runs."""
        return torch.stack([self._own(record.chosen) for record in self.routing])

    def _own(self, mask: Bool[Tensor, "S E"]) -> Bool[Tensor, "B T E"]:
        return mask[: len(self.images) * self.tokens].unflatten(0, (-1, self.tokens))

    @cached_property
    def taken(self) -> Int[np.ndarray, "B L E"]:
        """Rows of each image that each expert took."""
        return self.chosen.sum(dim=2).transpose(0, 1).cpu().numpy()

    @cached_property
    def wanted(self) -> Int[np.ndarray, "B"] | None:
        """Pairs of each image above a threshold; None if a layer has no thresholds."""
        masks = [record.wanted for record in self.routing]
        own = [self._own(mask).sum(dim=(1, 2)) for mask in masks if mask is not None]
        return torch.stack(own).sum(dim=0).cpu().numpy() if len(own) == len(masks) else None

    @cached_property
    def together(self) -> Int[np.ndarray, "L E E"]:
        """Rows that two experts took both; on the diagonal, rows that each took."""
        # In float64: exact, and autocast, which sampling may run under, leaves it alone.
        masks = (mask.flatten(0, 1).double() for mask in self.chosen)
        found = torch.stack([mask.T @ mask for mask in masks])
        return found.cpu().numpy().astype(np.int64)


@dataclass
class BatchSums:
    """Sums over the evaluations of the images of one batch: a draw is then one number, not many."""

    images: range
    labels: Int[np.ndarray, "B"]
    pairs: int  # of an evaluation of one image by a dense model: layers x tokens
    step: int
    evaluations: int
    taken: Int[np.ndarray, "B L E"]
    wanted: Int[np.ndarray, "B"] | None

    @classmethod
    def of(cls, seen: Observed) -> "BatchSums":
        """The first evaluation of a batch."""
        wanted = None if seen.wanted is None else seen.wanted.copy()
        dense = seen.tokens * len(seen.routing)
        return cls(seen.images, seen.labels, dense, seen.step, 1, seen.taken.copy(), wanted)

    def goes_on(self, seen: Observed) -> bool:
        """Whether an evaluation belongs to this batch; drawn again, its steps begin anew."""
        return seen.images == self.images and seen.step >= self.step

    def add(self, seen: Observed) -> None:
        """Take in one more evaluation."""
        self.step, self.evaluations = seen.step, self.evaluations + 1
        self.taken += seen.taken
        if self.wanted is not None and seen.wanted is not None:
            self.wanted += seen.wanted

    @property
    def selected(self) -> Float[np.ndarray, "B"]:
        """Capacity of each image by what experts took, mean over its evaluations."""
        return self.taken.sum(axis=(1, 2)) / (self.pairs * self.evaluations)

    @property
    def above(self) -> Float[np.ndarray, "B"] | None:
        """Capacity of each image by what was above a threshold, mean over its evaluations."""
        return None if self.wanted is None else self.wanted / (self.pairs * self.evaluations)

    @property
    def nbytes(self) -> int:
        """Bytes held; a batch at most."""
        return self.taken.nbytes + (0 if self.wanted is None else self.wanted.nbytes)
