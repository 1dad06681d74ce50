"""The words of `prepare` as a record: a field is a flag, its default the flag's."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from diffmoe.config import SD_VAE, Checked
from diffmoe.errors import ConfigError

__all__ = ["PrepareCommand"]


@dataclass(frozen=True, kw_only=True)
class PrepareCommand(Checked):
    """Encode images once into a latent cache, which training then reads instead of the images.

    With --text-encoder it is captions that are encoded: of images that have some, or those of a
    .txt with one a line or of a .jsonl. Any number of processes may share the work, and the same
    command goes on where one was stopped; on a finished cache it verifies all files and makes
    damaged ones anew.
    """

    group: ClassVar[str] = "prepare"
    autoencoder: str = SD_VAE.path  # folder or hub name of a diffusers AutoencoderKL
    out: Path | None = None  # the cache; None = the path of the data, -latents or -captions added
    side: int = 256  # images are cropped and scaled to so many pixels
    dtype: Literal["float32", "float16"] = "float32"  # of what is kept; float16 halves the disk
    flip: bool = True  # also encode the mirror images, which data.flip of training needs
    shard: int = 1024  # images or captions of a file
    skip_damaged: bool = False  # leave out images that cannot be read, up to 1 in 100
    workers: int = 0  # processes that read images
    text_encoder: str | None = None  # folder or hub name of a T5 or CLIP: encode captions instead
    caption_field: str | None = None  # that holds captions; None = one of the usual names
    text_tokens: int = 120  # of a caption; longer ones are cut. A CLIP reads up to 77
    device: str = "auto"  # auto, cpu, cuda, ...
    quiet: bool = False  # no progress bar

    def relations(self) -> Iterator[ConfigError]:
        """Nothing is said of images where captions are encoded, nor the other way round."""
        said = self.text_encoder is not None
        images = ("autoencoder", "side", "dtype", "flip", "skip_damaged", "workers")
        for name in images if said else ("text_tokens",):
            if (value := getattr(self, name)) != getattr(PrepareCommand, name):
                why = (
                    "captions are encoded" if said else "without --text-encoder images are encoded"
                )
                flag = f"--{'no-' if value is False else ''}{name.replace('_', '-')}"
                yield ConfigError(f"{flag} changes nothing: {why}", remedy="leave it out")
