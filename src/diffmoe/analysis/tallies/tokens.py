"""How many experts each patch of the first images had, by noise level."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Int32

from diffmoe.analysis.tallies.archive import Described
from diffmoe.analysis.tallies.numbers import total_bytes
from diffmoe.analysis.tallies.observed import Observed
from diffmoe.config import RunConfig

__all__ = ["MOST_BYTES", "TokenTally"]

MOST_BYTES = 2**26  # of the counts, whatever is asked for: fewer images are counted then
_BINS = 25  # of the noise level
_SLACK = 0.01  # of a bin: DDPM rounds its levels to whole steps, and others their last bit


@dataclass
class TokenTally:
    """Pairs of each patch of the first K images, all layers together, in bins of the noise level.

    Bins are equally wide, as many as the solver has steps but 25 at most, from pure noise to data.
    """

    counts: Int32[np.ndarray, "K Q T"]
    evaluations: Int[np.ndarray, "K Q"]
    level: Float[np.ndarray, "Q"]  # sum over evaluations of images
    layers: int

    @classmethod
    def empty(cls, config: RunConfig, images: int) -> "TokenTally":
        """A tally of the first `images` images, or of as many of them as 64 MiB hold."""
        settings, tokens = config.sampling, config.model.tokens
        bins = _BINS if settings.sampler == "dopri5" else min(_BINS, settings.steps)
        kept = min(images, MOST_BYTES // (4 * bins * tokens))
        return cls(
            counts=np.zeros((kept, bins, tokens), np.int32),
            evaluations=np.zeros((kept, bins), np.int64),
            level=np.zeros(bins),
            layers=len(config.model.moe_blocks),
        )

    def see(self, seen: Observed) -> None:
        """Take in one evaluation, of the images that are among the first."""
        here = slice(seen.images.start, min(seen.images.stop, len(self.counts)))
        number = here.stop - here.start
        if number <= 0:
            return
        place = self._bin(seen.level)
        taken = seen.chosen[:, :number].sum(dim=(0, 3))
        self.counts[here, place] += taken.cpu().numpy().astype(np.int32)
        self.evaluations[here, place] += 1
        self.level[place] += number * seen.level

    def _bin(self, level: float) -> int:
        bins = len(self.level)
        return min(bins - 1, max(0, int((1 - level) * bins + _SLACK)))

    def arrays(self) -> dict[str, Described]:
        """What is written down; nothing where no image was to be counted."""
        if not self.counts.size:
            return {}
        axes, about = "images levels", "bins of the noise level, from 1 to 0"
        return {
            "token_pairs": Described(
                self.counts,
                f"{axes} T",
                "pairs",
                "experts of each patch of the first images, sum over MoE layers and evaluations;"
                f" patches row by row; {about}",
            ),
            "token_evaluations": Described(
                self.evaluations, axes, "evaluations", f"of the field for each image; {about}"
            ),
            "token_level": Described(
                self.level, "levels", "1", "noise level, sum over evaluations of these images"
            ),
        }

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return total_bytes(self.arrays())
