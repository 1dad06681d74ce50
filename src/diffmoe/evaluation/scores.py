"""Scores of samples of a small pixel-space set against the real images they were learned from."""

from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffmoe.errors import ConfigError
from diffmoe.evaluation.frechet import Moments, frechet_distance, principal_components
from diffmoe.randomness import permutation

__all__ = ["Judge", "Neighbours", "Scores", "nearest_neighbours", "score"]

_COMPONENTS = 64
_ENOUGH = 1000  # samples from which on the bias of a Frechet distance is small
_BLOCK = 1024  # images whose distances to all real ones are held at a time


@dataclass(frozen=True)
class Judge:
    """A support vector classifier fitted on real images, apart from the model it judges."""

    classifier: object
    held_out_accuracy: float | None  # on real images it was not fitted on; None if there are none

    @classmethod
    def fit(cls, images: Float[Tensor, "N F"], labels: Int[Tensor, "N"], seed: int = 0) -> "Judge":
        """Fit on three quarters of each class's images and measure on the rest."""
        try:
            from sklearn.dummy import DummyClassifier
            from sklearn.svm import SVC
        except ImportError as error:
            raise ConfigError(
                "scores need the package scikit-learn", remedy='pip install "diffmoe[demo]"'
            ) from error
        several = len(labels.unique()) > 1
        classifier = SVC(C=10.0, gamma="scale") if several else DummyClassifier()
        held = _held_out(labels, seed)
        judge = cls(classifier.fit(images[~held].numpy(), labels[~held].numpy()), None)
        if not held.any():
            return judge
        right = (judge.read(images[held]) == labels[held]).double().mean()
        return replace(judge, held_out_accuracy=float(right))

    def read(self, images: Float[Tensor, "N F"]) -> Int[Tensor, "N"]:
        """The class the judge sees in each image."""
        return torch.from_numpy(np.asarray(self.classifier.predict(images.numpy())))  # type: ignore[attr-defined]


def _held_out(labels: Int[Tensor, "N"], seed: int) -> Bool[Tensor, "N"]:
    """A quarter of each class, rounded down: a class of few images is fitted whole."""
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero()[:, 0]
        order = permutation(seed, f"judge/{label}", len(members))
        held[members[torch.from_numpy(order[: len(members) // 4])]] = True
    return held


@dataclass(frozen=True)
class Neighbours:
    """Distance of each sample to its nearest real image, root mean square over pixels."""

    index: Int[Tensor, "N"]  # the nearest real image
    distance: Float[Tensor, "N"]
    between_real: Float[Tensor, "M"]  # of each real image to its nearest other one


def nearest_neighbours(samples: Float[Tensor, "N F"], real: Float[Tensor, "M F"]) -> Neighbours:
    """The nearest real image of each sample, and how near real images are to each other."""
    index = _nearest(samples, real)
    others = _nearest(real, real, but_itself=True)
    return Neighbours(index, _rms(samples - real[index]), _rms(real - real[others]))


def _nearest(
    images: Float[Tensor, "N F"], real: Float[Tensor, "M F"], but_itself: bool = False
) -> Int[Tensor, "N"]:
    found, wide = [], real.double()  # cdist subtracts products: float32 would lose near pairs
    for start in range(0, len(images), _BLOCK):
        distance = torch.cdist(images[start : start + _BLOCK].double(), wide)
        if but_itself:
            distance.diagonal(start).fill_(torch.inf)
        found.append(distance.argmin(dim=1))
    return torch.cat(found)


def _rms(difference: Float[Tensor, "N F"]) -> Float[Tensor, "N"]:
    return difference.square().mean(dim=1).sqrt()


@dataclass(frozen=True)
class Scores:
    """What the samples are worth; `stamp` beside them says how they were made."""

    samples: int
    agreement: float  # share the judge reads as the class asked for
    held_out_accuracy: float | None  # the judge's, on real images it has not seen; None = unknown
    frechet_distance: float  # on principal components of pixels in [-1, 1]
    components: int
    nearest_median: float  # of samples to real images, rms in [-1, 1]
    nearest_median_real: float  # of real images to each other
    copies: float  # share of samples as near to a real image as the nearest 1 % of real ones
    left_out: int = 0  # real images that are damaged, and were not compared with

    @property
    def caution(self) -> str:
        """What to say beside the Frechet distance: of few samples it is too large."""
        return "" if self.samples >= _ENOUGH else f"biased: use {_ENOUGH:,} or more samples"

    def as_dict(self) -> dict[str, float | None]:
        """The scores by name."""
        return asdict(self)


def score(
    samples: Float[Tensor, "N C H W"],
    asked: Int[Tensor, "N"],
    real: Float[Tensor, "M C H W"],
    labels: Int[Tensor, "M"],
) -> Scores:
    """Class agreement, Frechet distance and nearness to the training set; images in [-1, 1]."""
    flat, flat_real = samples.flatten(1).float(), real.flatten(1).float()
    judge = Judge.fit(flat_real, labels)
    near = nearest_neighbours(flat, flat_real)
    centre, directions = principal_components(flat_real, _COMPONENTS)
    project = [(values.double() - centre) @ directions for values in (flat, flat_real)]
    return Scores(
        samples=len(flat),
        agreement=float((judge.read(flat) == asked).double().mean()),
        held_out_accuracy=judge.held_out_accuracy,
        frechet_distance=frechet_distance(*(Moments.of(values) for values in project)),
        components=directions.shape[1],
        nearest_median=float(near.distance.median()),
        nearest_median_real=float(near.between_real.median()),
        copies=float((near.distance <= near.between_real.quantile(0.01)).double().mean()),
    )
