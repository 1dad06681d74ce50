"""Captions as numbers of an encoder's tokenizer, read from whichever file holds it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from diffmoe.codec.pretrained import Wanted, damage, load_tokenizer
from diffmoe.codec.text.prompts import utf8
from diffmoe.errors import ConfigError

__all__ = [
    "MERGES",
    "PIECES",
    "TOKENIZER",
    "VOCABULARY",
    "Pieces",
    "open_pieces",
    "tokenizer_files",
]

TOKENIZER, PIECES = "tokenizer.json", "spiece.model"
VOCABULARY, MERGES = "vocab.json", "merges.txt"


class Pieces(Protocol):
    """A tokenizer that keeps a fixed number of tokens of a caption at most."""

    def read(self, caption: str) -> tuple[list[int], str]:
        """The numbers of a caption, special ones included, and what of it is cut off."""


def tokenizer_files(folder: Path) -> list[Path]:
    """The files that the tokenizer is read from."""
    for names in ((TOKENIZER,), (PIECES,), (VOCABULARY, MERGES)):
        if all((folder / name).is_file() for name in names):
            return [folder / name for name in names]
    return []


def open_pieces(folder: Path, wanted: Wanted, tokens: int) -> Pieces:
    """The tokenizer of a folder that keeps so many tokens.

    Raises ConfigError if what reads it is not installed or these are too few to hold a word,
    StorageError if its files are damaged.
    """
    first = tokenizer_files(folder)[0].name
    makers: dict[str, Callable[[], Pieces]] = {
        TOKENIZER: lambda: _FastPieces(_of_file(folder / TOKENIZER), tokens),
        PIECES: lambda: _SentencePieces(folder / PIECES, tokens),
        VOCABULARY: lambda: _FastPieces(load_tokenizer(folder, wanted).backend_tokenizer, tokens),
    }
    try:
        return makers[first]()
    except (ConfigError, ImportError):
        raise
    except Exception as error:  # readers that are not written in Python raise plain exceptions
        raise damage(folder, wanted, f"{first} cannot be read") from error


def _of_file(path: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path))


class _FastPieces:
    """A tokenizer of the package tokenizers, which transformers brings along."""

    def __init__(self, tokenizer: Any, tokens: int) -> None:
        _refuse_few(tokens, tokenizer.num_special_tokens_to_add(False))
        tokenizer.no_padding()
        tokenizer.enable_truncation(tokens)
        self._own = tokenizer

    def read(self, caption: str) -> tuple[list[int], str]:
        """One at a time, which starts no threads: those would not outlive a fork."""
        text = utf8(caption).decode()
        found = self._own.encode(text)
        rest = found.overflowing[:1]
        return found.ids, text[_first_place(rest[0]) :].strip() if rest else ""


def _first_place(encoding: Any) -> int:
    """Where in the caption the first token begins that is no special one."""
    both = zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
    return next((first for (first, _), special in both if not special), 0)


class _SentencePieces:
    """A tokenizer of sentencepiece, ended by its end token as T5 was trained."""

    def __init__(self, path: Path, tokens: int) -> None:
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError as error:
            raise ConfigError(
                f"{PIECES} needs the package sentencepiece, which is not installed",
                where=str(path),
                remedy=f"pip install sentencepiece, or put the encoder's {TOKENIZER} beside it",
            ) from error
        _refuse_few(tokens, 1)
        self._own, self._tokens = SentencePieceProcessor(model_file=str(path)), tokens

    def read(self, caption: str) -> tuple[list[int], str]:
        """The pieces that fit, and the end token; what is cut off is told as it was normalised."""
        numbers = self._own.encode(utf8(caption).decode())
        kept, rest = numbers[: self._tokens - 1], numbers[self._tokens - 1 :]
        return [*kept, self._own.eos_id()], self._own.decode(rest).strip() if rest else ""


def _refuse_few(tokens: int, special: int) -> None:
    if tokens <= special:
        raise ConfigError(
            f"model.text.tokens {tokens} leaves no room for words: {special} are special ones",
            remedy=f"set --model.text.tokens (of prepare --text-tokens) {special + 1} or more",
        )
