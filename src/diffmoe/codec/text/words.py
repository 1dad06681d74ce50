"""Words of captions as rows of a table that a model trains itself."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
import torch

from diffmoe.captions import Captions
from diffmoe.codec.text.prompts import utf8

__all__ = ["Words"]

_RULE = 1  # changes with what splits captions
_WORD = re.compile(r"[^\W\d_]+|\d+|[^\w\s]|_")  # letters, digits, or one sign
_UNKNOWN, _FIRST = 1, 2  # rows of the table; 0 is padding


class Words:
    """The words that a model knows: each is a row of its table, behind padding and unknown words.

    A caption is NFKC-normalised and lower-cased, then split into words, numbers and single signs.
    """

    def __init__(self, words: Sequence[str], tokens: int) -> None:
        self.words, self.tokens = tuple(words), tokens
        self._rows = {word: row for row, word in enumerate(self.words, _FIRST)}

    @classmethod
    def of(cls, captions: Iterable[str], most: int, tokens: int) -> "Words":
        """The most frequent words of captions, for a table of `most` rows at most.

        Of words that are as frequent those come first that do in the alphabet.
        """
        counted = Counter(word for caption in captions for word in _split(caption))
        ranked = sorted(counted.items(), key=lambda one: (-one[1], one[0]))
        return cls([word for word, _ in ranked[: max(0, most - _FIRST)]], tokens)

    @property
    def rows(self) -> int:
        """Rows of the table, those of padding and of unknown words among them."""
        return _FIRST + len(self.words)

    @cached_property
    def identity(self) -> str:
        """Hash of the words, and what else decides on the tokens of a caption."""
        digest = hashlib.sha256("\n".join(self.words).encode()).hexdigest()
        return f"words sha256:{digest[:16]} rule {_RULE} tokens {self.tokens}"

    def encode(self, captions: Sequence[str]) -> Captions:
        """The rows of the words of captions."""
        tokens: np.ndarray = np.zeros((len(captions), self.tokens), np.int64)
        for row, caption in zip(tokens, captions, strict=True):
            found = [self._rows.get(word, _UNKNOWN) for word in _split(caption)[: self.tokens]]
            row[: len(found)] = found
        numbers = torch.from_numpy(tokens)
        return Captions(numbers, numbers != 0)

    def cut(self, caption: str) -> str:
        """What of a caption, as it was normalised, lies behind the last token."""
        normal = _normal(caption)
        for number, found in enumerate(_WORD.finditer(normal)):
            if number == self.tokens:
                return normal[found.start() :].rstrip()
        return ""

    def unknown(self, caption: str) -> tuple[str, ...]:
        """The words that have no row of their own, each once."""
        found = _split(caption)[: self.tokens]
        return tuple(dict.fromkeys(word for word in found if word not in self._rows))


def _normal(caption: str) -> str:
    text = utf8(caption).decode()
    return unicodedata.normalize("NFKC", text).lower()


def _split(caption: str) -> list[str]:
    return _WORD.findall(_normal(caption))
