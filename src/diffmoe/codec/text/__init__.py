"""Captions to what a network reads of them: numbers of words, or vectors of an outside encoder."""

from diffmoe.codec.text.build import (
    build_text_encoder,
    find_text_encoder,
    find_text_identity,
    open_text_encoder,
)
from diffmoe.codec.text.outside import OutsideEncoder
from diffmoe.codec.text.prompts import TextEncoder, quoted, read_prompts, utf8
from diffmoe.codec.text.words import Words

__all__ = [
    "OutsideEncoder",
    "TextEncoder",
    "Words",
    "build_text_encoder",
    "find_text_encoder",
    "find_text_identity",
    "open_text_encoder",
    "quoted",
    "read_prompts",
    "utf8",
]
