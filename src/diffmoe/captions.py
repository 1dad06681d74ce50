"""Captions as a network reads them: a fixed number of tokens each, and which of them are real.

A caption without real tokens says nothing: it stands for "no condition" in guidance.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["Captions"]


class Captions(NamedTuple):
    """Tokens of B captions, N each; behind those of a short caption there is padding."""

    tokens: Int[Tensor, "B N"] | Float[Tensor, "B N W"]  # numbers of words, or an encoder's vectors
    mask: Bool[Tensor, "B N"]  # which are no padding

    def to(self, device: torch.device | str) -> "Captions":
        """The same on another device."""
        return Captions(*(part.to(device, non_blocking=True) for part in self))

    def rows(self, which: Tensor | slice) -> "Captions":
        """Some of the captions, by number or place."""
        return Captions(self.tokens[which], self.mask[which])

    def without(self, dropped: Bool[Tensor, "B"]) -> "Captions":
        """The captions, of which the `dropped` ones say nothing."""
        return Captions(self.tokens, self.mask & ~dropped[:, None])

    @property
    def silent(self) -> "Captions":
        """As many captions that say nothing."""
        return Captions(self.tokens, torch.zeros_like(self.mask))

    @classmethod
    def joined(cls, parts: "list[Captions]") -> "Captions":
        """The captions of several records, one after another."""
        tokens, masks = zip(*parts, strict=True)
        return cls(torch.cat(tokens), torch.cat(masks))
