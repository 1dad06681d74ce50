"""What a run is trained on: its samples, and what makes inputs and conditions of them."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from diffmoe.checkpoint import RunFolder
from diffmoe.codec import Codec
from diffmoe.config import RunConfig
from diffmoe.data import (
    Batch,
    Source,
    Texts,
    open_source,
    some_captions,
    source_codec,
    source_texts,
    stream,
)
from diffmoe.distributed import Group

__all__ = ["STORED", "Material"]

STORED = "none: the latents were encoded elsewhere"  # stands for the codec of stored latents


@dataclass(frozen=True)
class Material:
    """Samples, the codec of their images and the encoder of their captions, as far as needed."""

    source: Source
    codec: Codec | None
    texts: Texts | None

    @classmethod
    def of(
        cls, config: RunConfig, folder: RunFolder, device: torch.device, group: Group
    ) -> "Material":
        """What a config names, with the vocabulary of the run in `folder` if it goes on."""
        source = open_source(config)
        codec = source_codec(config, source, device)
        words = group.first_says(lambda: folder.words if folder.has_past else ())
        return cls(source, codec, source_texts(config, source, device, words))

    @property
    def identity(self) -> dict[str, str]:
        """What each checkpoint notes of it."""
        codec = self.codec.identity if self.codec else STORED
        found = {"codec": codec, "data": self.source.fingerprint}
        return found | ({"text": self.texts.identity} if self.texts else {})

    def batches(
        self, config: RunConfig, first: int, device: torch.device, group: Group
    ) -> Iterator[Batch]:
        """This process's micro-batches from sample number `first` on."""
        part = {"device": device, "rank": group.rank, "processes": group.size}
        return stream(config, self.source, self.codec, self.texts, first=first, **part)

    def keep_names(self, folder: RunFolder) -> None:
        """Write what is needed of it where the data are not at hand."""
        folder.keep_class_names(self.source.class_names)
        if self.texts is not None:
            folder.keep_texts(self.texts.words, some_captions(self.source))
