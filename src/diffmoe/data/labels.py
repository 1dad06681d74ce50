"""Labels looked through once, before the first of them is used."""

import torch
from jaxtyping import Int
from torch import Tensor

from diffmoe.errors import DataError

__all__ = ["refuse_outside", "refuse_unfit", "unlabelled"]

_NULL = " (it is the null class of guidance, which no image may have)"
_OWN = "correct the `labels` of the source"


def unlabelled(count: int) -> tuple[Int[Tensor, " N"], tuple[str, ...]]:
    """Labels and the name of the only class, for samples whose condition is a caption."""
    return torch.zeros(count, dtype=torch.int64), ("captioned",)


def refuse_outside(
    labels: Int[Tensor, " N"], classes: int, where: str, remedy: str, *, null: bool = True
) -> None:
    """Raise DataError for the first label that names none of the `classes`.

    With `null`, the number behind the last class is that of no condition at all.
    """
    outside = ((labels < 0) | (labels >= classes)).nonzero()
    if len(outside):
        index = int(outside[0])
        label = int(labels[index])
        raise DataError(
            f"label {label} of sample {index} is not in 0..{classes - 1}"
            f"{_NULL if null and label == classes else ''}",
            where=where,
            remedy=remedy,
        )


def refuse_unfit(labels: Tensor, count: int, classes: int, where: str) -> None:
    """Raise DataError unless there is one whole number in 0 .. classes - 1 for each sample."""
    if not count:
        raise DataError("there are no samples", where=where, remedy="give a source that holds some")
    if tuple(labels.shape) != (count,):
        raise DataError(
            f"labels of shape {tuple(labels.shape)} do not fit {count} samples",
            where=where,
            remedy=_OWN,
        )
    if "int" not in str(labels.dtype):
        raise DataError(
            f"labels are {str(labels.dtype).removeprefix('torch.')}",
            where=where,
            remedy="store integers",
        )
    refuse_outside(labels, classes, where, _OWN)
