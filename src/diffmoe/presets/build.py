"""How presets differ: base, router, objective."""

from collections.abc import Callable
from dataclasses import replace

from diffmoe.config import (
    SD_VAE,
    BatchPool,
    DDPMConfig,
    Dense,
    FlowConfig,
    FolderData,
    ModelConfig,
    RouterOptions,
    RunConfig,
)

__all__ = ["PAPER_POOL", "ddpm", "imagenet", "pooled", "routed", "twin"]

PAPER_POOL = 64  # global batch 256 on four processes


def imagenet(width: int, depth: int, heads: int) -> RunConfig:
    """A dense flow model on SD-VAE latents of ImageNet 256, trained as App. B says."""
    return RunConfig(
        model=ModelConfig(
            input_size=32,
            patch_size=2,
            channels=4,
            out_channels=4,
            width=width,
            depth=depth,
            heads=heads,
            mlp_ratio=4,
            num_classes=1000,
            router=Dense(),
            moe_period=2,
            pool_images=1,
        ),
        objective=FlowConfig(),
        data=FolderData(),
        codec=SD_VAE,
    )


def routed(base: RunConfig, router: RouterOptions, pool_images: int = 1) -> RunConfig:
    """The twin of a preset with another router."""
    return replace(base, model=replace(base.model, router=router, pool_images=pool_images))


def pooled(base: RunConfig, experts: int, pool_images: int = PAPER_POOL) -> RunConfig:
    """The DiffMoE of a dense preset, with the paper's pool unless another is said."""
    router = BatchPool(
        num_experts=experts, capacity=1.0, predictor_weight=1.0, threshold_decay=0.95
    )
    return routed(base, router, pool_images)


def ddpm(flow: RunConfig) -> RunConfig:
    """The DDPM twin of a flow preset: learned variance, 250 respaced ancestral steps."""
    return replace(
        flow,
        model=replace(flow.model, out_channels=2 * flow.model.channels),
        objective=DDPMConfig(),
        sampling=replace(flow.sampling, sampler="ancestral"),
    )


def twin(flow: Callable[[], RunConfig]) -> Callable[[], RunConfig]:
    """What builds the DDPM twin of a flow preset, with the same expectations."""

    def build() -> RunConfig:
        return ddpm(flow())

    build.__doc__ = flow.__doc__
    return build
