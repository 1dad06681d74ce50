"""What a hand that means ill can put in each place from which files are read."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from diffmoe.experiments.hostile import trees
from diffmoe.experiments.hostile.payloads import (
    archive_of,
    arrays,
    lying_safetensors,
    pickles,
    pictures,
    settings,
    torch_files,
)

__all__ = ["Hostile", "corpus"]

Content = bytes | Callable[[Path], object]  # of a file, or what writes it or a folder


@dataclass(frozen=True)
class Hostile:
    """One hostile file or folder.

    `place` is what it poses as: `config` (YAML), `released` (a checkpoint of others), `tensors`
    (safetensors), `manifest` (JSON), `latents` (.npy), `reference` (.npz), `data` (images in
    whatever form), `weights` (of a network that judges) or `autoencoder` (a folder).
    """

    name: str
    place: str
    content: Content

    def write(self, path: Path) -> None:
        """Put it at `path`; nothing of it runs by that."""
        if isinstance(self.content, bytes):
            path.write_bytes(self.content)
        else:
            self.content(path)


def corpus(command: str) -> Iterator[Hostile]:
    """All of them; those that hold code would run `command`, which has no quotes."""
    files = pickles(command) | torch_files(command)
    old, new = ({name: files[name]} for name in ("pickle-0", "pickle-4"))
    yield from _each("config", _encoded(settings(command)) | old | new)
    yield from _each("released", files | _damaged_tensors(command))
    yield from _each("released", {"sharded-pickles": trees.sharded(command)})
    yield from _each("weights", files)
    yield from _each("tensors", lying_safetensors() | old | new | torch_files(command))
    yield from _each("manifest", _manifests() | old | new)
    yield from _each("latents", arrays(command) | old | new)
    yield from _each("reference", _references(command))
    yield from _each("data", trees.data_sets(command))
    yield from _each("data", {name: trees.images(name, c) for name, c in pictures(command).items()})
    yield from _each("autoencoder", trees.autoencoders(command))


def _each(place: str, contents: Mapping[str, Content]) -> Iterator[Hostile]:
    return (Hostile(name, place, content) for name, content in contents.items())


def _encoded(texts: Mapping[str, str]) -> dict[str, bytes]:
    return {name: text.encode() for name, text in texts.items()}


def _damaged_tensors(command: str) -> dict[str, bytes]:
    """Archives of tensors that hold what they should not, or less."""
    program = pickles(command)["pickle-2"]
    return {
        "torch-zip-climbing": archive_of({"../a/data.pkl": program, "a/data.pkl": program}),
        "torch-zip-no-record": archive_of({"a/other": program}),
    }


def _manifests() -> dict[str, Content]:
    return {
        "json-deep": b"[" * 100_000,
        "json-deep-groups": b'{"config":' * 50_000,
        "json-huge-number": b'{"schema": 2, "step": 1' + b"0" * 1_000_000 + b"}",
        "json-million-files": _million_files,
        "json-no-group": b"[]",
        "json-other-schema": json.dumps({"schema": 10**30, "files": {}}).encode(),
        "json-null-bytes": bytes(100),
    }


def _million_files(path: Path) -> None:
    """Written piece by piece: the writer, too, should not need the memory of it."""
    with path.open("w") as stream:
        stream.write('{"schema": 2, "files": {"a": {}')
        stream.writelines(f', "{number}": {{}}' for number in range(10**6))
        stream.write("}}")


def _references(command: str) -> dict[str, bytes]:
    made, names = arrays(command), ("npy-objects", "npy-code-in-header", "npy-huge", "npy-negative")
    packed = {f"npz-{name}": archive_of({"arr_0.npy": made[name]}) for name in names}
    statistics = archive_of({"mu.npy": made["npy-objects"], "sigma.npy": made["npy-objects"]})
    return {
        **packed,
        "npz-statistics-objects": statistics,
        "npz-pickle-member": archive_of({"arr_0.npy": pickles(command)["pickle-2"]}),
        "npz-pickle": pickles(command)["pickle-4"],
        "npz-empty": archive_of({}),
    }
