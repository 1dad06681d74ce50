"""The training images of a run as what its samples are scored against, where they are at hand."""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from diffmoe.config import PixelCodec, RunConfig
from diffmoe.data import Source, open_source
from diffmoe.errors import DiffMoEError
from diffmoe.evaluation import Scores, score

__all__ = ["Reference", "score_samples"]

_CHANGED = (
    "the data are not those of the training any more: {} then, {} now — restore them to score"
)
_MOST_IMAGES = 20_000  # that the judge and the neighbour search can hold
_MOST_VALUES = 2**27  # of all of them together


@dataclass(frozen=True)
class Reference:
    """The training data of a run, None where they are not at hand, and why they score nothing."""

    source: Source | None
    unscored: str  # a sentence; empty if samples can be scored
    kept: tuple[str, ...] = ()  # names of the classes that the run keeps itself

    @classmethod
    def of(
        cls, config: RunConfig, trained_on: str | None = None, kept: tuple[str, ...] = ()
    ) -> "Reference":
        """The data a config names; nothing is raised, as a report needs only the run.

        `trained_on` is the fingerprint of the training data, None where it is not known: other
        data, or the same ones changed since, score nothing and name no class. Without data, classes
        are called what the run `kept` of them.
        """
        try:
            source = open_source(config)
            found = source.fingerprint
        except DiffMoEError as error:
            return cls(None, str(error), kept)
        if trained_on not in (None, found):
            return cls(None, _CHANGED.format(trained_on, found), kept)
        return cls(source, _unscorable(config, source), kept)

    def names(self, classes: int) -> list[str]:
        """The name of each class, its number where neither data nor run have one."""
        known = list(self.kept if self.source is None else self.source.class_names)
        return known + [str(label) for label in range(len(known), classes)]


def _unscorable(config: RunConfig, source: Source) -> str:
    if not isinstance(config.codec, PixelCodec):
        return "the model draws latents, and scores are of pixels"
    if len(source) > _MOST_IMAGES or len(source) * prod(source.shape) > _MOST_VALUES:
        shape = " x ".join(map(str, source.shape))
        return f"{len(source)} training images of {shape} are more than the judge can hold"
    return ""


def score_samples(
    reference: Reference, images: Tensor, labels: Tensor
) -> tuple[Scores | None, str]:
    """Scores of uint8 samples, or None and the reason."""
    source = reference.source
    if source is None or reference.unscored:
        return None, reference.unscored
    try:
        real = torch.stack([source.load(index, flip=False) for index in range(len(source))])
        return score(images.float() / 127.5 - 1, labels, real, source.labels), ""
    except DiffMoEError as error:
        return None, str(error)
