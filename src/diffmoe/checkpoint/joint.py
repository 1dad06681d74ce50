"""A checkpoint that several processes write together: each a file of pieces for every part.

PyTorch's planners settle who writes what, and its driver brings plans, digests and errors to all
processes. On the disk lie safetensors and the manifest; what travels between processes is theirs.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors.torch import save_file
from torch import Size
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint import save
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, TensorWriteData, WriteItem
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from diffmoe.checkpoint.files import digest, flush, new_folder, remove_folder, storage_errors
from diffmoe.checkpoint.manifest import cut_text, piece_file, write_manifest
from diffmoe.checkpoint.pieces import dtype_name
from diffmoe.checkpoint.plans import Planner, pieces_of
from diffmoe.checkpoint.store import Content, manifest_of, verify
from diffmoe.errors import PeerError, StorageError

__all__ = ["write_together"]


def write_together(path: Path, content: Content, group: ProcessGroup) -> None:
    """Write the checkpoint `path` with all the processes of a group; see `store.write`."""
    writer = _Writer(path, content, group.rank(), group.size())
    try:
        with writer:
            save(
                pieces_of(content.parts),
                storage_writer=writer,
                planner=Planner(path),
                process_group=group,
            )
    except CheckpointException as failure:
        raise _reason(failure, writer) from None


def _reason(failure: CheckpointException, writer: "_Writer") -> BaseException:
    """What to raise here: what failed on this process, else word of the first that failed."""
    if writer.error is not None:
        return writer.error
    if writer.process in failure.failures:
        return failure.failures[writer.process][0]
    process, (error, _) = min(failure.failures.items(), key=lambda each: each[0])
    kind = StorageError if isinstance(error, StorageError) else PeerError
    word = kind(f"process {process} of {writer.processes} could not save: {error}")
    word.told = True
    return word


class _Writer(StorageWriter):
    """Writes the pieces of a process, and on the first the folder, the manifest and its name.

    As a context it gives up the folder unless the checkpoint stands. `error` is what this process
    has met.
    """

    def __init__(self, path: Path, content: Content, process: int, processes: int) -> None:
        self.process, self.processes = process, processes
        self.error: BaseException | None = None
        self._path, self._content = path, content
        self._aside: Path | None = None
        self._plans: list[SavePlan] = []
        self._folder = ExitStack()

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._aside is not None and kind is not None:
            with suppress(StorageError):  # at once: a process that is still at work finds nothing
                remove_folder(self._aside)
        self._folder.__exit__(kind, error, trace)

    @contextmanager
    def _keeping(self) -> Iterator[None]:
        """Keep an error for this process to raise; what it says can be sent to the others."""
        try:
            yield
        except BaseException as error:
            self.error = error
            if isinstance(error, StorageError):
                raise StorageError(str(error)) from None
            raise PeerError(f"{type(error).__name__}: {error}") from None

    def reset(self, checkpoint_id: object = None) -> None:
        """Nothing: a writer writes once."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: object) -> bool:
        """No, so that nobody takes this for a storage of names."""
        return False

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Make the folder, unless the checkpoint is there already."""
        if not is_coordinator:
            return
        with suppress(StorageError):
            verify(self._path)
            return
        with self._keeping():
            self._aside = self._folder.enter_context(new_folder(self._path, replace=True))

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """The plans with the name of the folder; nothing to do where the checkpoint is there."""
        if self._aside is None:
            return [SavePlan([]) for _ in plans]
        self._plans = plans
        return [dataclasses.replace(plan, storage_data=self._aside.name) for plan in plans]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Size and digest of each file that this process has written."""
        parts: dict[str, list[WriteItem]] = defaultdict(list)
        for item in plan.items:
            parts[item.index.fqn.partition("/")[0]].append(item)
        done: Future[list[WriteResult]] = Future()
        with self._keeping():
            done.set_result(
                [
                    self._write(part, items, self._path.with_name(plan.storage_data), planner)
                    for part, items in parts.items()
                ]
            )
        return done

    def _write(
        self, part: str, items: list[WriteItem], folder: Path, planner: SavePlanner
    ) -> WriteResult:
        if not folder.is_dir():
            raise StorageError(
                f"process {self.process} does not see the folder that process 0 has made",
                where=str(folder),
                remedy="put the run on a file system that all machines share",
            )
        file = folder / piece_file(part, self.process, self.processes)
        pieces = {
            item.index.fqn.partition("/")[2]: planner.resolve_data(item).detach().cpu().contiguous()
            for item in items
        }
        with storage_errors(file.name, self._path):
            save_file(pieces, file)
            flush(file)
            return WriteResult(MetadataIndex(file.name), file.stat().st_size, digest(file))

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the manifest and give the checkpoint its name."""
        if self._aside is None:
            return
        found = sorted((r for own in results for r in own), key=lambda each: each.index.fqn)
        with self._keeping(), storage_errors(self._path.name, self._path):
            for each in found:
                _require(self._aside / each.index.fqn, each.size_in_bytes)
            files = {r.index.fqn: (r.storage_data, r.size_in_bytes) for r in found}
            tensors, cuts = self._index()
            write_manifest(self._aside, manifest_of(self._content, tensors, files, cuts))
            self._folder.close()

    def _index(self) -> tuple[dict[str, dict[str, list[Any]]], dict[str, str]]:
        """A row for each tensor, by part, and the cuts that the rows name."""
        items: dict[str, TensorWriteData] = {}
        places: dict[str, dict[int, Size]] = defaultdict(dict)
        for process, plan in enumerate(self._plans):
            for item in plan.items:
                items[item.index.fqn] = item.tensor_data
                places[item.index.fqn][process] = item.index.offset
        rows: dict[str, dict[str, list[Any]]] = {part: {} for part in self._content.parts}
        cuts: dict[str, str] = {}
        for each, data in items.items():
            part, _, name = each.partition("/")
            cut = cuts.setdefault(cut_text(self.processes, places[each]), str(len(cuts)))
            row = [dtype_name(data.properties.dtype), list(data.size), cut]
            rows.setdefault(part, {})[name] = row
        return rows, {cut: text for text, cut in cuts.items()}


def _require(file: Path, size: int) -> None:
    """Raise StorageError unless a file that some process has written is here, and whole."""
    if not file.is_file() or file.stat().st_size != size:
        raise StorageError(
            f"process 0 does not see {file.name}, which another has written",
            where=str(file.parent),
            remedy="put the run on a file system that all machines share",
        )
