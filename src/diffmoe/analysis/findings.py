"""What an analysis found, as plain arrays: figures draw these records, tables list them.

Axes: steps of the sampling run, L MoE layers, E experts, T tokens an image, Q noise levels binned,
I images shown, F frames shown of each, R regions of a picture.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

__all__ = [
    "BatchOfOne",
    "ClassCapacity",
    "Cost",
    "ExpertUse",
    "Groups",
    "PredictorCheck",
    "RegionCapacity",
    "RegionPictures",
    "Rows",
    "StepCapacity",
    "SweepPoint",
    "TokenMaps",
    "Variant",
    "WordCapacity",
]

Rows = list[dict[str, str | int | float]]  # a table in long form: one dictionary a line


@dataclass(frozen=True, kw_only=True)
class StepCapacity:
    """Capacity along sampling, conditional branch (Fig. 1c, Fig. 12)."""

    level: Float[np.ndarray, "steps"]  # noise level of each step, 1 = pure noise
    mean: Float[np.ndarray, "steps"]  # over images
    deviation: Float[np.ndarray, "steps"]  # between images, one standard deviation
    experts: Float[np.ndarray, "steps L E"]  # capacity of each expert, E K_e / S
    images: Int[np.ndarray, "steps"]  # that took the step: an adaptive solver's paths differ


@dataclass(frozen=True, kw_only=True)
class ClassCapacity:
    """Capacity of each class's samples, conditional branch (Fig. 1d, 13, 14).

    NaN for a class without samples. The paper leaves open which rows count.
    """

    names: list[str]
    images: Int[np.ndarray, "classes"]  # samples of each class
    selected: Float[np.ndarray, "classes"]  # counting rows that experts took
    above: Float[np.ndarray, "classes"] | None  # rows above a threshold; None = no thresholds
    error: Float[np.ndarray, "classes"]  # standard error of `selected`; NaN for one sample
    stability: float  # rank correlation (Spearman) of `selected` between halves of the draws
    stability_above: float | None  # the same of `above`
    agreement: float | None  # rank correlation between the two definitions
    noun: str = "class"  # what a class is called: of a model that reads captions, a prompt

    @property
    def nouns(self) -> str:
        """Several of them."""
        return "classes" if self.noun == "class" else f"{self.noun}s"

    @property
    def leading(self) -> Float[np.ndarray, "classes"]:
        """What classes are ordered by: `selected`, or `above` where a cap levels the former."""
        seen = self.images > 0
        if self.above is None or not seen.any():
            return self.selected
        if np.ptp(self.selected[seen]) > 0.2 * np.ptp(self.above[seen]):
            return self.selected
        return self.above


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Capacity of groups of images, conditional branch; groups may share images."""

    names: list[str]
    prompts: Int[np.ndarray, "groups"]  # that images of the group were drawn from
    images: Int[np.ndarray, "groups"]
    capacity: Float[np.ndarray, "groups"]  # mean over images
    error: Float[np.ndarray, "groups"]  # standard error, by prompts; NaN for one prompt
    error_of_images: Float[np.ndarray, "groups"]  # as if images of a prompt were independent


@dataclass(frozen=True, kw_only=True)
class WordCapacity:
    """Capacity of the images whose prompt has a word, and a word of a kind."""

    words: Groups  # kind after kind, the costliest first
    kinds: list[str]  # of the words: colour, shape ...; empty where words have none
    by_kind: Groups
    average: float  # capacity of all images


@dataclass(frozen=True, kw_only=True)
class RegionCapacity:
    """Capacity of the patches that show background, an object's edge or its inside.

    Regions are those of the picture as drawn, at all noise levels. Standard errors are over
    images, NaN for one image.
    """

    names: list[str]  # of the regions
    patches: Int[np.ndarray, "R"]  # in all images
    images: Int[np.ndarray, "R"]  # that have any
    capacity: Float[np.ndarray, "R"]  # mean over their patches and evaluations
    error: Float[np.ndarray, "R"]
    level: Float[np.ndarray, "Q"]  # mean noise level of each bin, falling
    by_level: Float[np.ndarray, "R Q"]
    by_level_error: Float[np.ndarray, "R Q"]
    objects: Int[np.ndarray, "n"]  # in the picture; 6 = or more
    objects_images: Int[np.ndarray, "n"]
    by_objects: Float[np.ndarray, "n"]  # of whole pictures
    by_objects_error: Float[np.ndarray, "n"]
    region_by_objects: Float[np.ndarray, "n R"]


