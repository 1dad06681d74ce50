"""The training images of a run as what its samples are scored against, where they are at hand."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from diffmoe.config import FolderData, PixelCodec, RunConfig
from diffmoe.data import Source, open_source
from diffmoe.errors import DataError, DiffMoEError
from diffmoe.evaluation import Scores, score

__all__ = ["Reference", "score_samples", "skips_damaged"]

_CHANGED = (
    "the data are not those of the training any more: {} then, {} now — restore them to score"
)
_CAPTIONED = "they are of captions, and what is judged here are classes"
_MOST_IMAGES = 20_000  # that the judge and the neighbour search can hold
_MOST_VALUES = 2**27  # of all of them together


@dataclass(frozen=True)
class Reference:
    """The training data of a run, None where they are not at hand, and why they score nothing."""

    source: Source | None
    unscored: str  # a sentence; empty if samples can be scored
    kept: tuple[str, ...] = ()  # names of the classes that the run keeps itself
    skips: bool = False  # whether damaged images are left out, as the training did

    @classmethod
    def of(
        cls, config: RunConfig, trained_on: str | None = None, kept: tuple[str, ...] = ()
    ) -> "Reference":
        """The data a config names; nothing is raised, as a report needs only the run.

        `trained_on` is the fingerprint of the training data, None where it is not known: other
        data, or the same ones changed since, score nothing and name no class. Without data, classes
        are called what the run `kept` of them. Images of captions are not scored here.
        """
        if config.model.reads_text:
            return cls(None, _CAPTIONED, kept)
        return cls.at_hand(config, trained_on, kept)

    @classmethod
    def at_hand(
        cls, config: RunConfig, trained_on: str | None = None, kept: tuple[str, ...] = ()
    ) -> "Reference":
        """The same of captions too, for numbers that need no classes."""
        try:
            source = open_source(config)
            found = source.fingerprint
        except DiffMoEError as error:
            return cls(None, str(error), kept)
        if trained_on not in (None, found):
            return cls(None, _CHANGED.format(trained_on, found), kept)
        return cls(source, _unscorable(config, source), kept, skips_damaged(config))

    def names(self, classes: int) -> list[str]:
        """The name of each class, its number where neither data nor run have one."""
        known = list(self.kept if self.source is None else self.source.class_names)
        return known + [str(label) for label in range(len(known), classes)]


def skips_damaged(config: RunConfig) -> bool:
    """Whether a run was trained past its damaged samples, others in their places."""
    return isinstance(config.data, FolderData) and config.data.on_bad_sample == "replace"


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
        found = dict(_readable(source, reference.skips))
        if not found:
            return None, "all training images are damaged"
        real, own = torch.stack([*found.values()]), source.labels[[*found]]
        scores = score(images.float() / 127.5 - 1, labels, real, own)
        return replace(scores, left_out=len(source) - len(found)), ""
    except DiffMoEError as error:
        return None, str(error)


def _readable(source: Source, skips: bool) -> Iterator[tuple[int, Tensor]]:
    """The images by their numbers; raises DataError at a damaged one, or `skips` it."""
    for index in range(len(source)):
        try:
            yield index, source.load(index, flip=False)
        except DataError:
            if not skips:
                raise
