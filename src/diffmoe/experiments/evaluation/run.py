"""Evaluate images, or make a reference of them."""

import hashlib
import json
from pathlib import Path

from diffmoe.checkpoint import RunFolder, write_text
from diffmoe.config import RunConfig, SamplingConfig
from diffmoe.device import is_first_process, resolve_device
from diffmoe.errors import ConfigError, StorageError
from diffmoe.evaluation import (
    ADM_IMAGES,
    Described,
    FeatureNetwork,
    ImageSet,
    Reference,
    load_clip,
    npz_arrays,
    open_images,
    refuse_sizes,
    some,
    write_statistics,
)
from diffmoe.experiments.evaluation.captions import caption_numbers, captioned
from diffmoe.experiments.evaluation.gallery import open_gallery
from diffmoe.experiments.evaluation.judging import draw_splits, judged, refuse_of_judge
from diffmoe.experiments.evaluation.numbers import numbers_of
from diffmoe.experiments.evaluation.subject import (
    NetworkName,
    choose,
    load_network,
    reference_of,
    run_config,
    samples_of,
)
from diffmoe.experiments.evaluation.work import FORMAT, Work
from diffmoe.experiments.evaluation.written import Evaluated, content_of, plain, refuse_foreign

__all__ = ["evaluate", "make_statistics"]


def evaluate(
    path: Path | str,
    reference: Path | str | None = None,
    *,
    network: NetworkName | None = None,
    weights: str | None = None,
    count: int | None = None,
    crop: bool = False,
    settings: SamplingConfig | None = None,
    first_seed: int = 0,
    out: Path | None = None,
    device: str = "auto",
    progress: bool = True,
) -> Evaluated:
    """Compare the images at `path`, or images drawn from the run there, with a reference.

    The numbers and all they depend on are written as JSON; the same call again reads them. Any
    number of processes share the work. Raises ConfigError or DataError, before any work, where
    samples, reference and network do not go together.
    """
    path, where = Path(path), str(resolve_device(device))
    config = run_config(path)
    if config is None and settings is not None:
        raise ConfigError("settings of sampling are given, but nothing is drawn", where=str(path))
    if not path.exists():
        raise ConfigError(
            "there is nothing to evaluate: the path does not exist",
            where=str(path.absolute()),
            remedy="give a run, a folder of images, an archive or an .npz",
        )
    name = choose(network, config, reference is not None)
    shown = progress and is_first_process()
    given = None if reference is None else Path(reference)
    if network == "clip":
        _refuse_of_captions(config, given)
        return _captioned(path, weights, count, out, where, shown)
    if name == "judge":
        refuse_of_judge(config, given is not None or crop or weights is not None, count, out)
        if config is None:
            return judged(path, False, {"images": open_gallery(path)}, out, shown)
        drawn = draw_splits(path, count, settings or config.sampling, first_seed, device, shown)
        return judged(path, True, drawn, out, shown)
    against = reference_of(path, config, given, _side(config, path) if crop else None)
    if config is not None:
        refuse_sizes((config.image_size, config.image_size), against)
    judge = load_network(name, weights, against, where, shown)
    against = _fitting(against, judge)
    samples = samples_of(path, config, count, against, name, settings, first_seed, device, shown)
    refuse_sizes(_size(samples.images), against)
    work = Work(samples, against, judge, name, where)
    place = out or _place(path, config, work)
    refuse_foreign(place)

    def write(found: Described, seen: Described | None) -> None:
        content = numbers_of(work, found, seen)
        write_text(place, json.dumps({"format": FORMAT, "key": work.key, **content}, indent=2))

    work.done(place, lambda: content_of(place).get("key") == plain(work.key), write, shown)
    return Evaluated(place, content_of(place))


def _refuse_of_captions(config: RunConfig | None, reference: Path | None) -> None:
    if config is not None or reference is not None:
        raise ConfigError(
            "network clip compares images with their captions, not with a reference or a run",
            remedy="give a folder of captioned samples, and no --reference",
        )


