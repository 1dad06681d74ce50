"""DiffMoE: mixture-of-experts diffusion transformers with dynamic token selection."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffmoe._public import (
        RoutingPlan,
        RunConfig,
        SamplingConfig,
        analyze,
        build_model,
        build_objective,
        calibrate,
        encode_prompts,
        evaluate,
        generate,
        load,
        prepare,
        preset,
        report,
        train,
    )

__all__ = [
    "RoutingPlan",
    "RunConfig",
    "SamplingConfig",
    "analyze",
    "build_model",
    "build_objective",
    "calibrate",
    "encode_prompts",
    "evaluate",
    "generate",
    "load",
    "prepare",
    "preset",
    "report",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import the public names when the first is asked for: the command line answers faster."""
    if name not in __all__:
        raise AttributeError(f"module 'diffmoe' has no attribute {name!r}")
    from diffmoe import _public

    return getattr(_public, name)
