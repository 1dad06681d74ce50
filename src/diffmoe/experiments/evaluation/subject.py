"""What is evaluated against what, and with which network: found and checked before any work."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Int
from torch import Tensor

from diffmoe.checkpoint import RunFolder, claimed_manifest
from diffmoe.config import PixelCodec, RunConfig, SamplingConfig, ScenesData
from diffmoe.data import Source, open_source
from diffmoe.errors import ConfigError
from diffmoe.evaluation import (
    ADM_SAMPLES,
    FeatureNetwork,
    ImageSet,
    Reference,
    SomeImages,
    find_small_network,
    images_of,
    load_dino,
    load_inception_network,
    open_images,
    open_reference,
    read_images,
    record_of,
    small_network,
    some,
)
from diffmoe.experiments.prompts import Asked, prompted
from diffmoe.experiments.requests import request, trained_classes
from diffmoe.experiments.samples import sample
from diffmoe.experiments.scoring import skips_damaged
from diffmoe.sampling import is_as_recorded

__all__ = ["NetworkName", "Samples", "choose", "load_network", "reference_of", "samples_of"]

NetworkName = Literal["inception", "dinov2", "small", "clip", "judge"]
_SMALL_SIDES = range(8, 65)  # pixels of the images that the small network takes
_SMALL_IMAGES = 20_000  # that it is trained on at most
_FEWEST = 2  # images that can be compared
_SMALL_DRAWN = 10_000  # samples drawn at most to compare with a small reference


@dataclass(frozen=True)
class Samples:
    """The images to evaluate, and how they were made where that is known."""

    images: ImageSet
    record: dict[str, Any] | None
    disowned: bool = False  # a record lies beside the images, and is not of them

    @property
    def count(self) -> int:
        """How many images there are."""
        return len(self.images)

    @property
    def labels(self) -> Int[Tensor, " N"] | None:
        """The class of each image, None where they have none: prompts are no classes."""
        return None if (self.record or {}).get("prompts") else self.images.labels

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names that were recorded as the images were drawn, else those of the set."""
        return tuple((self.record or {}).get("class_names") or self.images.class_names)


def run_config(path: Path) -> RunConfig | None:
    """The config of the run at `path`, None if it is none but images."""
    folder = RunFolder(path)
    return folder.read_config() if path.is_dir() and folder.is_run else None


def choose(name: NetworkName | None, config: RunConfig | None, given: bool) -> NetworkName:
    """The network to use where none is named.

    A run that draws scenes from prompts has the judge, small images of classes and their own data
    the small network; everything else has Inception.
    """
    if name is not None:
        return name
    if config is not None and config.model.reads_text:
        if isinstance(config.data, ScenesData) and not given:
            return "judge"
        _refuse_small_captions(config, given)
        return "inception"
    is_small = config is not None and config.image_size in _SMALL_SIDES
    own_pixels = config is not None and isinstance(config.codec, PixelCodec) and not given
    return "small" if is_small and own_pixels else "inception"


def _refuse_small_captions(config: RunConfig, given: bool) -> None:
    """Raise ConfigError for small images of one's own, which nothing at hand scores by itself."""
    if config.image_size in _SMALL_SIDES and isinstance(config.codec, PixelCodec) and not given:
        raise ConfigError(
            "the run draws small images from captions, and nothing scores these by itself",
            remedy="name --network inception or dinov2, whose weights you have, or draw a folder"
            " with `diffmoe sample` and compare that: --network clip, or judge for scenes",
        )


def reference_of(
    path: Path, config: RunConfig | None, reference: Path | None, side: int | None
) -> Reference:
    """The reference that was given, its images cropped to `side`, else a run's training data."""
    if reference is not None:
        return _sized(open_reference(reference, side))
    if config is None:
        raise ConfigError(
            "there is nothing to compare the images with",
            remedy="give --reference, or --statistics to make a reference of the images",
        )
    if side is not None:
        raise ConfigError(
            "a run's own data are cropped as it was trained on them", remedy="leave out --crop"
        )
    source = open_source(config)
    _refuse_changed(path, source)
    where = str(getattr(config.data, "path", None) or config.data.kind)
    images = images_of(source, where, skips_damaged(config))
    return _sized(Reference(images.place, images))


