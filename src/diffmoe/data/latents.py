"""Latents that were encoded before: `latents.npy` beside `labels.npy`, mapped into memory."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffmoe.data.fingerprint import fingerprint, spread
from diffmoe.data.labels import refuse_outside, unlabelled
from diffmoe.data.pictures import Names, captioned_name, class_names_of, listed_captions
from diffmoe.errors import ConfigError, DataError

__all__ = ["LATENTS", "LatentSource"]

LATENTS, LABELS, NAMES = "latents.npy", "labels.npy", "classes.txt"
CAPTIONS = ("captions.jsonl", "captions.txt")  # the first that is there counts


class LatentSource:
    """Latents in model space, (N, C, H, W), or (N, 2, C, H, W): each image and its mirror image.

    Labels lie in 0 .. classes - 1; `classes.txt` may name a class a line. Flipping needs the
    mirror images: a mirrored latent is not the latent of a mirrored image. With `captioned`, a
    file beside them has a caption a line, and labels do not count.
    """

    encoded = True

    captions: Names | None = None

    def __init__(
        self,
        folder: Path,
        *,
        classes: int,
        flip: bool,
        captioned: bool = False,
        caption_field: str | None = None,
    ) -> None:
        self._path = folder / LATENTS
        self._check_shape(flip)
        self._size = self._path.stat().st_size
        self.shape = self._array.shape[-3:]
        if captioned:
            self.captions = _captions(folder, len(self._array), caption_field)
            self.labels, self.class_names = unlabelled(len(self._array))
            return
        self.labels = _labels(folder / LABELS, len(self._array))
        refuse_outside(
            self.labels,
            classes,
            str(folder / LABELS),
            "correct the label or set --model.num-classes",
        )
        used = int(self.labels.max()) + 1
        self.class_names = class_names_of(folder / NAMES, used, classes)

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the mapping: a process that takes the source over maps the file anew."""
        return {name: value for name, value in vars(self).items() if name != "_array"}

    @cached_property
    def _array(self) -> np.ndarray:
        return _map(self._path)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of labels, shape and dtype, and of a few latents, and that of all captions.

        A name is no part of a class.
        """
        array = self._array
        few = (np.ascontiguousarray(array[index]).tobytes() for index in spread(len(array)))
        told = f"{array.shape} {array.dtype}".encode()
        found = fingerprint("latents", self.labels, told, *few)
        if self.captions is None:
            return found
        return captioned_name(found, self.captions.digest(range(len(self))))

    def load(self, index: int, flip: bool) -> Float[Tensor, "C H W"]:
        """One latent, of the mirror image if `flip`; raises DataError if it is not usable."""
        self._refuse_cut(index)
        entry = self._array[index]
        entry = entry[int(flip)] if entry.ndim == 4 else entry
        latent = torch.from_numpy(np.array(entry)).to(torch.float32)
        if not latent.isfinite().all():
            raise self._damage(index, "holds NaN or infinity")
        if latent.numel() > 1 and latent.min() == latent.max():
            raise self._damage(index, f"is constant ({latent.min():g}), as if never written")
        return latent

    def _refuse_cut(self, index: int) -> None:
        """Raise DataError if the file ends before a latent now: reading would kill the process."""
        try:
            lost = self._size - self._path.stat().st_size
        except OSError as error:
            raise self._damage(index, f"cannot be read ({error.strerror})") from error
        if lost > (len(self) - 1 - index) * (self._array.nbytes // len(self)):
            raise self._damage(index, "is gone: the file was cut off since it was opened")

    def _damage(self, index: int, what: str) -> DataError:
        return DataError(
            f"latent {index} {what}", where=str(self._path), remedy="encode the images again"
        )

    def _check_shape(self, flip: bool) -> None:
        shape, where = self._array.shape, str(self._path)
        if len(shape) not in (4, 5) or (len(shape) == 5 and shape[1] != 2) or 0 in shape:
            raise DataError(
                f"latents of shape {shape} are neither (N, C, H, W) nor (N, 2, C, H, W)",
                where=where,
            )
        if self._array.dtype not in (np.float16, np.float32, np.float64):
            raise DataError(
                f"latents are {self._array.dtype}", where=where, remedy="store float16 or float32"
            )
        if flip and len(shape) == 4:
            raise ConfigError(
                "data.flip is on but the latents hold no mirror images",
                where=where,
                remedy="set --data.no-flip, or store (N, 2, C, H, W) with the mirror images",
            )


def _map(path: Path) -> np.ndarray:
    """The array in a file, mapped; a pickled, damaged or missing one raises DataError."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(array, np.ndarray):
            return array.view(np.ndarray)
        reason = "it is an archive of arrays"
    except FileNotFoundError:
        reason = "there is no such file"
    except PermissionError as error:
        raise DataError(
            f"{path.name} may not be read", where=str(path), remedy="check its permissions"
        ) from error
    except Exception as error:  # a damaged header raises nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
    raise DataError(
        f"{path.name} cannot be read ({reason})",
        where=str(path),
        remedy="write one plain array with numpy.save",
    )


def _labels(path: Path, count: int) -> Int[Tensor, " N"]:
    labels = _map(path)
    if labels.shape != (count,):
        raise DataError(
            f"labels of shape {labels.shape} do not fit {count} latents",
            where=str(path),
            remedy="store one label for each latent",
        )
    if labels.dtype.kind not in "iu":
        raise DataError(f"labels are {labels.dtype}", where=str(path), remedy="store integers")
    return torch.from_numpy(labels.astype(np.int64))


def _captions(folder: Path, count: int, field: str | None) -> Names:
    """The captions beside latents; raises DataError if they are not there, or not as many.

    A `field` that is asked for is one of JSON lines.
    """
    for name in CAPTIONS if field is None else CAPTIONS[:1]:
        path = folder / name
        if path.is_file():
            with path.open("rb") as file:
                return listed_captions(
                    str(path), file, count, "store one line for each latent", field
                )
    raise DataError(
        f"there are {count} latents but no captions",
        where=str(folder),
        remedy=f"write them a line each into {' or '.join(CAPTIONS)}",
    )
