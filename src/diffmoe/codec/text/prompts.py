"""What every text encoder offers, and captions that people wrote, read with what is to be said."""

import logging
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from diffmoe.captions import Captions
from diffmoe.config import TooLong
from diffmoe.errors import ConfigError

__all__ = ["TextEncoder", "quoted", "read_prompts", "utf8"]

_LOG = logging.getLogger(__name__)
_TOLD, _QUOTED = 3, 60  # captions that are quoted, and characters of each
_BLOCK = 256  # captions encoded before their vectors go to the host: 250 MiB of the largest


@runtime_checkable
class TextEncoder(Protocol):
    """Maps captions to tokens that a network reads; a caption has the same in any company."""

    @property
    def tokens(self) -> int:
        """Tokens of a caption; shorter ones are padded."""

    @property
    def identity(self) -> str:
        """Names the mapping, weights and tokenizer included: equal ones give equal tokens."""

    def encode(self, captions: Sequence[str]) -> Captions:
        """The tokens of captions; one of blanks only has none that is real."""

    def cut(self, caption: str) -> str:
        """What of a caption is not read because it is too long; empty if all of it is."""

    def unknown(self, caption: str) -> tuple[str, ...]:
        """The words of a caption that no training caption had: all of them are the same to it."""


def quoted(caption: str) -> str:
    """A caption in quotes for a sentence, a long one cut."""
    return repr(caption if len(caption) <= _QUOTED else f"{caption[: _QUOTED - 3]}...")


def utf8(caption: str) -> bytes:
    """A caption as bytes, a question mark in the place of what is half a character."""
    return caption.encode("utf-8", "replace")


def read_prompts(
    encoder: TextEncoder, captions: Sequence[str], too_long: TooLong, what: str = "caption"
) -> Captions:
    """The tokens of captions on the host; they count from 0 and are called `what` in messages.

    Of those that are too long the end is cut, with a warning that quotes it; with `too_long`
    "refuse" they are a ConfigError. Warnings name those that say nothing, and words not known.
    """
    ends = [encoder.cut(caption) for caption in captions]
    long = [_too_long(what, number, end, encoder) for number, end in enumerate(ends) if end]
    if long and too_long == "refuse":
        raise ConfigError(
            "; ".join(_some(long, what)),
            remedy="shorten it, or allow it: `diffmoe train RUN --text.too-long cut` notes that",
        )
    empty = [
        f"{what} {number} is empty: it is drawn without condition"
        for number, caption in enumerate(captions)
        if not caption.strip()
    ]
    cut = [f"{one} is cut" for one in long]
    strange = [
        f"{what} {number} has words that the model never met: {', '.join(words)}"
        for number, words in enumerate(map(encoder.unknown, captions))
        if words
    ]
    for message in (text for each in (cut, empty, strange) for text in _some(each, what)):
        _LOG.warning("%s", message)
    parts = [captions[at : at + _BLOCK] for at in range(0, len(captions), _BLOCK)]
    return Captions.joined([encoder.encode(part).to("cpu") for part in parts])


def _too_long(what: str, number: int, end: str, encoder: TextEncoder) -> str:
    return (
        f"{what} {number} is longer than the {encoder.tokens} tokens that the model reads:"
        f" {quoted(end)}"
    )


def _some(messages: list[str], what: str) -> Iterator[str]:
    """The first few messages, and how many more there are."""
    yield from messages[:_TOLD]
    if more := messages[_TOLD:]:
        yield f"the same of {len(more)} more {what}s"
