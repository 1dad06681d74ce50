"""What a network reads of a caption, and the encoder that makes it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from diffmoe.config.checks import Checked, within
from diffmoe.config.marks import EXTEND, MACHINE
from diffmoe.errors import ConfigError

__all__ = [
    "ClipEncoder",
    "EncoderConfig",
    "FeatureText",
    "NoEncoder",
    "NoText",
    "T5Encoder",
    "TextConfig",
    "TooLong",
    "WordEncoder",
    "WordText",
]

TooLong = Literal["cut", "refuse"]


@dataclass(frozen=True, kw_only=True)
class NoText:
    """The network's condition is a class."""

    kind: ClassVar[str] = "none"


@dataclass(frozen=True, kw_only=True)
class WordText(Checked):
    """The network reads words itself: a table of them and a small transformer, trained with it."""

    group: ClassVar[str] = "model.text"
    kind: ClassVar[str] = "words"
    tokens: int  # of a caption, N; shorter ones are padded
    words: int  # rows of the table, those of padding and of unknown words among them
    width: int  # of a word's vector
    layers: int  # of the transformer over the words of a caption
    heads: int  # its attention heads

    def ranges(self) -> Iterator[ConfigError]:
        """Sizes are those of a small network."""
        yield from within(1, 4096, self, "tokens")
        yield from within(3, 2**20, self, "words")
        yield from within(1, 2**14, self, "width")
        yield from within(0, 64, self, "layers")
        yield from within(1, 2**10, self, "heads")

    def relations(self) -> Iterator[ConfigError]:
        """Heads share the width."""
        if self.width % self.heads:
            yield ConfigError(
                f"model.text.width {self.width} is not a multiple of model.text.heads {self.heads}",
                remedy="use a number of heads that divides it",
            )


@dataclass(frozen=True, kw_only=True)
class FeatureText(Checked):
    """The network reads the vectors of an encoder that was trained elsewhere."""

    group: ClassVar[str] = "model.text"
    kind: ClassVar[str] = "features"
    tokens: int  # of a caption, N; shorter ones are padded
    width: int  # of a token's vector; 4096 of T5 v1.1 XXL

    def ranges(self) -> Iterator[ConfigError]:
        """Sizes are those of an encoder."""
        yield from within(1, 4096, self, "tokens")
        yield from within(1, 2**14, self, "width")


TextConfig = NoText | WordText | FeatureText


@dataclass(frozen=True, kw_only=True)
class NoEncoder:
    """There are no captions."""

    kind: ClassVar[str] = "none"


@dataclass(frozen=True, kw_only=True)
class WordEncoder:
    """Captions are split into words, which the network knows by their numbers."""

    kind: ClassVar[str] = "words"
    too_long: Annotated[TooLong, EXTEND] = "cut"  # captions of more tokens: cut, said so; or refuse


# The encoder of google/t5-v1_1-xxl as safetensors; the original holds pickles, which are not read.
T5_XXL = "city96/t5-v1_1-xxl-encoder-bf16"


@dataclass(frozen=True, kw_only=True)
class T5Encoder:
    """The encoder of a T5, of any size."""

    kind: ClassVar[str] = "t5"
    path: Annotated[str, MACHINE] = T5_XXL  # its folder or hub name
    too_long: Annotated[TooLong, EXTEND] = "cut"  # captions of more tokens: cut, said so; or refuse
    cache: Annotated[Path | None, MACHINE] = None  # captions encoded before; None = encode each


@dataclass(frozen=True, kw_only=True)
class ClipEncoder:
    """The text tower of a CLIP, its last hidden states."""

    kind: ClassVar[str] = "clip"
    path: Annotated[str, MACHINE] = "openai/clip-vit-large-patch14"  # its folder or hub name
    too_long: Annotated[TooLong, EXTEND] = "cut"  # captions of more tokens: cut, said so; or refuse
    cache: Annotated[Path | None, MACHINE] = None  # captions encoded before; None = encode each


EncoderConfig = NoEncoder | WordEncoder | T5Encoder | ClipEncoder
