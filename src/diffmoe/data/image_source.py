"""Images to train on: pictures from wherever they lie, decoded, cropped and mirrored."""

from jaxtyping import Float
from torch import Tensor

from diffmoe.data.images import MODES, decode_image
from diffmoe.data.labels import unlabelled
from diffmoe.data.pictures import Pictures
from diffmoe.errors import ConfigError

__all__ = ["ImageSource"]


class ImageSource:
    """Images in [-1, 1], cropped to a square of `side` pixels.

    With `captions`, one for each, they may do without labels: all are of one class then.
    """

    encoded = False

    def __init__(self, pictures: Pictures, *, channels: int, side: int) -> None:
        if channels not in MODES:
            raise ConfigError(
                f"model.channels {channels} does not fit images",
                remedy="use 1 for grey, 3 for colour, or codec `autoencoder` for latents",
            )
        self.pictures, self.captions = pictures, pictures.captions
        if pictures.labels is not None:
            self.labels, self.class_names = pictures.labels, pictures.class_names
        elif pictures.captions is not None:
            self.labels, self.class_names = unlabelled(len(pictures))
        else:
            raise ConfigError("pictures without labels or captions are nothing to train on")
        self.shape = (channels, side, side)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def fingerprint(self) -> str:
        """That of the pictures: neither size nor channels are part of it."""
        return self.pictures.fingerprint

    def load(self, index: int, flip: bool) -> Float[Tensor, "C H W"]:
        """One image, mirrored if `flip`; raises DataError naming its file and index."""
        channels, side, _ = self.shape
        content, name = self.pictures.read(index), self.pictures.name(index)
        image = decode_image(content, name, index, channels=channels, side=side)
        return image.flip(-1) if flip else image
