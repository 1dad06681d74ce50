"""Hostile archives and folders: members that lead out, links, devices, bombs and scripts."""

import io
import json
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

from diffmoe.experiments.hostile.payloads import lying_safetensors, pickles, torch_files

__all__ = ["Write", "autoencoders", "data_sets", "images", "sharded"]

Write = Callable[[Path], object]

_OUT = ("../../climbed/a.png", "/tmp/absolute/b.png", "cat/../../../climbed/c.png")
_FEW = 3  # images of a set, enough for every reader to look at one
_BOMB = 128 * 2**20  # bytes of nothing
_CLAIM = 2**40  # bytes that there are not
_TARGETS = ("/etc/passwd", "../../../../etc/passwd", "/dev/zero", "a.png")


def images(name: str, content: bytes) -> Write:
    """A folder of one class whose images are `content`."""

    def write(path: Path) -> None:
        (path / "cat").mkdir(parents=True)
        for number in range(_FEW):
            (path / "cat" / f"{name}-{number}.png").write_bytes(content)

    return write


def data_sets(command: str) -> dict[str, Write]:
    """Sets of images that are none."""
    program = pickles(command)["pickle-2"]
    return {
        "tar-climbing": lambda path: _tar(path, [_file(name, program) for name in _OUT]),
        "tar-links": lambda path: _tar(path, _links()),
        "tar-devices": lambda path: _tar(path, _devices()),
        "tar-shard-pickles": lambda path: _tar(
            path, [_file("0.png", program), _file("0.cls", program), _file("0.pyd", program)]
        ),
        "zip-climbing": lambda path: _zip(path, [(name, program) for name in _OUT]),
        "zip-links": lambda path: _zip(path, [("cat/a.png", b"/etc/passwd")], stat.S_IFLNK),
        "zip-bomb": lambda path: _zip_bomb(path, 1, told=_CLAIM),
        "zip-lying-bomb": lambda path: _zip_bomb(path, _BOMB, told=100),
        "folder-links": _linked_folder,
        "dataset-script": lambda path: _script(path, command),
        "dataset-saved-pickle": lambda path: _saved(path, program),
        "dataset-import": lambda path: _imported(path),
        "dataset-parquet-pickle": lambda path: _parquet(path, program),
        "latents-pickle": lambda path: _latents(path, program),
    }


def _file(name: str, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    return entry, content


def _special(name: str, kind: bytes, link: str = "") -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.devmajor, entry.devminor = kind, link, 1, 5
    return entry, b""


def _links() -> list[tuple[tarfile.TarInfo, bytes]]:
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE)
    return [
        _special(f"cat/{number}{kind.decode()}.png", kind, target)
        for kind in kinds
        for number, target in enumerate(_TARGETS)
    ]


def _devices() -> list[tuple[tarfile.TarInfo, bytes]]:
    kinds = (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
    return [_special(f"cat/{kind.decode()}.png", kind) for kind in kinds]


def _tar(path: Path, members: Iterable[tuple[tarfile.TarInfo, bytes]]) -> None:
    with tarfile.open(path, "w") as archive:
        for entry, content in members:
            archive.addfile(entry, io.BytesIO(content))


def _zip(path: Path, members: Iterable[tuple[str, bytes]], kind: int = stat.S_IFREG) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members:
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (kind | 0o644) << 16
            archive.writestr(entry, content)


def _zip_bomb(path: Path, size: int, *, told: int) -> None:
    """Pictures of nothing whose size the directory, which is written last, tells otherwise."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for number in range(_FEW):
            with archive.open(f"cat/{number}.png", "w", force_zip64=True) as stream:
                for start in range(0, size if number == 0 else 1, 2**20):
                    stream.write(bytes(min(2**20, size - start)))
        for entry in archive.filelist:
            entry.file_size = told


def _linked_folder(path: Path) -> None:
    (path / "cat").mkdir(parents=True)
    for number, target in enumerate(_TARGETS):
        (path / "cat" / f"{number}.png").symlink_to(target)
    (path / "cat" / "loop").symlink_to(path, target_is_directory=True)


def _script(path: Path, command: str) -> None:
    """A data set as the hub had them: a program of the same name that its library once ran."""
    path.mkdir()
    (path / f"{path.name}.py").write_text(f"import os\nos.system({command!r})\n")
    (path / "dataset_infos.json").write_text(json.dumps({"default": {"builder_name": path.name}}))
    (path / "dataset_info.json").write_text(json.dumps({"builder_name": path.name}))


def _saved(path: Path, program: bytes) -> None:
    """What `save_to_disk` writes, its table a pickle."""
    path.mkdir()
    features = {"image": {"_type": "Image"}, "label": {"_type": "Value", "dtype": "int64"}}
    (path / "dataset_info.json").write_text(json.dumps({"features": features}))
    _state(path)
    (path / "data-00000-of-00001.arrow").write_bytes(program)


def _imported(path: Path) -> None:
    """What `save_to_disk` writes, a type of its columns the name of a function."""
    path.mkdir()
    features = {"image": {"_type": "os.system"}, "label": {"_type": "__import__", "name": "os"}}
    (path / "dataset_info.json").write_text(json.dumps({"features": features}))
    _state(path)
    (path / "data-00000-of-00001.arrow").write_bytes(b"")


def _state(path: Path) -> None:
    state: dict[str, object] = {
        "_data_files": [{"filename": "data-00000-of-00001.arrow"}],
        "_fingerprint": "0" * 16,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": "os.system",
        "_output_all_columns": False,
        "_split": None,
    }
    (path / "state.json").write_text(json.dumps(state))


def _parquet(path: Path, program: bytes) -> None:
    path.mkdir()
    (path / "train.parquet").write_bytes(b"PAR1" + program + b"PAR1")


def _latents(path: Path, program: bytes) -> None:
    path.mkdir()
    for name in ("latents.npy", "labels.npy"):
        (path / name).write_bytes(program)


def sharded(command: str) -> Write:
    """A folder as torch's distributed checkpoints are: the metadata is a pickle."""

    def write(path: Path) -> None:
        path.mkdir()
        for name in (".metadata", "__0_0.distcp"):
            (path / name).write_bytes(pickles(command)["pickle-2"])

    return write


def autoencoders(command: str) -> dict[str, Write]:
    """Folders that pose as an autoencoder of diffusers."""
    weights, plain = "diffusion_pytorch_model", {"_class_name": "AutoencoderKL"}
    program = torch_files(command)["torch-zip"]
    twisted = {"_class_name": "os.system", "auto_map": {"AutoModel": "evil.Evil"}}
    index = {"metadata": {}, "weight_map": {"a": f"../{weights}.safetensors", "b": "/etc/passwd"}}
    lies = lying_safetensors()

    def folder(config: dict[str, object], files: dict[str, bytes]) -> Write:
        def write(path: Path) -> None:
            path.mkdir()
            code = f"import os\nos.system({command!r})\n".encode()
            told = {"config.json": json.dumps(config).encode(), "evil.py": code}
            for name, content in (told | files).items():
                (path / name).write_bytes(content)

        return write

    return {
        "autoencoder-bin": folder(dict(plain), {f"{weights}.bin": program}),
        "autoencoder-pickle": folder(dict(plain), {f"{weights}.safetensors": program}),
        "autoencoder-class": folder(dict(twisted), {f"{weights}.safetensors": program}),
        "autoencoder-lies": folder(
            dict(plain), {f"{weights}.safetensors": lies["tensors-huge-shape"]}
        ),
        "autoencoder-index": folder(
            dict(plain), {f"{weights}.safetensors.index.json": json.dumps(index).encode()}
        ),
    }
