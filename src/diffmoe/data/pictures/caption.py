"""A caption as it counts, and pictures of which each has one."""

import logging
from collections.abc import Iterable, Sequence
from typing import NoReturn

from diffmoe.data.pictures.names import Names, printable
from diffmoe.data.pictures.pictures import Pictures, UnfitPlace
from diffmoe.errors import DataError

__all__ = [
    "FIELDS",
    "MOST_BYTES",
    "CaptionedPictures",
    "NoCaptions",
    "caption_of",
    "captioned_name",
    "decoded",
    "first_of",
    "refuse",
]

_LOG = logging.getLogger(__name__)
FIELDS = ("caption", "text", "prompt")  # what a field of captions is called, the first one counts
MOST_BYTES = 2**20  # of a file or line that holds one caption
_MOST = 10_000  # characters of a caption; no encoder reads as many
_BESIDE = "write a .txt of the same name beside each image, or list them in captions.csv"


class NoCaptions(UnfitPlace):
    """Says that nothing at a place is a caption."""

    def __init__(self, where: str, count: int, why: str = "") -> None:
        what = f"holds {count} images but no captions"
        super().__init__(_shown(f"{what} ({why})" if why else what), where, _BESIDE)


class CaptionedPictures:
    """Pictures with a caption each, which counts in all that the pictures are told apart by."""

    captions: Sequence[str] | None

    def __init__(
        self, pictures: Pictures, captions: Iterable[str], where: str, left_out: int = 0
    ) -> None:
        self.left_out = left_out  # pictures of the place that no table lists
        self.uncaptioned, self._texts = pictures, Names(captions)
        self.labels, self.class_names = pictures.labels, pictures.class_names
        self.captions = self._texts
        empty = sum(not caption for caption in self._texts)
        if empty:
            _LOG.info(
                "%d of %d captions of %s are empty, which stands for no condition",
                *(empty, len(self), where),
            )

    def __len__(self) -> int:
        return len(self.uncaptioned)

    @property
    def caption_digest(self) -> str:
        """Hash of all captions."""
        return self._texts.digest(range(len(self)))

    @property
    def fingerprint(self) -> str:
        """That of the pictures, and of all captions."""
        return captioned_name(self.uncaptioned.fingerprint, self.caption_digest)

    @property
    def listing(self) -> str:
        """That of the pictures, and of all captions."""
        return captioned_name(self.uncaptioned.listing, self.caption_digest)

    def state(self, images: range, few: Iterable[int]) -> str:
        """That of some pictures, and of their captions."""
        return captioned_name(self.uncaptioned.state(images, few), self._texts.digest(images))

    def read(self, index: int) -> bytes:
        """The encoded picture; raises DataError naming its file and index."""
        return self.uncaptioned.read(index)

    def name(self, index: int) -> str:
        """Where a picture lies, for messages."""
        return self.uncaptioned.name(index)


def captioned_name(fingerprint: str, digest: str) -> str:
    """The fingerprint of pictures whose captions have this digest."""
    return f"{fingerprint} captioned sha256:{digest}"


def caption_of(found: object, where: str, what: str) -> str:
    """A caption without blanks at its ends; of several, the first.

    Raises DataError, which calls it that of `what` (a line, a key) in the file `where`.
    """
    if isinstance(found, list):
        found = found[0] if found else None
    if found is None:
        refuse(where, f"{what} has no caption", "give it one; an empty text says nothing")
    if not isinstance(found, str):
        refuse(where, f"{what} has the caption {found!r:.40}, which is no text", "write a text")
    caption = found.strip()
    if len(caption) > _MOST:
        size = f"{len(caption):,} characters"
        refuse(where, f"{what} has a caption of {size}", f"use {_MOST:,} at most")
    if printable(caption) != caption:
        refuse(where, f"{what} has a caption that is no Unicode", "write it in UTF-8")
    return caption


def decoded(content: bytes, where: str, what: str) -> str:
    """Bytes as text, without a mark of their order; raises DataError if they are no UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        refuse(where, f"{what} is no UTF-8", "write it in UTF-8")


def first_of(entry: object, fields: Sequence[str]) -> object:
    """What the first of some fields holds that is there; None if none is."""
    known = entry if isinstance(entry, dict) else {}
    return next((known[name] for name in fields if known.get(name) is not None), None)


def refuse(where: str, what: str, remedy: str) -> NoReturn:
    """Raise DataError about captions in a file."""
    raise DataError(_shown(what), where=where, remedy=remedy) from None


def _shown(text: str) -> str:
    """A text without signs that would break a line or steer a terminal: a file may hold any."""
    signs = (sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)
    return "".join(signs)
