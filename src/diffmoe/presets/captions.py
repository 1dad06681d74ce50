"""Models that draw from captions: as published (Table 7), and on drawn scenes for a laptop."""

from dataclasses import replace

from diffmoe.config import (
    ExpertChoice,
    FeatureText,
    FlowConfig,
    FolderData,
    RunConfig,
    ScenesData,
    T5Encoder,
    WordEncoder,
    WordText,
)
from diffmoe.presets.build import imagenet, pooled, routed
from diffmoe.presets.digits import digits_dense

__all__ = ["SCENES", "TEXT_TO_IMAGE"]


def dit_t2i_flow() -> RunConfig:
    """Dense twin of the text-to-image model, 1.24 B; GenEval 0.38, tuned 0.49 (Table 7)."""
    base = imagenet(width=1408, depth=28, heads=16)
    return replace(
        base,
        model=replace(base.model, num_classes=0, text=FeatureText(tokens=120, width=4096)),
        data=FolderData(flip=False),  # mirrored, what is left of another is right of it
        text=T5Encoder(),
    )


def diffmoe_e16_t2i_flow() -> RunConfig:
    """DiffMoE from captions, 4.60 B, 1.24 B activated; GenEval 0.44, tuned 0.51 (Table 7).

    Sizes are inferred from the printed totals.
    """
    return pooled(dit_t2i_flow(), experts=16)


def scenes_dense() -> RunConfig:
    """A dense DiT from captions, on drawn scenes of 32 x 32: the yardstick of `scenes-diffmoe`."""
    base = digits_dense()
    steps = 12_000
    return replace(
        base,
        model=replace(
            base.model,
            input_size=32,
            patch_size=4,
            channels=3,
            out_channels=3,
            width=96,
            depth=4,
            num_classes=0,
            text=WordText(tokens=20, words=64, width=96, layers=2, heads=4),
        ),
        # Where things are is settled in much noise, so times are drawn from there most of all.
        objective=FlowConfig(time_scale=1000.0, time_sampling="logit_normal", logit_mean=0.4),
        data=ScenesData(),
        text=WordEncoder(),
        training=replace(
            base.training,
            global_batch=32,
            learning_rate=3e-3,
            betas=(0.9, 0.99),
            warmup_steps=100,
            decay_steps=steps,
            ema_decay=0.998,
        ),
        loop=replace(base.loop, steps=steps, log_every=100),
        sampling=replace(base.sampling, steps=30, guidance=3.0),
    )


def scenes_diffmoe() -> RunConfig:
    """A DiffMoE with 4 experts from captions, on drawn scenes: the demo of text to image."""
    return pooled(scenes_dense(), experts=4, pool_images=32)


def scenes_ec() -> RunConfig:
    """Expert choice with 4 experts from captions, on drawn scenes."""
    return routed(scenes_dense(), ExpertChoice(num_experts=4, capacity=1.0))


TEXT_TO_IMAGE = (diffmoe_e16_t2i_flow, dit_t2i_flow)
SCENES = (scenes_diffmoe, scenes_dense, scenes_ec)
