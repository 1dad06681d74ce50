"""What a run is trained on, and what turns its images into what the model sees."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from diffmoe.config.checks import Checked, positive, within
from diffmoe.config.marks import EXTEND, MACHINE
from diffmoe.errors import ConfigError

__all__ = [
    "SD_VAE",
    "AutoencoderCodec",
    "CodecConfig",
    "DataConfig",
    "DigitsData",
    "FolderData",
    "PixelCodec",
    "ScenesData",
]


@dataclass(frozen=True, kw_only=True)
class DigitsData:
    """scikit-learn's 1,797 scans of hand-written digits, 8 x 8, 10 classes."""

    kind: ClassVar[str] = "digits"


@dataclass(frozen=True, kw_only=True)
class FolderData(Checked):
    """Images or latents on disk.

    Images are a folder with a sub-folder for each class, a .tar or .zip of one, WebDataset shards
    (.tar), or a Hugging Face data set (`save_to_disk` or parquet). Latents are `latents.npy`
    (N, C, H, W), or (N, 2, C, H, W) with each image and its mirror image, already scaled, beside
    `labels.npy` (N,), or a cache that `diffmoe prepare` made of images.
    """

    group: ClassVar[str] = "data"
    kind: ClassVar[str] = "folder"
    path: Annotated[Path | None, MACHINE] = None  # the folder or archive; None = not yet chosen
    flip: bool = True  # mirror half of the images at random
    caption_field: str | None = None  # column or key of captions; None = the usual names
    on_bad_sample: Annotated[Literal["error", "replace"], EXTEND] = "error"  # a damaged one
    max_bad_share: Annotated[float, EXTEND] = 1e-3  # share of the samples that may be replaced

    def ranges(self) -> Iterator[ConfigError]:
        """A share is one of all."""
        yield from within(0, 1, self, "max_bad_share")


@dataclass(frozen=True, kw_only=True)
class ScenesData(Checked):
    """Drawn pictures of coloured shapes with captions, of any side: see docs/scenes.md."""

    group: ClassVar[str] = "data"
    kind: ClassVar[str] = "scenes"
    count: int = 100_000  # pictures
    seed: int = 0  # of what is drawn

    def ranges(self) -> Iterator[ConfigError]:
        """There are pictures."""
        yield from within(1, 2**40, self, "count")
        yield from within(0, 2**63 - 1, self, "seed")


DataConfig = DigitsData | FolderData | ScenesData


@dataclass(frozen=True, kw_only=True)
class PixelCodec:
    """The model works on pixels in [-1, 1]."""

    kind: ClassVar[str] = "pixels"
    factor: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class AutoencoderCodec(Checked):
    """The model works on the latents of a diffusers `AutoencoderKL`."""

    group: ClassVar[str] = "codec"
    kind: ClassVar[str] = "autoencoder"
    path: Annotated[str, MACHINE]  # folder or hub name of the autoencoder
    factor: int  # image side / latent side
    scale: float  # latents are multiplied by this after the shift
    shift: float  # subtracted from latents before scaling

    def ranges(self) -> Iterator[ConfigError]:
        """Latents can be turned into images again."""
        yield from positive(self, "factor", "scale")
        yield from within(-1000, 1000, self, "shift")


CodecConfig = PixelCodec | AutoencoderCodec

# The autoencoder of the paper's runs (App. B), and the one home of its scale.
SD_VAE = AutoencoderCodec(path="stabilityai/sd-vae-ft-mse", factor=8, scale=0.18215, shift=0.0)
