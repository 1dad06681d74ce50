"""All presets by name."""

from collections.abc import Callable

from diffmoe.config import RunConfig, nearest
from diffmoe.errors import ConfigError
from diffmoe.presets.build import twin
from diffmoe.presets.captions import SCENES, TEXT_TO_IMAGE
from diffmoe.presets.classes import IMAGENET
from diffmoe.presets.digits import DIGITS

__all__ = ["PRESETS", "preset"]


def _table() -> dict[str, Callable[[], RunConfig]]:
    presets: dict[str, Callable[[], RunConfig]] = {}
    for build in (*DIGITS, *SCENES, *IMAGENET, *TEXT_TO_IMAGE):
        presets[build.__name__.replace("_", "-")] = build
    for build in IMAGENET:
        presets[build.__name__.replace("_", "-").replace("-flow", "-ddpm")] = twin(build)
    return presets


PRESETS = _table()


def preset(name: str) -> RunConfig:
    """The config of a preset; raises ConfigError naming the nearest when there is none."""
    if name not in PRESETS:
        near = nearest(name.lower(), list(PRESETS))
        hint = f"did you mean {near}?" if near else "see `diffmoe presets`"
        raise ConfigError(f"unknown preset {name!r}", remedy=hint)
    return PRESETS[name]()
