"""A latent cache as a set of samples, checked against the run that trains from it."""

from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from diffmoe.codec import StoredPosterior
from diffmoe.config import AutoencoderCodec, FolderData, RunConfig
from diffmoe.data.cache.record import CacheRecord, read_captions, read_labels, read_record
from diffmoe.data.cache.shard import Shards
from diffmoe.data.labels import unlabelled
from diffmoe.data.pictures import Names
from diffmoe.errors import ConfigError

__all__ = ["CacheSource", "open_cache"]


class CacheSource:
    """Posteriors where other sources have images; `codec` draws latents from them.

    Noise and order are those of the images, so training goes as it would with them, be it from
    labels or, with `captioned`, from captions.
    """

    encoded = False

    captions: Names | None = None

    def __init__(self, folder: Path, *, captioned: bool = False) -> None:
        self.record = read_record(folder)
        self._shards = Shards(folder, self.record)
        self._shards.refuse_incomplete()
        self._shards.refuse_foreign()
        self.labels = read_labels(folder, self.record)
        if captioned:
            self.captions = read_captions(folder, self.record)
        self.class_names = self.record.class_names or unlabelled(0)[1]
        self.shape = (3, self.record.side, self.record.side)  # of the images

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def codec(self) -> StoredPosterior:
        """The codec that takes what this source loads."""
        made = self.record.autoencoder
        return StoredPosterior(made.channels, made.scale, made.shift, made.identity)

    @property
    def fingerprint(self) -> str:
        """That of the images, plus what differs: images left out, values that were rounded."""
        record = self.record
        return record.fingerprint if self.captions is None else record.captioned_fingerprint

    def load(self, index: int, flip: bool) -> Float[Tensor, "2 C h w"]:
        """Mean and deviation of an image, mirrored if `flip`; raises DataError if damaged."""
        return self._shards.read(index, flip)


def open_cache(folder: Path, config: RunConfig) -> CacheSource:
    """The cache in a folder for a run.

    Raises ConfigError if it is not what the run takes, DataError if it is damaged.
    """
    _refuse_unfit(read_record(folder), folder, config)
    return CacheSource(folder, captioned=config.model.reads_text)


def _refuse_unfit(record: CacheRecord, folder: Path, config: RunConfig) -> None:
    if not isinstance(config.codec, AutoencoderCodec):
        raise ConfigError(
            f"codec {config.codec.kind} takes no latent cache",
            where=str(folder),
            remedy="train a preset whose codec is an autoencoder, or set --data.path to images",
        )
    _refuse_other_condition(record, folder, config)
    for name, own, there in _demands(record, config, config.codec):
        if own != there:
            raise ConfigError(
                f"{name} {own} is not that of the cache, {there}",
                where=str(folder),
                remedy=f"set --{name.replace('_', '-')} {there}, or prepare another cache",
            )
    if isinstance(config.data, FolderData) and config.data.flip and not record.flip:
        raise ConfigError(
            "data.flip is on but the cache holds no mirror images",
            where=str(folder),
            remedy="set --data.no-flip, or prepare a cache without --no-flip",
        )


def _refuse_other_condition(record: CacheRecord, folder: Path, config: RunConfig) -> None:
    """Raise ConfigError if the cache does not hold what the network is to be told."""
    if config.model.reads_text and record.captions is None:
        raise ConfigError(
            "the cache holds no captions, which the model reads",
            where=str(folder),
            remedy="add captions to its images and run `diffmoe prepare` again into another folder",
        )
    field = getattr(config.data, "caption_field", None)
    if field is not None:
        raise ConfigError(
            f"data.caption_field {field} would change nothing: the cache holds captions already",
            where=str(folder),
            remedy="leave it out, or run `diffmoe prepare --caption-field` into another folder",
        )
    if not config.model.reads_text and not record.class_names:
        raise ConfigError(
            "the cache holds captions and no classes, which the model is told",
            where=str(folder),
            remedy="train a preset that reads text, or prepare images in class folders",
        )


def _demands(
    record: CacheRecord, config: RunConfig, codec: AutoencoderCodec
) -> list[tuple[str, float, float]]:
    """What a run asks for, and what the cache has."""
    made = record.autoencoder
    return [
        ("codec.factor", codec.factor, made.factor),
        ("codec.scale", codec.scale, made.scale),
        ("codec.shift", codec.shift, made.shift),
        ("model.channels", config.model.channels, made.channels),
        ("model.input_size", config.model.input_size, record.block[-1]),
    ]