def _refuse_changed(path: Path, source: Source) -> None:
    """Raise ConfigError if a run's data are not those it was trained on."""
    known = claimed_manifest(RunFolder(path).checkpoints)
    then = None if known is None else known.trained_on.get("data")
    if then not in (None, source.fingerprint):
        raise ConfigError(
            f"the data are not those of the training any more: {then} then, {source.fingerprint}"
            " now",
            where=str(path),
            remedy="restore them, or give --reference",
        )


def _sized(reference: Reference) -> Reference:
    """The reference with the size of its first image."""
    if reference.images is None:
        return reference
    height, width = reference.images.read(0)[0].shape[1:]
    return replace(reference, side=(int(height), int(width)))


def samples_of(
    path: Path,
    config: RunConfig | None,
    count: int | None,
    reference: Reference | None,
    network: NetworkName,
    settings: SamplingConfig | None,
    seed: int,
    device: str,
    progress: bool,
    crop: int | None = None,
) -> Samples:
    """The images at `path`, or images drawn from the run there, exactly `count`."""
    if config is None:
        images = open_images(path, crop)
        return _recorded(_counted(images, count), path)
    prompts = config.model.reads_text
    classes = 1 if prompts else trained_classes(path, config.model.num_classes)
    number = _drawn(classes, reference, network) if count is None else count
    if number < _FEWEST:
        raise ConfigError(f"count {number} is too few to evaluate", remedy=f"use {_FEWEST} or more")
    if prompts:
        asked = prompted(path, (), (), number, first_seed=seed)
    else:
        asked = Asked(*request((), (), number, classes, first_seed=seed), law="balanced")
    drawn = sample(
        path,
        asked.labels,
        asked.seeds,
        settings=settings or config.sampling,
        prompts=asked.prompts,
        law=asked.law,
        format="npz",
        device=device,
        progress=progress,
    )
    return _recorded(open_images(drawn), drawn)


def _recorded(images: ImageSet, path: Path) -> Samples:
    """Images with what was written beside them as they were drawn, if it is of them."""
    if is_as_recorded(path) is False:
        return Samples(images, None, disowned=True)
    return Samples(images, record_of(path))


def _counted(images: ImageSet, count: int | None) -> ImageSet:
    """The images, or `count` of them."""
    if count is not None and not _FEWEST <= count <= len(images):
        raise ConfigError(
            f"count {count} is not in [{_FEWEST}, {len(images)}], the number of images",
            where=images.place,
            remedy="give more images, or leave out --count to take all",
        )
    return images if count in (None, len(images)) else SomeImages(images, count or 0)


def _drawn(classes: int, reference: Reference | None, network: NetworkName) -> int:
    """As many samples as the protocol wants, or as a small reference has images, in equal parts."""
    if network != "small" or reference is None or reference.images is None:
        return ADM_SAMPLES
    return max(1, min(_SMALL_DRAWN, len(reference.images)) // classes) * classes


def load_network(
    name: NetworkName, weights: str | None, reference: Reference | None, device: str, progress: bool
) -> FeatureNetwork:
    """The network of that name; the small one is trained on the reference, or was before."""
    if name == "inception":
        return load_inception_network(weights, device=device)
    if name == "dinov2":
        return load_dino(*([weights] if weights else []), device=device)
    if weights is not None:
        raise ConfigError(
            "the small network has no weights to be given: the reference decides them",
            remedy="leave out --network-weights",
        )
    return _small(reference, progress)


def _small(reference: Reference | None, progress: bool) -> FeatureNetwork:
    images = None if reference is None else reference.images
    if images is None or images.labels is None:
        raise ConfigError(
            "the small network is trained on a reference of images with classes, which this is not",
            where="" if reference is None else reference.place,
            remedy="give a folder with one sub-folder a class as --reference, or another --network",
        )
    known, classes = images.fingerprint, len(images.class_names)
    if reference is not None and reference.side is not None:
        kept = find_small_network(known, side=reference.side[1], classes=classes)
        if kept is not None:
            return kept
    numbers = some(len(images), _SMALL_IMAGES)
    pixels, _ = read_images(images, numbers)
    labels = images.labels[numbers]
    return small_network(
        pixels, labels, classes=classes, fingerprint_of_data=known, progress=progress
    )
