"""Capacity along sampling, as sums by step."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from diffmoe.analysis.findings import StepCapacity
from diffmoe.analysis.tallies.archive import Described
from diffmoe.analysis.tallies.numbers import counter, deviation, information, ratio, total_bytes
from diffmoe.analysis.tallies.observed import Observed

__all__ = ["StepTally"]


@dataclass
class _Step:
    """A step of a batch, which may evaluate the field more than once."""

    images: range
    number: int
    level: float
    evaluations: int
    capacity: Float[np.ndarray, "B"]  # summed over its evaluations


@dataclass
class StepTally:
    """Sums by step over images; an image counts with its mean over the evaluations of the step.

    A step of an adaptive solver is one evaluation, and its level the mean over images.
    """

    level: Float[np.ndarray, "steps"]
    images: Int[np.ndarray, "steps"]
    total: Float[np.ndarray, "steps"]
    squares: Float[np.ndarray, "steps"]
    rows: Int[np.ndarray, "steps"]
    pairs: Int[np.ndarray, "steps L E"]
    open: _Step | None = None

    @classmethod
    def empty(cls, steps: int, layers: int, experts: int) -> "StepTally":
        """A tally with room for `steps` steps; an adaptive solver may take more."""
        sums = [np.zeros(steps) for _ in range(3)]
        return cls(
            level=sums[0],
            images=counter(steps),
            total=sums[1],
            squares=sums[2],
            rows=counter(steps),
            pairs=counter(steps, layers, experts),
        )

    def see(self, seen: Observed) -> None:
        """Take in one evaluation."""
        self._reserve(seen.step)
        self.pairs[seen.step] += seen.taken.sum(axis=0)
        self.rows[seen.step] += len(seen.images) * seen.tokens
        capacity = seen.taken.sum(axis=(1, 2)) / (seen.tokens * len(seen.routing))
        now = self.open
        if now is not None and now.images == seen.images and now.number == seen.step:
            now.evaluations, now.capacity = now.evaluations + 1, now.capacity + capacity
            return
        self.close()
        self.open = _Step(seen.images, seen.step, seen.level, 1, capacity)

    def close(self) -> None:
        """Count the step at hand."""
        now, self.open = self.open, None
        if now is not None:
            capacity = now.capacity / now.evaluations
            self.images[now.number] += len(now.images)
            self.level[now.number] += now.level * len(now.images)
            self.total[now.number] += capacity.sum()
            self.squares[now.number] += np.square(capacity).sum()

    def _reserve(self, step: int) -> None:
        missing = step + 1 - len(self.images)
        if missing > 0:
            for name in ("level", "images", "total", "squares", "rows", "pairs"):
                old = getattr(self, name)
                more = np.zeros((missing, *old.shape[1:]), old.dtype)
                setattr(self, name, np.concatenate([old, more]))

    def capacity(self) -> StepCapacity | None:
        """The finding; None before the first image."""
        self.close()
        seen = self.images > 0
        if not seen.any():
            return None
        images, total = self.images[seen], self.total[seen]
        share = ratio(self.pairs[seen], self.rows[seen][:, None, None])
        return StepCapacity(
            level=ratio(self.level[seen], images),
            mean=ratio(total, images),
            deviation=deviation(total, self.squares[seen], images),
            experts=share * self.pairs.shape[2],
            images=images,
        )

    def information(self) -> Float[np.ndarray, "L"]:
        """Mutual information of expert and step, bits."""
        return information(self.pairs)

    def arrays(self) -> dict[str, Described]:
        """What is written down, once `close` has counted the step at hand."""
        step = "steps"
        return {
            "step_level": Described(
                self.level, step, "1", "noise level at which the step begins, sum over images"
            ),
            "step_images": Described(self.images, step, "images", "images that took the step"),
            "step_capacity": Described(
                self.total, step, "1", "capacity in the step, 1 = dense, sum over images"
            ),
            "step_capacity_squared": Described(
                self.squares, step, "1", "squared capacity in the step, sum over images"
            ),
            "step_rows": Described(
                self.rows, step, "rows", "rows of a layer, all evaluations of the step"
            ),
            "step_pairs": Described(
                self.pairs, "steps L E", "pairs", "rows that each expert took in the step"
            ),
        }

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        waiting = 0 if self.open is None else self.open.capacity.nbytes
        return total_bytes(self.arrays()) + waiting
