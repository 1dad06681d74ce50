"""The numbers of a paper's table, each under a name that says what it may be compared with."""

from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from diffmoe.errors import ConfigError, DataError
from diffmoe.evaluation.extraction import Described
from diffmoe.evaluation.frechet import frechet_caution, frechet_distance
from diffmoe.evaluation.metrics import Estimate, kernel_distance
from diffmoe.evaluation.neighbours import precision_recall
from diffmoe.evaluation.sets import Reference

__all__ = ["ADM_SAMPLES", "Measured", "completed", "measure", "refuse_sizes"]

ADM_SAMPLES = 50_000
ADM_NETWORK = "6726825d"  # how the hash of the Inception weights of 2015 begins
_NEIGHBOURS, _SUBSETS, _SUBSET_SIZE = 3, 100, 1000


@dataclass(frozen=True)
class Measured:
    """Numbers by name, what to say beside them, and the settings they depend on."""

    values: dict[str, float]
    deviations: dict[str, float]  # between parts of the samples, for the numbers that have one
    cautions: list[str]
    settings: dict[str, Any]


def completed(reference: Reference, images: Described | None) -> Reference:
    """A reference with everything that its images, once described, add to it."""
    if images is None:
        return reference
    own = reference.pooled is None
    return replace(
        reference,
        pooled=images.pooled if own else reference.pooled,
        spatial=images.spatial if own else reference.spatial,
        features=images.features,
        side=images.side,
        sha256=reference.sha256 or images.sha256,
        count=images.count if own else reference.count,
    )


def refuse_sizes(samples: tuple[int, int], reference: Reference) -> None:
    """Raise ConfigError if samples and reference are known to have different sizes."""
    if reference.side is not None and reference.side != samples:
        here, there = (f"{height} x {width}" for height, width in (samples, reference.side))
        raise ConfigError(
            f"the samples are {here} pixels and the reference {there}: their numbers would compare"
            " sizes",
            where=reference.place,
            remedy="give a reference of that size, or --crop to crop and scale its images",
        )


def measure(samples: Described, reference: Reference, network: str, fingerprint: str) -> Measured:
    """Frechet and kernel distances, precision, recall and Inception score of samples.

    `network` and its `fingerprint` name them: `fid_adm50k` only where network, number of samples
    and reference are those of the ADM protocol.
    """
    assert reference.pooled is not None  # `completed` has seen to it
    refuse_sizes(samples.side, reference)
    if not reference.pooled.covariance.trace() > 0:
        raise DataError(
            f"network {network} says the same of every image of the reference",
            where=reference.place,
            remedy="look whether its images differ and whether its weights are what they should be",
        )
    is_adm = (
        reference.is_adm256 and fingerprint.startswith(ADM_NETWORK) and samples.count == ADM_SAMPLES
    )
    frechet, spatial, kernel = _names(network, samples.count, is_adm)
    values = {frechet: frechet_distance(samples.pooled, reference.pooled)}
    deviations: dict[str, float] = {}
    settings: dict[str, Any] = {}
    if samples.spatial is not None and reference.spatial is not None:
        values[spatial] = frechet_distance(samples.spatial, reference.spatial)
    if samples.inception_score is not None:
        _note("inception_score", samples.inception_score, values, deviations)
        settings |= {"splits": max(1, min(10, samples.count // 2)), "order_seed": 2020}
    if reference.features is not None:
        settings |= _neighbours(samples.features, reference.features, values)
        settings |= _kernel(kernel, samples.features, reference.features, values, deviations)
    cautions = [
        f"{frechet} is {said}"
        for said in (frechet_caution(samples.pooled, reference.pooled), _few(reference))
        if said
    ]
    return Measured(values, deviations, cautions, settings)


def _few(reference: Reference) -> str:
    """What to say of a distance to a reference of too few images, else nothing."""
    assert reference.pooled is not None
    count, width = reference.count, len(reference.pooled.mean)
    if count is None or count > width:
        return ""
    return (
        f"of {width:,} features against a reference of only {count:,} images: its covariance has"
        " directions without any variance, and the distance is too large"
    )


def _names(network: str, count: int, is_adm: bool) -> tuple[str, str, str]:
    if is_adm:
        return "fid_adm50k", "sfid_adm50k", "kid"
    if network == "inception":
        return f"fd_inception@{count}", f"sfd_inception@{count}", "kid"
    return f"fd_{network}@{count}", f"sfd_{network}@{count}", f"kd_{network}"


def _note(
    name: str, found: Estimate, values: dict[str, float], deviations: dict[str, float]
) -> None:
    values[name], deviations[name] = found.mean, found.deviation


def _neighbours(
    samples: Float[Tensor, "N F"], reference: Float[Tensor, "K F"], values: dict[str, float]
) -> dict[str, Any]:
    """Precision and recall, where there are enough images for a neighbourhood."""
    if min(len(samples), len(reference)) <= _NEIGHBOURS:
        return {}
    found = precision_recall(samples, reference, _NEIGHBOURS)
    values["precision"], values["recall"] = found.precision, found.recall
    return {"neighbours": _NEIGHBOURS, "reference_features": len(reference)}


def _kernel(
    name: str,
    samples: Float[Tensor, "N F"],
    reference: Float[Tensor, "K F"],
    values: dict[str, float],
    deviations: dict[str, float],
) -> dict[str, Any]:
    size = min(_SUBSET_SIZE, len(samples), len(reference))
    if size < 2:
        return {}
    subsets = 1 if size == len(samples) == len(reference) else _SUBSETS  # all would be the same
    found = kernel_distance(samples, reference, subsets=subsets, size=size)
    values[name] = found.mean
    if subsets > 1:
        deviations[name] = found.deviation
    return {"subsets": subsets, "subset_size": size, "subset_seed": 2020}