def _captioned(
    path: Path, weights: str | None, count: int | None, out: Path | None, where: str, shown: bool
) -> Evaluated:
    """The score of images and their captions; one process does it."""
    samples, captions = captioned(path, count)
    judge = load_clip(*([weights] if weights else []), device=where)
    told = json.dumps([samples.images.fingerprint, captions, judge.fingerprint]).encode()
    here = path.absolute()
    name = f"{here.name}-clip-{hashlib.sha256(told).hexdigest()[:8]}.json"
    place = out or here.parent / name
    refuse_foreign(place)
    content = caption_numbers(samples, captions, judge, shown)
    write_text(place, json.dumps({"format": FORMAT, **content}, indent=2))
    return Evaluated(place, content_of(place))


def make_statistics(
    path: Path | str,
    out: Path,
    *,
    network: NetworkName | None = None,
    weights: str | None = None,
    count: int | None = None,
    crop: int | None = None,
    device: str = "auto",
    progress: bool = True,
) -> Path:
    """Write the statistics of the images at `path` as an `.npz`, to be a reference later.

    `crop` takes their centres, scaled to so many pixels in ADM's way.
    """
    path, shown = Path(path), progress and is_first_process()
    if out.suffix != ".npz":
        raise ConfigError(f"statistics {out} is no .npz", remedy="give a name that ends in .npz")
    if network in ("small", "judge"):
        raise ConfigError(
            f"statistics of the {network} network would be of no use without it",
            remedy="give the images themselves as --reference, or another --network",
        )
    if run_config(path) is not None:
        raise ConfigError(
            "a run is no reference", where=str(path), remedy="give the folder of its samples"
        )
    name, where = choose(network, None, given=True), str(resolve_device(device))
    judge = load_network(name, weights, None, where, shown)
    samples = samples_of(path, None, count, None, name, None, 0, device, shown, crop)
    work = Work(samples, None, judge, name, where)
    if out.exists() and not _is_statistics(out, work):
        raise StorageError(
            "statistics would replace another file", where=str(out), remedy="choose another name"
        )

    def write(found: Described, _: Described | None) -> None:
        write_statistics(out, _as_reference(found, work), found.sha256, work.digest)

    work.done(out, lambda: _is_statistics(out, work), write, shown)
    return out


def _as_reference(found: Described, work: Work) -> Reference:
    """What is kept of images that are to be a reference."""
    labels = work.samples.images.labels
    return Reference(
        place=work.samples.images.place,
        pooled=found.pooled,
        spatial=found.spatial,
        features=found.features[some(found.count, ADM_IMAGES)],
        side=found.side,
        network=work.network.fingerprint,
        count=found.count,
        labels=None if labels is None else tuple(labels[: found.count].unique().tolist()),
    )


def _is_statistics(out: Path, work: Work) -> bool:
    """Whether `out` holds the statistics that a work would write."""
    if not out.exists():
        return False
    with npz_arrays(out) as arrays:
        return "work" in arrays and str(arrays["work"]) == work.digest


def _side(config: RunConfig | None, path: Path) -> int:
    """The side of the samples, to which a reference is cropped."""
    if config is not None:
        return config.image_size
    height, width = _size(open_images(path))
    if height != width:
        raise ConfigError(
            f"the samples are {height} x {width} pixels, no square to crop to",
            where=str(path),
            remedy="leave out --crop",
        )
    return height


def _size(images: ImageSet) -> tuple[int, int]:
    """Height and width of the first image, which the others must have."""
    height, width = images.read(0)[0].shape[1:]
    return int(height), int(width)


def _fitting(reference: Reference, network: FeatureNetwork) -> Reference:
    """The reference, without statistics that another network made."""
    if reference.pooled is None:
        return reference
    own = reference.network == network.fingerprint
    published = not reference.network and network.name == "inception"
    return reference if own or published else reference.of_images()


def _place(path: Path, config: RunConfig | None, work: Work) -> Path:
    """Where the numbers go when nothing says where: into the run, or beside the images."""
    name = f"{work.name}-{work.digest}.json"
    if config is not None:
        return RunFolder(path).evaluations / name
    here = path.absolute()
    return here.parent / f"{here.stem if here.is_file() else here.name}-{name}"
