"""What a checkpoint says of itself: JSON that ends with its own digest."""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from diffmoe.checkpoint.files import write_text
from diffmoe.errors import StorageError

__all__ = [
    "MANIFEST",
    "RESTORE",
    "SCHEMA",
    "Manifest",
    "cut_text",
    "piece_file",
    "read_manifest",
    "write_manifest",
]

SCHEMA = 2
MANIFEST = "manifest.json"
RESTORE = "restore the file or use another checkpoint"
_MOST = 10**15  # steps, samples and sizes that count as such, far inside 64 bits
_LARGEST = 2 << 20  # bytes, enough for the largest model on 1,024 processes; read, it takes 60 MB


@dataclass(frozen=True)
class Manifest:
    """The step, what is in each file, and the digest of each.

    A part (`model`, `ema`, `optimizer`) may lie in several files, and a tensor in pieces, one of
    them to a file: `tensors` names for each the dtype, the whole shape, and each file with the
    place of the piece's first element on every axis. In their stead, tensors that several
    processes wrote name one of the `cuts` that they share: how many processes, and for each that
    holds a piece its number and that place, `4 0:0,0 2:5,0`.
    """

    schema: int
    step: int
    samples: int  # training images seen
    diffmoe: str  # versions that wrote it
    torch: str
    config: dict[str, Any]  # the resolved config of the run
    trained_on: dict[str, str]  # `codec` and `data`, where known
    state: dict[str, int | float]  # the counters of the run
    tensors: dict[str, dict[str, list[Any]]]  # part -> tensor -> dtype, shape, {file: offsets}
    files: dict[str, dict[str, str | int]] = field(default_factory=dict)  # name -> sha256, bytes
    cuts: dict[str, str] = field(default_factory=dict)

    def pieces(self, part: str, tensor: str) -> dict[str, list[int]]:
        """The files of a tensor, each with the place of its piece's first element."""
        places = self.tensors[part][tensor][2]
        return places if isinstance(places, dict) else dict(_pieces(part, self.cuts[places]))

    def part_files(self, part: str) -> list[str]:
        """The files that a part lies in, by name."""
        places = [row[2] for row in self.tensors.get(part, {}).values()]
        cuts = {cut for cut in places if isinstance(cut, str)}
        whole = {file for each in places if isinstance(each, dict) for file in each}
        return sorted(whole | {file for cut in cuts for file, _ in _pieces(part, self.cuts[cut])})

    def fingerprint(self, part: str) -> str:
        """Names the bytes of a part: the digest of its file, or one over those of its files."""
        digests = [str(self.files[name]["sha256"]) for name in self.part_files(part)]
        return (
            digests[0]
            if len(digests) == 1
            else hashlib.sha256("".join(digests).encode()).hexdigest()
        )


def piece_file(part: str, process: int, processes: int) -> str:
    """The name of the file that holds what one of several processes wrote of a part."""
    return f"{part}-{process:05d}-of-{processes:05d}.safetensors"


def cut_text(processes: int, places: Mapping[int, Sequence[int]]) -> str:
    """Where the pieces of some processes begin, as `cuts` of a manifest has it."""
    return " ".join([str(processes), *(_piece_text(*each) for each in sorted(places.items()))])


def _piece_text(process: int, place: Sequence[int]) -> str:
    return f"{process}:{','.join(map(str, place))}"


def _pieces(part: str, cut: str) -> Iterator[tuple[str, list[int]]]:
    """The files of a cut and the places of their pieces; ValueError if it is not written so."""
    head, *words = cut.split(" ")
    processes, last = int(head), -1
    for word in words:
        number, _, rest = word.partition(":")
        process, place = int(number), [int(n) for n in rest.split(",")] if rest else []
        if not last < process < processes or _piece_text(process, place) != word:
            raise ValueError(f"{word} is no piece of a cut")
        yield piece_file(part, process, processes), place
        last = process


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write what a checkpoint in the folder `path` says of itself; StorageError if too much."""
    text = _manifest_text(manifest)
    if len(text) > _LARGEST:
        raise StorageError(
            f"the tensors lie in so many pieces that their manifest has {len(text)} bytes, more"
            f" than the {_LARGEST} that are read",
            where=str(path),
            remedy="lower machine.shard_degree",
        )
    write_text(path / MANIFEST, text)


def _manifest_text(manifest: Manifest) -> str:
    """The manifest as JSON that ends with its own digest: it too can be damaged."""
    content = asdict(manifest)
    if not manifest.cuts:
        del content["cuts"]
    own = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, "sha256": own}, indent=2) + "\n"


def read_manifest(path: Path) -> Manifest:
    """The manifest of a checkpoint, if it is as this version writes it down to the last byte."""
    try:
        text = _text(path / MANIFEST)
        content = json.loads(text)
        schema = content["schema"]
        if schema == SCHEMA:
            del content["sha256"]
            manifest = Manifest(**content)
            if _manifest_text(manifest) == text and _is_plain(manifest):
                return manifest
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise StorageError(
            "the checkpoint has no readable manifest", where=str(path), remedy=RESTORE
        ) from error
    if schema != SCHEMA:
        raise StorageError(
            f"the checkpoint's manifest is not of schema {SCHEMA}",
            where=str(path),
            remedy="use the version that wrote it",
        )
    raise StorageError("the checkpoint's manifest is damaged", where=str(path), remedy=RESTORE)


def _text(path: Path) -> str:
    if path.stat().st_size > _LARGEST:
        raise ValueError("no manifest is so large")
    return path.read_text()


def _is_plain(manifest: Manifest) -> bool:
    """Whether a manifest speaks of files of its own folder, with a digest for each."""
    records = (manifest.files, manifest.trained_on, manifest.state, manifest.cuts)
    return (
        all(map(_is_count, (manifest.step, manifest.samples)))
        and all(isinstance(record, dict) for record in records)
        and all(map(_is_number, manifest.state.values()))
        and all(_is_file(name, facts) for name, facts in manifest.files.items())
        and _are_tensors(manifest)
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST


def _is_number(value: Any) -> bool:
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _is_file(name: str, facts: dict[str, Any]) -> bool:
    own = Path(name).name == name and name not in ("", "..")
    return own and isinstance(facts["sha256"], str) and _is_count(facts["bytes"])


def _are_tensors(manifest: Manifest) -> bool:
    """Whether each row has a dtype, a shape, and places in files that are listed.

    A cut is looked at once for all the tensors of a part that share it.
    """
    cuts = set()
    for part, tensors in manifest.tensors.items():
        for dtype, shape, places in tensors.values():
            if not (isinstance(dtype, str) and all(map(_is_count, shape))):
                return False
            if isinstance(places, str):
                cuts.add((part, places, len(shape)))
            elif not _are_places(places.items(), len(shape), manifest.files):
                return False
    return all(
        _are_places(_pieces(part, manifest.cuts[cut]), axes, manifest.files)
        for part, cut, axes in cuts
    )


def _are_places(
    places: Iterable[tuple[str, list[int]]], axes: int, files: Mapping[str, Any]
) -> bool:
    """Whether there is a place, and each is on so many axes of a tensor in a file listed."""
    found = 0
    for file, place in places:
        if file not in files or len(place) != axes or not all(map(_is_count, place)):
            return False
        found += 1
    return found > 0
