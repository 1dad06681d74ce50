"""What samples are compared with: published statistics, one's own, or images."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffmoe.checkpoint import write_file
from diffmoe.errors import ConfigError, DataError
from diffmoe.evaluation.moments import Moments
from diffmoe.evaluation.sets.images import ImageSet, open_images
from diffmoe.evaluation.sets.npz import IMAGES, NpzSet, npz_arrays

__all__ = ["ADM_IMAGES", "Reference", "open_reference", "write_statistics"]

_ADM_NAME = "VIRTUAL_imagenet256_labeled.npz"
ADM_IMAGES = 10_000  # images in the reference batches of ADM, for precision and recall only
_WIDTHS = {"mu": 2048, "mu_s": 2023}  # of ADM's statistics
_FORMAT = "diffmoe statistics 1"


@dataclass(frozen=True)
class Reference:
    """Statistics, images, or both; what is None is computed from the images."""

    place: str  # for messages
    images: ImageSet | None = None
    pooled: Moments | None = None
    spatial: Moments | None = None
    features: Float[Tensor, "K F"] | None = None  # of some of the images, for precision and recall
    side: tuple[int, int] | None = None  # height and width of its images; None = not known
    sha256: str = ""  # of the file; of images it is known once they were read
    network: str = ""  # fingerprint of the network behind statistics; empty = Inception of 2015
    count: int | None = None  # images behind the statistics; None = not known
    labels: tuple[int, ...] | None = None  # classes that have images; None = not known

    @property
    def is_adm256(self) -> bool:
        """Whether it is called as ADM's reference batch of ImageNet 256, with all of its arrays.

        No hash of that file is published; the file's own stands beside every number.
        """
        named = Path(self.place).name == _ADM_NAME
        batch = named and isinstance(self.images, NpzSet) and len(self.images) == ADM_IMAGES
        whole = self.pooled is not None and self.spatial is not None and not self.network
        return batch and whole and self.side == (256, 256)

    def of_images(self) -> "Reference":
        """The same images without statistics, for a network that these are not of."""
        if self.images is None:
            raise ConfigError(
                "the reference holds statistics of another network and no images",
                where=self.place,
                remedy="give its images, or statistics that were made with this network",
            )
        return Reference(self.place, self.images, side=self.side, sha256=self.sha256)


def open_reference(path: Path, crop: int | None = None) -> Reference:
    """The reference at `path`: an `.npz` with statistics, images or both, or images of any kind.

    Raises ConfigError if it is not there, DataError if it is damaged or neither.
    """
    if path.suffix != ".npz" or not path.exists():
        return Reference(str(path), open_images(path, crop))
    with npz_arrays(path) as archive:
        if "mu" not in archive and IMAGES not in archive:
            raise DataError(
                f"the file holds neither statistics (mu, sigma) nor images ({IMAGES}) but"
                f" {', '.join(archive) or 'nothing'}",
                where=str(path),
                remedy="give a reference batch of ADM, statistics, or images",
            )
        images = NpzSet(path) if IMAGES in archive else None
        if "mu" not in archive:
            return Reference(str(path), images)
        return _with_statistics(path, archive, images)


def _with_statistics(path: Path, archive: Any, images: NpzSet | None) -> Reference:
    count = _whole(path, archive, "count", ())
    found = {
        mean: _moments(path, archive, mean, deviation, count)
        for mean, deviation in (("mu", "sigma"), ("mu_s", "sigma_s"))
    }
    network = str(archive["network"]) if "network" in archive else ""
    if not network:
        _check_widths(path, found)
    side = _whole(path, archive, "side", (2,))
    labels = _whole(path, archive, "labels", None)
    return Reference(
        place=str(path),
        images=images,
        pooled=found["mu"],
        spatial=found["mu_s"],
        features=_features(path, archive, found["mu"]),
        side=side,
        sha256=_hash(path),
        network=network,
        count=count,
        labels=labels,
    )


def _moments(
    path: Path, archive: Any, mean: str, covariance: str, count: int | None
) -> Moments | None:
    if mean not in archive:
        return None
    if covariance not in archive:
        raise DataError(f"the file holds {mean} without {covariance}", where=str(path))
    try:
        return Moments.from_arrays(archive[mean], archive[covariance], count)
    except DataError as error:
        raise DataError(f"{mean} and {covariance}: {error}", where=str(path)) from error


def _check_widths(path: Path, found: dict[str, Moments | None]) -> None:
    for name, moments in found.items():
        if moments is not None and len(moments.mean) != _WIDTHS[name]:
            raise DataError(
                f"{name} has {len(moments.mean)} features, those of the ADM protocol"
                f" {_WIDTHS[name]}",
                where=str(path),
                remedy="give statistics of the Inception network of 2015, or images",
            )


def _whole(path: Path, archive: Any, name: str, shape: tuple[int, ...] | None) -> Any:
    """Whole numbers of a file as numbers, of the shape if one is given; None without any."""
    if name not in archive:
        return None
    found = archive[name]
    fits = found.ndim == 1 if shape is None else found.shape == shape
    if found.dtype.kind not in "iu" or not fits:
        raise DataError(
            f"{name} of shape {found.shape} and type {found.dtype} is not what it should be",
            where=str(path),
            remedy="write the statistics again",
        )
    return tuple(found.tolist()) if found.ndim else int(found)


def _features(path: Path, archive: Any, pooled: Moments | None) -> Tensor | None:
    if "features" not in archive:
        return None
    found = archive["features"]
    width = None if pooled is None else len(pooled.mean)
    fits = found.ndim == 2 and found.dtype == np.float32 and found.shape[1] == width
    if not fits or not np.isfinite(found).all():
        raise DataError(
            f"features of shape {found.shape} and type {found.dtype} are no float32 (K, F)",
            where=str(path),
            remedy="write the statistics again",
        )
    return torch.from_numpy(found)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_statistics(path: Path, reference: Reference, images_sha256: str, work: str) -> None:
    """Write the statistics of a set as an `.npz`, named as in ADM's reference batches.

    Beside `mu`, `sigma`, `mu_s` and `sigma_s` stand `features` of some images, of which precision,
    recall and the kernel distance are taken, and what tells of which images and network they are;
    `work` names the work that made them.
    """
    if reference.pooled is None:
        raise ConfigError("there are no statistics to write", where=reference.place)
    arrays = {"mu": reference.pooled.mu, "sigma": reference.pooled.sigma}
    if reference.spatial is not None:
        arrays |= {"mu_s": reference.spatial.mu, "sigma_s": reference.spatial.sigma}
    if reference.features is not None:
        arrays["features"] = reference.features.numpy()
    if reference.labels is not None:
        arrays["labels"] = np.array(reference.labels, np.int64)
    told = {
        "format": np.array(_FORMAT),
        "network": np.array(reference.network),
        "images_sha256": np.array(images_sha256),
        "work": np.array(work),
        "count": np.array(reference.count),
        "side": np.array(reference.side),
    }
    write_file(path, lambda aside: _save(aside, arrays | told))


def _save(aside: Path, arrays: dict[str, np.ndarray]) -> None:
    with aside.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
