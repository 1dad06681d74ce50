"""What lies at a path, told by its content and not by its name alone."""

from pathlib import Path

from diffmoe.data.pictures.archive import ArchivePictures, by_folders
from diffmoe.data.pictures.folder import FolderPictures, holds_classes, listing
from diffmoe.data.pictures.hub import HubPictures
from diffmoe.data.pictures.hub_files import is_saved, parquet_files
from diffmoe.data.pictures.pictures import Pictures, UnfitPlace
from diffmoe.data.pictures.samples import RECORD, SampledPictures
from diffmoe.data.pictures.shards import has_keys, shards
from diffmoe.data.pictures.tar import tar_members
from diffmoe.data.pictures.zip import zip_members
from diffmoe.errors import ConfigError, DataError

__all__ = ["open_pictures"]

_ZIP = (b"PK\3\4", b"PK\5\6")
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
_PARQUET = b"PAR1"
_TAR, _TAR_AT = b"ustar", 257
_PLACE = "the path"
_KINDS = "a folder of images, a .tar or .zip of one, or a data set saved to disk"


def open_pictures(path: Path, *, labelled: bool = True, subject: str = _PLACE) -> Pictures:
    """The pictures of a folder, an archive, WebDataset shards or a Hugging Face data set on disk.

    Without `labelled`, pictures without classes are taken too; classes that are there are still
    given. Raises ConfigError if the path is none of these, DataError if what lies there cannot be
    used or names no class that is needed. Messages call the path `subject`: a flag, or words.
    """
    try:
        return _opened(path, labelled)
    except _NoSet as error:
        give = "give" if subject == _PLACE else f"set --{subject} to"
        raise ConfigError(
            f"{subject} {error.what}", where=error.where, remedy=error.remedy or f"{give} {_KINDS}"
        ) from error
    except UnfitPlace as error:
        raise DataError(
            f"{subject} {error.what}", where=error.where, remedy=error.remedy
        ) from error
    except OSError as error:
        raise DataError(
            f"{subject} cannot be read ({error.strerror or error})",
            where=str(error.filename or path),
            remedy="check its permissions, or choose another",
        ) from error


class _NoSet(UnfitPlace):
    """Says that a path leads to no set at all."""


def _opened(path: Path, labelled: bool) -> Pictures:
    if path.is_dir():
        return _of_folder(path, labelled)
    if path.is_file():
        return _of_file(path, labelled)
    raise _refused(path, "is neither file nor folder" if path.exists() else "does not exist")


def _of_folder(folder: Path, labelled: bool) -> Pictures:
    if is_saved(folder):
        return HubPictures(folder, labelled=labelled)
    files = parquet_files(folder)
    if files:
        return HubPictures(folder, files, labelled=labelled)
    tars = sorted(p for p in folder.glob("*.tar") if not p.name.startswith("."))
    if tars and not holds_classes(folder):  # a cache may lie beside the shards it was made of
        return shards(tars, map(tar_members, tars), labelled=labelled)
    if any(p.is_dir() and not p.name.startswith(".") for p in folder.iterdir()):
        return FolderPictures(folder, listing(folder, labelled=labelled))
    if (folder / RECORD).exists():
        return SampledPictures(folder, labelled=labelled)
    return FolderPictures(folder, listing(folder, labelled=labelled))


def _of_file(path: Path, labelled: bool) -> Pictures:
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(_ZIP):
        return ArchivePictures([path], by_folders(path, zip_members(path), labelled=labelled))
    if head.startswith(_PARQUET):
        return HubPictures(path, [path], labelled=labelled)
    if head.startswith(_COMPRESSED):
        raise _NoSet(
            "is compressed as a whole, so no image can be read on its own",
            str(path),
            "unpack it to a .tar or a folder, as `gunzip` does with a .tar.gz",
        )
    if not head:
        raise _refused(path, "is an empty file")
    if head[_TAR_AT:].startswith(_TAR) or path.suffix.lower() == ".tar":
        return _of_tar(path, labelled)
    raise _refused(path, "is a file and no archive")


def _of_tar(path: Path, labelled: bool) -> Pictures:
    members = tar_members(path)
    if has_keys(members):
        return shards([path], [members], labelled=labelled)
    return ArchivePictures([path], by_folders(path, members, labelled=labelled))


def _refused(path: Path, what: str) -> UnfitPlace:
    return _NoSet(what, str(path.absolute()), "")
