"""What lies at a path, told by its content and not by its name alone."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from diffmoe.data.pictures.archive import ArchivePictures, by_folders
from diffmoe.data.pictures.caption import FIELDS, CaptionedPictures
from diffmoe.data.pictures.captioned_files import ArchiveFiles, FolderFiles, captioned_files
from diffmoe.data.pictures.folder import FolderPictures, holds_classes, listing
from diffmoe.data.pictures.hub import HubPictures
from diffmoe.data.pictures.hub_captions import hub_captions
from diffmoe.data.pictures.hub_files import is_saved, load_rows, parquet_files
from diffmoe.data.pictures.members import Member
from diffmoe.data.pictures.pictures import Pictures, UnfitPlace
from diffmoe.data.pictures.samples import RECORD, SampledPictures
from diffmoe.data.pictures.shards import has_keys, shards
from diffmoe.data.pictures.tables import TABLES
from diffmoe.data.pictures.tar import tar_members
from diffmoe.data.pictures.zip import zip_members
from diffmoe.errors import ConfigError, DataError

__all__ = ["open_pictures"]

_LOG = logging.getLogger(__name__)
_Fields = Sequence[str] | None  # what captions are read from, the first one counts; None: nothing
_ZIP = (b"PK\3\4", b"PK\5\6")
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
_PARQUET = b"PAR1"
_TAR, _TAR_AT = b"ustar", 257
_PLACE = "the path"
_KINDS = "a folder of images, a .tar or .zip of one, or a data set saved to disk"


def open_pictures(
    path: Path,
    *,
    labelled: bool = True,
    captioned: bool | None = False,
    caption_field: str | None = None,
    subject: str = _PLACE,
) -> Pictures:
    """The pictures of a folder, an archive, WebDataset shards or a Hugging Face data set on disk.

    Without `labelled`, pictures without classes are taken too; classes that are there are still
    given. With `captioned` only pictures that have a caption count, of the field of that name if
    one is given, and none needs a class; None reads captions where every picture has one, and else
    needs what `labelled` says. Raises ConfigError if the path is none of these, DataError if what
    lies there cannot be used or lacks what is needed. Messages call the path `subject`: a flag, or
    words.
    """
    fields = FIELDS if caption_field is None else (caption_field,)
    with _told(path, subject):
        if captioned is None:
            return _either(path, labelled, fields)
        return _opened(path, labelled and not captioned, fields if captioned else None)


@contextmanager
def _told(path: Path, subject: str) -> Iterator[None]:
    """Tell of what a place lacks, as who asked for it calls the place."""
    try:
        yield
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


def _either(path: Path, labelled: bool, fields: Sequence[str]) -> Pictures:
    """Pictures with captions if every one has some, or if they cannot do without."""
    try:
        found = _opened(path, False, fields)
    except UnfitPlace:
        return _opened(path, labelled, None)
    except DataError as error:
        bare = _without_captions(path, labelled, str(error))
        if bare is None:
            raise
        return bare
    left_out = found.left_out if isinstance(found, CaptionedPictures) else 0
    bare = _without_captions(path, labelled, f"{left_out} are not listed") if left_out else None
    return found if bare is None else bare


def _without_captions(path: Path, labelled: bool, reason: str) -> Pictures | None:
    """The pictures without captions, and a warning; None if they cannot be used then."""
    try:
        found = _opened(path, labelled, None)
    except (DataError, UnfitPlace):
        return None
    _LOG.warning("%s is read without captions, as not every image has one: %s", path, reason)
    return found


class _NoSet(UnfitPlace):
    """Says that a path leads to no set at all."""


def _opened(path: Path, labelled: bool, fields: _Fields) -> Pictures:
    if path.is_dir():
        return _of_folder(path, labelled, fields)
    if path.is_file():
        return _of_file(path, labelled, fields)
    raise _refused(path, "is neither file nor folder" if path.exists() else "does not exist")


def _of_folder(folder: Path, labelled: bool, fields: _Fields) -> Pictures:
    if is_saved(folder):
        return _of_hub(folder, (), labelled, fields)
    files = parquet_files(folder)
    if files:
        return _of_hub(folder, files, labelled, fields)
    tars = sorted(p for p in folder.glob("*.tar") if not p.name.startswith("."))
    if tars and not holds_classes(folder):  # a cache may lie beside the shards it was made of
        return shards(tars, map(tar_members, tars), labelled=labelled, fields=fields)
    if fields is not None:
        return _with_captions(folder, fields)
    if any(p.is_dir() and not p.name.startswith(".") for p in folder.iterdir()):
        return FolderPictures(folder, listing(folder, labelled=labelled))
    if (folder / RECORD).exists():
        return SampledPictures(folder, labelled=labelled)
    return FolderPictures(folder, listing(folder, labelled=labelled))


def _with_captions(folder: Path, fields: Sequence[str]) -> Pictures:
    if (folder / RECORD).exists() and not any((folder / table).is_file() for table in TABLES):
        return SampledPictures(folder, labelled=False).captioned(fields)
    return captioned_files(FolderFiles(folder), fields)


def _of_hub(place: Path, files: Sequence[Path], labelled: bool, fields: _Fields) -> Pictures:
    rows = load_rows(place, files)
    pictures = HubPictures(place, rows, labelled=labelled)
    if fields is None:
        return pictures
    return CaptionedPictures(pictures, hub_captions(place, rows, fields), str(place))


def _of_file(path: Path, labelled: bool, fields: _Fields) -> Pictures:
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(_ZIP):
        return _of_archive(path, zip_members(path), labelled, fields)
    if head.startswith(_PARQUET):
        return _of_hub(path, [path], labelled, fields)
    if head.startswith(_COMPRESSED):
        raise _NoSet(
            "is compressed as a whole, so no image can be read on its own",
            str(path),
            "unpack it to a .tar or a folder, as `gunzip` does with a .tar.gz",
        )
    if not head:
        raise _refused(path, "is an empty file")
    if head[_TAR_AT:].startswith(_TAR) or path.suffix.lower() == ".tar":
        return _of_tar(path, labelled, fields)
    raise _refused(path, "is a file and no archive")


def _of_tar(path: Path, labelled: bool, fields: _Fields) -> Pictures:
    members = tar_members(path)
    if has_keys(members):
        return shards([path], [members], labelled=labelled, fields=fields)
    return _of_archive(path, members, labelled, fields)


def _of_archive(path: Path, members: Iterable[Member], labelled: bool, fields: _Fields) -> Pictures:
    if fields is not None:
        return captioned_files(ArchiveFiles(path, members), fields)
    return ArchivePictures([path], by_folders(path, members, labelled=labelled))


def _refused(path: Path, what: str) -> UnfitPlace:
    return _NoSet(what, str(path.absolute()), "")
