"""Which of the processes that hold a piece of a tensor writes it, by PyTorch's planners."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Size, Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import (
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)

from diffmoe.checkpoint.pieces import Piece
from diffmoe.errors import StorageError

__all__ = ["Planner", "pieces_of"]


def pieces_of(parts: Mapping[str, Mapping[str, Tensor | Piece]]) -> dict[str, Piece]:
    """What a process has of each tensor, by `part/name`."""
    return {
        f"{part}/{name}": _piece(value)
        for part, tensors in parts.items()
        for name, value in tensors.items()
    }


def _piece(value: Tensor | Piece) -> Piece:
    """What a process has of a tensor; of one without elements, all that there is."""
    if not isinstance(value, Piece):
        return Piece(value, (0,) * value.dim(), tuple(value.shape))
    if not math.prod(value.shape):
        return Piece(value.own.new_empty(value.shape), (0,) * len(value.shape), value.shape)
    return value


class Planner(DefaultSavePlanner):
    """Plans to write each piece once, whichever processes hold it, and about as much by each."""

    def __init__(self, path: Path) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._path = path

    def create_local_plan(self) -> SavePlan:
        """What this process could write: its pieces, but for those that hold nothing."""
        items = []
        for name, piece in self.state_dict.items():
            if not piece.fits:
                raise StorageError(
                    f"no piece of {tuple(piece.own.shape)} at {tuple(piece.offsets)} lies in"
                    f" {name}, which is {tuple(piece.shape)}",
                    where=str(self._path),
                )
            if piece.own.numel() or not math.prod(piece.shape):
                items.append(_item(name, piece))
        self.plan = SavePlan(items)
        return self.plan

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        """Who writes what; StorageError unless all the pieces make the tensors."""
        _refuse_disagreement(all_plans, self._path)
        try:
            return super().create_global_plan(_shared_out(all_plans))
        except ValueError as error:
            raise StorageError(
                f"the pieces of all processes do not make the tensors ({error})",
                where=str(self._path),
            ) from error

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        """The piece of this process."""
        return self.state_dict[index.fqn].own


def _item(name: str, piece: Piece) -> WriteItem:
    offsets, sizes = Size(piece.offsets), piece.own.shape
    return WriteItem(
        MetadataIndex(name, offsets),
        WriteItemType.SHARD,
        tensor_data=TensorWriteData(
            ChunkStorageMetadata(offsets, sizes),
            TensorProperties(dtype=piece.own.dtype),
            Size(piece.shape),
        ),
    )


def _refuse_disagreement(plans: list[SavePlan], path: Path) -> None:
    """Raise StorageError where two processes hold tensors or pieces of a name that differ."""
    known: dict[Any, tuple[int, Any]] = {}
    for process, plan in enumerate(plans):
        for item in plan.items:
            data = item.tensor_data
            whole = (data.properties.dtype, tuple(data.size))
            for key, own in ((item.index.fqn, whole), (item.index, tuple(data.chunk.sizes))):
                first, theirs = known.setdefault(key, (process, own))
                if theirs != own:
                    raise StorageError(
                        f"processes {first} and {process} do not hold the same"
                        f" {item.index.fqn}: {theirs} and {own}",
                        where=str(path),
                    )


def _shared_out(plans: list[SavePlan]) -> list[SavePlan]:
    """The plans with each piece in one of them, so that all have about as many bytes to write.

    The copies of a sharded tensor are written whole: their pieces then lie alike for many tensors,
    which need say so only once in a manifest.
    """
    holders: dict[str, dict[MetadataIndex, list[int]]] = {}
    sizes: dict[MetadataIndex, int] = {}
    for process, plan in enumerate(plans):
        for item in plan.items:
            pieces = holders.setdefault(item.index.fqn, {})
            pieces.setdefault(item.index, []).append(process)
            sizes[item.index] = _size(item.tensor_data)
    chosen: dict[MetadataIndex, int] = {}
    load = [0] * len(plans)
    for pieces in sorted(holders.values(), key=lambda each: -sum(sizes[key] for key in each)):
        copies = min(map(len, pieces.values()))
        copy = min(range(copies), key=lambda n: sum(load[own[n]] for own in pieces.values()))
        for key, own in pieces.items():
            chosen[key] = own[copy]
            load[own[copy]] += sizes[key]
    return [
        replace(plan, items=[item for item in plan.items if chosen[item.index] == process])
        for process, plan in enumerate(plans)
    ]


def _size(data: TensorWriteData) -> int:
    """Bytes of a piece."""
    return math.prod(data.chunk.sizes) * data.properties.dtype.itemsize
