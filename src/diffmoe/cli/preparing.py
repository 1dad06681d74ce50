"""The verb that encodes images or captions ahead of training: prepare."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from diffmoe.arguments import PrepareCommand, parse
from diffmoe.cli.words import first
from diffmoe.config import AutoencoderCodec
from diffmoe.console import program
from diffmoe.presets import preset

if TYPE_CHECKING:
    from diffmoe.experiments import PreparedCache, PreparedCaptions

__all__ = ["prepare"]

_PRESET = "diffmoe-s-e16-flow"  # that the next command trains
_TEXT_PRESET = "diffmoe-e16-t2i-flow"  # and from captions


def prepare(words: list[str]) -> None:
    """Encode images, or captions, into a cache."""
    data, rest = first(words, "prepare", "DATA", PrepareCommand)
    command = parse(PrepareCommand, PrepareCommand(), rest, f"diffmoe prepare {shlex.quote(data)}")
    from diffmoe.device import is_first_process

    done, following = (_captions if command.text_encoder is not None else _images)(data, command)
    if is_first_process():
        print("\n".join(done.lines()))
        print(f"next: {following}")


def _images(data: str, command: PrepareCommand) -> tuple["PreparedCache", str]:
    """The latent cache, and what is next."""
    from diffmoe.experiments import prepare

    done = prepare(
        Path(data),
        command.autoencoder,
        out=command.out,
        side=command.side,
        dtype=command.dtype,
        flip=command.flip,
        shard=command.shard,
        skip_damaged=command.skip_damaged,
        caption_field=command.caption_field,
        workers=command.workers,
        device=command.device,
        progress=not command.quiet,
    )
    return done, f"{program()} {shlex.join(_training(done))}"


def _captions(data: str, command: PrepareCommand) -> tuple["PreparedCaptions", str]:
    """The cache of captions, and what is next."""
    from diffmoe.experiments import prepare_captions

    assert command.text_encoder is not None
    done = prepare_captions(
        Path(data),
        command.text_encoder,
        field=command.caption_field,
        out=command.out,
        tokens=command.text_tokens,
        shard=command.shard,
        device=command.device,
        progress=not command.quiet,
    )
    made = done.record.encoder
    flags = ["--text.path", made.path, "--text.cache", str(done.path)]
    flags += ["--model.text.tokens", str(made.tokens), "--model.text.width", str(made.width)]
    if made.kind != "t5":  # no preset reads another
        return done, f"train a config whose text is of kind {made.kind}, with {shlex.join(flags)}"
    images = "IMAGES" if Path(data).is_file() else data  # a file of captions alone has none
    field = ["--data.caption-field", command.caption_field] if command.caption_field else []
    words = ["train", _TEXT_PRESET, "--data.path", images, *field, *flags]
    return done, f"{program()} {shlex.join(words)}"


def _training(done: "PreparedCache") -> list[str]:
    """The words that train a preset from a cache: what the preset has otherwise is named."""
    record, base = done.record, preset(_PRESET)
    made, codec = record.autoencoder, base.codec
    assert isinstance(codec, AutoencoderCodec)
    wanted = [
        ("model.input-size", record.block[-1], base.model.input_size),
        ("model.channels", made.channels, base.model.channels),
        ("model.out-channels", made.channels, base.model.out_channels),
        ("codec.path", made.path, codec.path),
        ("codec.factor", made.factor, codec.factor),
        ("codec.scale", made.scale, codec.scale),
        ("codec.shift", made.shift, codec.shift),
    ]
    words = ["train", _PRESET, "--data.path", str(done.path)]
    words += ["--model.num-classes", str(len(record.class_names))]
    words += [word for name, own, its in wanted if own != its for word in (f"--{name}", str(own))]
    return words if record.flip else [*words, "--data.no-flip"]
