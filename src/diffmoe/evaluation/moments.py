"""Mean and covariance of features that arrive in parts: memory does not grow with their number."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffmoe.errors import ConfigError, DataError

__all__ = ["Moments"]


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of a set of features, in float64."""

    mean: Float[Tensor, "F"]
    covariance: Float[Tensor, "F F"]  # unbiased; 0 as long as there are fewer than two images
    count: int | None = None  # images behind it; None = published without it, cannot be merged

    @classmethod
    def none(cls, width: int, device: torch.device | str = "cpu") -> "Moments":
        """The moments of no images, to merge others into."""
        zeros = torch.zeros(width, width, dtype=torch.float64, device=device)
        return cls(zeros[0].clone(), zeros, 0)

    @classmethod
    def of(cls, features: Float[Tensor, "N F"]) -> "Moments":
        """The moments of features, with the unbiased covariance."""
        if features.shape[0] < 2:
            raise ConfigError(
                f"{len(features)} images are too few for a covariance", remedy="give two or more"
            )
        return cls._of_part(features)

    @classmethod
    def from_arrays(cls, mu: np.ndarray, sigma: np.ndarray, count: int | None = None) -> "Moments":
        """Published statistics; raises DataError unless they are a mean and its covariance."""
        mean, covariance = (torch.from_numpy(np.array(part, np.float64)) for part in (mu, sigma))
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise DataError(
                f"mu of shape {mu.shape} and sigma of shape {sigma.shape} are no mean and"
                " covariance",
                remedy="give arrays of shapes (F,) and (F, F)",
            )
        finite = mean.isfinite().all() and covariance.isfinite().all()
        if not (finite and torch.allclose(covariance, covariance.t(), rtol=1e-5)):
            raise DataError(
                "mu or sigma holds values that are not finite, or sigma is not symmetric",
                remedy="give the statistics as they were published",
            )
        if (covariance.diagonal() < 0).any():
            raise DataError(
                "sigma holds variances below 0", remedy="give the statistics as they were published"
            )
        return cls(mean, covariance, count)

    @property
    def mu(self) -> np.ndarray:
        """The mean as an array, named as in files of published statistics."""
        return self.mean.cpu().numpy()

    @property
    def sigma(self) -> np.ndarray:
        """The covariance as an array, named as in files of published statistics."""
        return self.covariance.cpu().numpy()

    def update(self, features: Float[Tensor, "N F"]) -> "Moments":
        """These moments with more images in them: any number, one or none included."""
        there = features.to(self.mean.device)
        return self.merge(self._of_part(there)) if len(there) else self

    def to(self, device: torch.device | str) -> "Moments":
        """The same moments on a device."""
        return Moments(self.mean.to(device), self.covariance.to(device), self.count)

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both sets together (Chan, Golub & LeVeque 1979).

        The rule adds deviations from the parts' own means and one of the means from each other, so
        nothing is lost to subtraction, as it is between sums of squares.
        """
        own, more = self._known_count(), other._known_count()
        if not own or not more:
            return self if own else other
        both, shift = own + more, other.mean - self.mean
        spread = self.covariance * (own - 1)
        spread.add_(other.covariance, alpha=more - 1)
        spread.addr_(shift, shift, alpha=own * more / both)
        return Moments(self.mean + shift * (more / both), spread.div_(both - 1), both)

    @classmethod
    def _of_part(cls, features: Float[Tensor, "N F"]) -> "Moments":
        wide = features.double()
        mean = wide.mean(dim=0)
        apart = wide - mean
        return cls(mean, (apart.t() @ apart).div_(max(1, len(wide) - 1)), len(wide))

    def _known_count(self) -> int:
        if self.count is None:
            raise ConfigError(
                "moments of an unknown number of images cannot be merged",
                remedy="merge moments that were computed from images, or give their count",
            )
        return self.count
