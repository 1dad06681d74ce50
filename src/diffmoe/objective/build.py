"""From an objective's config to the objective."""

from diffmoe.config import DDPMConfig, FlowConfig, ObjectiveConfig
from diffmoe.objective.ddpm import DDPM
from diffmoe.objective.flow import Flow

__all__ = ["build_objective"]


def build_objective(config: ObjectiveConfig) -> Flow | DDPM:
    """The objective a config describes."""
    builders = {FlowConfig: Flow, DDPMConfig: DDPM}
    return builders[type(config)](config)
