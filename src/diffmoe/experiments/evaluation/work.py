"""The work of an evaluation in parts that any number of processes share."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from diffmoe.checkpoint import Parts
from diffmoe.errors import StoppedError, StorageError
from diffmoe.evaluation import (
    ADM_IMAGES,
    PART,
    Described,
    FeatureNetwork,
    ImageSet,
    Reference,
    describe,
    extract,
    part_of,
)
from diffmoe.experiments.evaluation.subject import NetworkName, Samples
from diffmoe.sampling import refuse_unwritable

__all__ = ["FORMAT", "Work"]

FORMAT = "diffmoe evaluation 1"
_COUNT = ("diffmoe", "torch", "numpy", "pillow")  # packages that a number may depend on
_KEPT = 4 * 2048  # bytes of the features of an image that are kept until the end, of Inception
_BYTES = _KEPT + 4 * 2023 + 8 * 1008  # of all that is known of an image


@dataclass(frozen=True)
class Work:
    """Features to find: first those of the reference's images, then those of the samples."""

    samples: Samples
    reference: Reference | None  # None where statistics are made of the samples
    network: FeatureNetwork
    name: NetworkName
    device: str  # where the network is

    @property
    def key(self) -> dict[str, Any]:
        """All that the result depends on, cheap to tell."""
        known = self.reference
        of_images = None if known is None or known.images is None else known.images.fingerprint
        return {
            "format": FORMAT,
            "versions": {name: version(name) for name in _COUNT},
            "samples": self.samples.images.fingerprint,
            "made": self.samples.record,
            "count": self.samples.count,
            "reference": None if known is None else [known.sha256, of_images, known.is_adm256],
            "network": [self.name, self.network.fingerprint],
        }

    @property
    def digest(self) -> str:
        """The key as a few letters, for names of files."""
        return hashlib.sha256(json.dumps(self.key).encode()).hexdigest()[:8]

    def done(
        self,
        out: Path,
        finished: Callable[[], bool],
        write: Callable[[Described, Described | None], object],
        progress: bool,
    ) -> None:
        """See to it that `write` is called with samples and reference described, by one process.

        It writes `out`, which makes `finished` true.
        """
        folder, count = out.with_name(f"{out.name}.parts"), self._sample_parts.stop
        if finished() and not folder.exists():
            return
        refuse_unwritable(out.parent, out.name)
        with Parts.opened(folder, count, self.key, finished) as parts:
            if parts is None:
                return
            self._refuse_full(parts)
            try:
                self._extract(parts, progress)
                parts.end(lambda: write(*self._described(parts)), finished)
            except KeyboardInterrupt as stop:
                raise StoppedError(
                    f"interrupted: {len(parts.done)} of {count} parts of the features are there",
                    where=str(folder),
                    remedy="the same command goes on from there",
                ) from stop

    def _refuse_full(self, parts: Parts) -> None:
        """Raise StorageError if the disk has no room for the features that are still to come."""
        left = (parts.count - len(parts.done)) * PART * _BYTES + self.samples.count * _KEPT
        free = shutil.disk_usage(parts.folder).free
        if self.name == "inception" and left > free:
            raise StorageError(
                f"features need {left / 1e9:.2f} GB and {free / 1e9:.2f} GB are free",
                where=str(parts.folder),
                remedy="make room, or choose another --out: they lie beside it for the while",
            )

    @property
    def _reference_images(self) -> ImageSet | None:
        """Images of the reference whose features are to be found, if any are."""
        known = self.reference
        is_known = known is None or (known.pooled is not None and known.features is not None)
        return None if known is None or is_known else known.images

    @property
    def _sample_parts(self) -> range:
        images = self._reference_images
        first = 0 if images is None else _parts(len(images))
        return range(first, first + _parts(self.samples.count))

    def _extract(self, parts: Parts, progress: bool) -> None:
        with tqdm(total=parts.count, desc="features", unit="part", disable=not progress) as bar:

            def tell(done: int) -> None:
                bar.update(done - bar.n)

            tell(len(parts.done))
            parts.fill(self._part, tell)

    def _part(self, number: int, folder: Path) -> None:
        own, images = number - self._sample_parts.start, self._reference_images
        if own >= 0 or images is None:
            numbers = part_of(own, self.samples.count)
            extract(self.samples.images, self.network, numbers, folder)
        else:
            extract(images, self.network, part_of(number, len(images)), folder)

    def _described(self, parts: Parts) -> tuple[Described, Described | None]:
        images, reference = self._reference_images, None
        if images is not None:
            numbers, count = range(self._sample_parts.start), len(images)
            scratch = parts.scratch("reference.npy")
            reference = describe(
                parts, numbers, count, keep=ADM_IMAGES, score=False, scratch=scratch
            )
        count, scratch = self.samples.count, parts.scratch("samples.npy")
        score = self.name == "inception" and self.reference is not None
        samples = describe(
            parts, self._sample_parts, count, keep=count, score=score, scratch=scratch
        )
        return samples, reference


def _parts(images: int) -> int:
    return -(-images // PART)