@dataclass(frozen=True, kw_only=True)
class RegionPictures:
    """A few pictures with what they show and what their patches took, mean over all steps."""

    names: list[str]
    images: UInt8[np.ndarray, "I C H W"]
    objects: Int[np.ndarray, "I H W"]  # number of the object of each pixel, 0 = background
    regions: Int[np.ndarray, "I T"]  # of each patch
    capacity: Float[np.ndarray, "I T"]


@dataclass(frozen=True, kw_only=True)
class TokenMaps:
    """Which experts took which patch of a few images, along sampling."""

    labels: list[int]
    names: list[str]  # of the images' classes
    images: UInt8[np.ndarray, "I C H W"]  # as drawn
    noisy: UInt8[np.ndarray, "I F C H W"]  # the state at the beginning of each frame's step
    steps: Int[np.ndarray, "F"]  # step of each frame
    level: Float[np.ndarray, "F"]  # its noise level
    number: Float[np.ndarray, "I F T"]  # experts that took the patch, mean over MoE layers
    share: Float[np.ndarray, "I L E T"]  # share of all steps in which each expert took the patch


@dataclass(frozen=True, kw_only=True)
class ExpertUse:
    """What experts do, all steps of the conditional branch together."""

    share: Float[np.ndarray, "L E"]  # of rows that each expert took
    dead: Bool[np.ndarray, "L E"]  # took at most 1 % of an even share
    overlap: Float[np.ndarray, "L E E"]  # rows taken by both / rows taken by either (Jaccard)
    class_information: Float[np.ndarray, "L"]  # mutual information of expert and class, bits
    class_chance: Float[np.ndarray, "L"]  # the same with labels exchanged at random
    level_information: Float[np.ndarray, "L"]  # mutual information of expert and step, bits
    noun: str = "class"  # what a class is called: of a model that reads captions, a prompt


@dataclass(frozen=True, kw_only=True)
class PredictorCheck:
    """The capacity predictor against the top-K of training pools, on images noised again."""

    level: Float[np.ndarray, "Q+1"]  # edges of the noise levels, 0 = data
    precision: Float[np.ndarray, "L Q"]  # of rows above the tracked threshold, those in the top-K
    recall: Float[np.ndarray, "L Q"]  # of rows in the top-K, those above the tracked threshold
    calibration_error: Float[np.ndarray, "L Q"]  # mean |predicted - observed|, in bins
    predicted: Float[np.ndarray, "L bins"]  # mean prediction of each bin; NaN for an empty one
    observed: Float[np.ndarray, "L bins"]  # share in the top-K
    weight: Float[np.ndarray, "L bins"]  # share of all pairs of rows and experts
    nominal: float  # the capacity trained at
    realised: Float[np.ndarray, "L Q"]  # capacity by the tracked thresholds, on the same images
    tracked: Float[np.ndarray, "L E"]  # thresholds
    training: Float[np.ndarray, "L E"]  # K-th largest prediction of training pools, measured anew
    sampling: Float[np.ndarray, "L E"]  # threshold of the nominal capacity, over the sampling run
    images: int  # noised images


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a model costs; `rows` are name, value and what it means."""

    rows: list[tuple[str, str, str]]  # for readers
    numbers: dict[str, float]  # for programs: name_unit -> value


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to draw the same images."""

    name: str  # static or dynamic
    batch: int  # images that share a pool
    capacity: float  # C_avg
    change: float  # rms difference from the other batch size, images in [-1, 1]
    agreement: float | None  # share read as the class asked for; None = not scored
    frechet: float | None  # Frechet distance; None = not scored
    images: UInt8[np.ndarray, "I C H W"]  # the first of them


@dataclass(frozen=True, kw_only=True)
class BatchOfOne:
    """Static and dynamic selection in a pool of one image and of many (Fig. 6)."""

    variants: list[Variant]
    drawn: int  # images of each variant


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """One setting of the dial (Table 10, Fig. 7): what it costs and what it gives."""

    name: str  # as it would be asked for: `capacity 0.7`, `gamma 0.4`, `tracked`
    kind: str  # target, constant, ema or search (the constant that the interval search chose)
    setting: float | None  # the capacity or the gamma asked for; None for the tracked thresholds
    capacity: float  # realised C_avg
    seconds: float  # per image, median over batches
    spread: float  # half the distance between the quartiles of `seconds`; NaN = one batch
    loss: float | None  # denoising loss on training images; None = they are not at hand
    frechet: float | None  # Frechet distance to the training images; None = not scored
    agreement: float | None  # share of samples read as the class asked for; None = not scored
