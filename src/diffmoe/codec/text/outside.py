"""Vectors of captions from an encoder that was trained elsewhere: T5's, or the text tower of CLIP.

A caption's vectors depend on nothing but the caption, so it matters to nobody whether they come
from a cache: it is padded to the same number of tokens whatever comes with it, seen by the network
in blocks of a fixed size, and rounded to bfloat16. On a CPU a block is one caption. On an
accelerator it is several, once a trial has shown that each place of a block gives the same bits.
"""

import hashlib
import itertools
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffmoe.captions import Captions
from diffmoe.codec.arithmetic import blocks, exact_arithmetic
from diffmoe.codec.pretrained import (
    CONFIG,
    SHARDS,
    WEIGHTS,
    Wanted,
    digest_of,
    fingerprint_of,
    load_model,
    locate,
)
from diffmoe.codec.text.pieces import (
    MERGES,
    PIECES,
    TOKENIZER,
    VOCABULARY,
    Pieces,
    open_pieces,
    tokenizer_files,
)
from diffmoe.errors import ConfigError

__all__ = ["ENCODERS", "EncoderKind", "OutsideEncoder", "identity_of", "load_outside"]

EncoderKind = Literal["t5", "clip"]
_ROWS = 32  # captions in a block on an accelerator


def _sets(*tokenizers: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    both = itertools.product((WEIGHTS, SHARDS), tokenizers)
    return tuple((CONFIG, weights, *tokenizer) for weights, tokenizer in both)


ENCODERS: dict[EncoderKind, Wanted] = {
    "t5": Wanted(
        title="T5",
        kinds=("t5",),
        model="T5EncoderModel",
        example="city96/t5-v1_1-xxl-encoder-bf16",  # of the first ones there are pickles only
        licence="Apache-2.0",
        files=_sets((TOKENIZER,), (PIECES,)),
    ),
    "clip": Wanted(
        title="CLIP",
        kinds=("clip", "clip_text_model"),
        model="CLIPTextModel",
        example="openai/clip-vit-large-patch14",
        licence="MIT",
        files=_sets((TOKENIZER,), (VOCABULARY, MERGES)),
    ),
}


class OutsideEncoder:
    """A frozen encoder that gives a vector for each token of a caption, in bfloat16."""

    def __init__(
        self, kind: EncoderKind, folder: Path, model: Any, pieces: Pieces, tokens: int
    ) -> None:
        self.kind, self.folder, self.tokens = kind, folder, tokens
        self.width: int = model.config.hidden_size
        self._model, self._pieces = model, pieces

    @cached_property
    def identity(self) -> str:
        """Names kind, weights, tokenizer and tokens; where they were read from is left out."""
        return identity_of(self.kind, self.folder, self.tokens)

    @property
    def precision(self) -> str:
        """Of the network's own numbers: float32 on a CPU, where vectors come out a little other."""
        return str(self._model.dtype).removeprefix("torch.")

    def encode(self, captions: Sequence[str]) -> Captions:
        """Vectors of captions, on the device of the encoder; zero where there is no real token."""
        device = self._model.device
        numbers, mask = self._numbers(captions)
        given = torch.stack([numbers, mask.long()], dim=1)
        with exact_arithmetic(device):
            parts = [self._of_block(block)[:count] for block, count in blocks(given, self._rows)]
        empty = torch.zeros(0, self.tokens, self.width, dtype=torch.bfloat16, device=device)
        mask = mask.to(device)
        vectors = torch.cat([empty, *parts])
        return Captions(torch.where(mask[..., None], vectors, vectors.new_zeros(())), mask)

    def cut(self, caption: str) -> str:
        """What of a caption lies behind the last token."""
        return self._pieces.read(caption)[1] if caption.strip() else ""

    def unknown(self, caption: str) -> tuple[str, ...]:
        """None: its pieces of words make up any text."""
        return ()

    def _numbers(self, captions: Sequence[str]) -> tuple[Int[Tensor, "B N"], Bool[Tensor, "B N"]]:
        """Numbers of tokens, padded with 0, and which are real: none of a caption of blanks."""
        numbers = torch.zeros(len(captions), self.tokens, dtype=torch.long)
        mask = torch.zeros(len(captions), self.tokens, dtype=torch.bool)
        for row, caption in enumerate(captions):
            if caption.strip():
                found, _ = self._pieces.read(caption)
                numbers[row, : len(found)] = torch.tensor(found)
                mask[row, : len(found)] = True
        return numbers, mask

    def _of_block(self, given: Int[Tensor, "B 2 N"]) -> Float[Tensor, "B N W"]:
        numbers, mask = given.to(self._model.device).unbind(dim=1)
        found = self._model(input_ids=numbers, attention_mask=mask)
        return found.last_hidden_state.to(torch.bfloat16)

    @cached_property
    def _rows(self) -> int:
        """Captions in a block: one, unless an accelerator gives the same bits at every place."""
        if self._model.device.type == "cpu":
            return 1
        numbers = torch.arange(self.tokens) % min(self._model.config.vocab_size, 1000)
        trial = torch.stack([numbers, torch.ones_like(numbers)]).expand(_ROWS, -1, -1)
        with exact_arithmetic(self._model.device):
            found = self._of_block(trial)
        return _ROWS if torch.equal(found, found[:1].expand_as(found)) else 1


def identity_of(kind: EncoderKind, folder: Path, tokens: int) -> str:
    """The identity of an encoder by hashes of its files: a minute where there are 20 GB."""
    weights, tokenizer = fingerprint_of(folder, ENCODERS[kind]), hashlib.sha256()
    for file in tokenizer_files(folder):
        tokenizer.update(f"{file.name} {digest_of(file)}\n".encode())
    hashes = f"sha256:{weights[:16]} tokenizer {tokenizer.hexdigest()[:16]}"
    return f"{kind} {hashes} tokens {tokens}"


def load_outside(
    kind: EncoderKind, place: str, tokens: int, device: torch.device | str
) -> OutsideEncoder:
    """The encoder of a folder or of a hub name whose files are in the cache.

    Its numbers are bfloat16 on an accelerator, float32 on a CPU. Raises ConfigError if it is not
    there, is of another kind or reads fewer tokens, StorageError if its files are damaged.
    """
    wanted = ENCODERS[kind]
    folder = locate(place, wanted)
    pieces = open_pieces(folder, wanted, tokens)
    dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    model = load_model(folder, wanted, device, dtype=dtype)
    most = model.config.max_position_embeddings if kind == "clip" else tokens
    if tokens > most:
        raise ConfigError(
            f"model.text.tokens {tokens} is more than the {most} that this {wanted.title} reads",
            where=str(folder.absolute()),
            remedy=f"set --model.text.tokens (of prepare --text-tokens) {most}",
        )
    return OutsideEncoder(kind, folder, model, pieces, tokens)
