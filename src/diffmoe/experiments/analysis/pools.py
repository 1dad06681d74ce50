"""Whether a pool is large enough for the experts that are to choose from it."""

from diffmoe.config import RunConfig, SamplingConfig
from diffmoe.errors import ConfigError

__all__ = ["has_room"]


def has_room(config: RunConfig, settings: SamplingConfig) -> bool:
    """Whether each expert gets a row of a full batch; only a fixed top-K may leave it none."""
    if settings.selection != "pool" or settings.policy != "static":
        return True
    try:
        config.model.router.check(config.model.tokens, settings.pool_images or settings.batch)
    except ConfigError:
        return False
    return True
