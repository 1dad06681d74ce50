"""Everything an evaluation says, each number with what it depends on."""

from typing import Any

import torch

from diffmoe.evaluation import (
    BLOCK,
    PIXEL_COMPONENTS,
    Described,
    PixelComponents,
    Reference,
    SmallNetwork,
    completed,
    frechet_distance,
    measure,
)
from diffmoe.experiments.evaluation.classes import Classes
from diffmoe.experiments.evaluation.work import Work

__all__ = ["numbers_of"]


def numbers_of(work: Work, found: Described, seen: Described | None) -> dict[str, Any]:
    """Values, deviations, cautions, what was counted, and the protocol.

    `found` are the samples, `seen` the images of the reference where it has some.
    """
    assert work.reference is not None  # else statistics are made, and nothing is compared
    reference = completed(work.reference, seen)
    measured = measure(found, reference, work.name, work.network.fingerprint)
    values, settings = dict(measured.values), dict(measured.settings)
    cautions = [*measured.cautions, *_cautions(work, found, seen)]
    if work.name == "small":
        values[f"fd_pixels@{found.count}"] = _pixel_distance(work)
        settings["pixel_components"] = PIXEL_COMPONENTS
        values |= _agreement(work, found)
    return {
        "values": values,
        "deviations": measured.deviations,
        "cautions": cautions,
        "counted": {"samples": _counted(found), "reference": seen and _counted(seen)},
        "protocol": {
            "samples": _samples(work, found),
            "reference": _reference(reference, seen),
            "network": _network(work),
            "settings": settings,
            "versions": work.key["versions"],
        },
    }


def _pixel_distance(work: Work) -> float:
    """Frechet distance on the reference's principal components of pixels."""
    assert work.reference is not None and work.reference.images is not None
    components = PixelComponents.of(work.reference.images)
    samples = components.moments(work.samples.images, work.samples.count)
    real = components.moments(work.reference.images, len(work.reference.images))
    return frechet_distance(samples, real)


def _agreement(work: Work, found: Described) -> dict[str, float]:
    """Share of the samples that the network reads as the class asked for, where that is known."""
    asked, own, theirs = work.samples.labels, *_classes(work)
    if asked is None or found.read_as is None:
        return {}
    wanted = own.as_in(theirs, asked[: found.count])
    if wanted is None:
        return {}
    return {"agreement": float((found.read_as == wanted).double().mean())}


def _classes(work: Work) -> tuple[Classes, Classes]:
    labels, known = work.samples.labels, work.reference
    own = Classes(
        None if labels is None else labels[: work.samples.count], work.samples.class_names
    )
    if known is not None and known.images is not None and known.images.labels is not None:
        return own, Classes(known.images.labels, known.images.class_names)
    listed = None if known is None or known.labels is None else torch.tensor(known.labels)
    return own, Classes(listed, work.samples.class_names)


def _cautions(work: Work, found: Described, seen: Described | None) -> list[str]:
    own, theirs = _classes(work)
    said = [own.missing(theirs), own.unknown(theirs)]
    if work.samples.disowned:
        said.append("the record beside the samples is not of these images, and was left out")
    if work.name == "small" and not _agreement(work, found):
        said.append("which class a sample was asked for is not known: there is no agreement")
    for what, one in (("samples", found), ("images of the reference", seen)):
        if one is not None and one.duplicates:
            said.append(f"{one.duplicates:,} of {one.count:,} {what} equal earlier ones")
        if one is not None and one.alpha:
            said.append(f"{one.alpha:,} of {one.count:,} {what} had transparency, laid on white")
    if seen is not None and bool(found.grey) != bool(seen.grey):
        one, what = (found, "samples") if found.grey else (seen, "images of the reference")
        said.append(f"{one.grey:,} of {one.count:,} {what} are grey, and none of the others")
    return [sentence for sentence in said if sentence]


def _counted(one: Described) -> dict[str, int]:
    names = ("count", "duplicates", "grey", "alpha", "converted")
    return {name: getattr(one, name) for name in names}


def _samples(work: Work, found: Described) -> dict[str, Any]:
    return {
        "place": work.samples.images.place,
        "count": found.count,
        "side": list(found.side),
        "images_sha256": found.sha256,
        "made": work.samples.record,
    }


def _reference(reference: Reference, seen: Described | None) -> dict[str, Any]:
    return {
        "place": reference.place,
        "count": reference.count,
        "side": reference.side and list(reference.side),
        "sha256": reference.sha256,
        "images_sha256": seen and seen.sha256,
        "features": None if reference.features is None else len(reference.features),
        "adm256": reference.is_adm256,
    }


def _network(work: Work) -> dict[str, Any]:
    told = {"name": work.name, "sha256": work.network.fingerprint, "block": BLOCK}
    told["device"] = work.device
    if isinstance(work.network, SmallNetwork):
        told["held_out_accuracy"] = work.network.held_out_accuracy
    return told
