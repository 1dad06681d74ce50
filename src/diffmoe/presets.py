"""One function for each published row: the config, and the number to expect beside it.

A preset is built from a neighbour by `replace`, so the difference of two presets is the
experiment. Published numbers are FID-50K on ImageNet 256, from the paper's tables.
"""

from collections.abc import Callable
from dataclasses import replace

from diffmoe.config import (
    SD_VAE,
    BatchPool,
    DDPMConfig,
    Dense,
    DigitsData,
    ExpertChoice,
    FlowConfig,
    FolderData,
    LoopConfig,
    MachineConfig,
    ModelConfig,
    PixelCodec,
    RouterOptions,
    RunConfig,
    SamplingConfig,
    TokenChoice,
    TrainingConfig,
    nearest,
)
from diffmoe.errors import ConfigError

__all__ = ["PRESETS", "preset"]

PAPER_POOL = 64  # global batch 256 on four processes


def _imagenet(width: int, depth: int, heads: int) -> RunConfig:
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


def _routed(base: RunConfig, router: RouterOptions, pool_images: int = 1) -> RunConfig:
    return replace(base, model=replace(base.model, router=router, pool_images=pool_images))


def _pooled(base: RunConfig, experts: int) -> RunConfig:
    router = BatchPool(
        num_experts=experts, capacity=1.0, predictor_weight=1.0, threshold_decay=0.95
    )
    return _routed(base, router, PAPER_POOL)


def _ddpm(flow: RunConfig) -> RunConfig:
    """The DDPM twin of a flow preset: learned variance, 250 respaced ancestral steps."""
    return replace(
        flow,
        model=replace(flow.model, out_channels=2 * flow.model.channels),
        objective=DDPMConfig(),
        sampling=replace(flow.sampling, sampler="ancestral"),
    )


def dit_s_flow() -> RunConfig:
    """Dense DiT-S/2, 33.0 M parameters."""
    return _imagenet(width=384, depth=12, heads=6)


def dit_b_flow() -> RunConfig:
    """Dense DiT-B/2, 130.5 M parameters."""
    return _imagenet(width=768, depth=12, heads=12)


def dit_l_flow() -> RunConfig:
    """Dense DiT-L/2, 458.1 M parameters; 17.01 flow, 17.87 DDPM at 700K, no guidance (Table 3)."""
    return _imagenet(width=1024, depth=24, heads=16)


def dit_xl_flow() -> RunConfig:
    """Dense DiT-XL/2, 675.1 M; 14.77 / 15.28 (Table 3), 2.19 / 2.32 at 7000K, cfg 1.5 (Table 2)."""
    return _imagenet(width=1152, depth=28, heads=16)


def dit_xxl_flow() -> RunConfig:
    """Dense DiT-XXL/2, 951.2 M, shape inferred; 2.41 at 3000K, cfg 1.5 (Table 5)."""
    return _imagenet(width=1280, depth=32, heads=20)


def dit_xxxl_flow() -> RunConfig:
    """Dense DiT-XXXL/2, 1353 M, shape inferred; 2.37 at 3000K, cfg 1.5 (Table 5)."""
    return _imagenet(width=1440, depth=36, heads=24)


def diffmoe_s_e16_flow() -> RunConfig:
    """DiffMoE-S/2 with 16 experts, 140 M parameters, 33 M activated."""
    return _pooled(dit_s_flow(), experts=16)


def diffmoe_b_e16_flow() -> RunConfig:
    """DiffMoE-B/2 with 16 experts, 559 M parameters, 131 M activated."""
    return _pooled(dit_b_flow(), experts=16)


def diffmoe_l_e2_flow() -> RunConfig:
    """DiffMoE-L/2 with 2 experts, 571 M parameters, 467 M activated (Fig. 9)."""
    return _pooled(dit_l_flow(), experts=2)


def diffmoe_l_e4_flow() -> RunConfig:
    """DiffMoE-L/2 with 4 experts, 773 M parameters, 463 M activated (Fig. 9)."""
    return _pooled(dit_l_flow(), experts=4)


def diffmoe_l_e8_flow() -> RunConfig:
    """DiffMoE-L/2 with 8 experts, 1176 M; 2.13 flow, 2.30 DDPM at 7000K, cfg 1.5 (Table 2).

    The 7000K runs of Table 2 used eight processes: `--model.pool-images 32`.
    """
    return _pooled(dit_l_flow(), experts=8)


def diffmoe_l_e16_flow() -> RunConfig:
    """DiffMoE-L/2 with 16 experts, 1982 M parameters; 14.41 flow, 14.60 DDPM at 700K (Table 3)."""
    return _pooled(dit_l_flow(), experts=16)


def diffmoe_xl_e16_flow() -> RunConfig:
    """DiffMoE-XL/2 with 16 experts, 2925 M parameters; 2.30 at 3000K, cfg 1.5 (Table 5)."""
    return _pooled(dit_xl_flow(), experts=16)


def tc_dit_l_e16_flow() -> RunConfig:
    """Token choice, top-1 of 16 experts; 19.06 flow, 20.81 DDPM at 700K (Table 3)."""
    return _routed(
        dit_l_flow(), TokenChoice(num_experts=16, top_k=1, balance_weight=0.01), PAPER_POOL
    )


def ec_dit_l_e16_flow() -> RunConfig:
    """Expert choice in each image, 16 experts; 16.12 flow, 17.65 DDPM at 700K (Table 3)."""
    return _routed(dit_l_flow(), ExpertChoice(num_experts=16, capacity=1.0))


def digits_dense() -> RunConfig:
    """A dense DiT on 8 x 8 digits: the yardstick of the demo, a minute on two CPU cores."""
    return RunConfig(
        model=ModelConfig(
            input_size=8,
            patch_size=2,
            channels=1,
            out_channels=1,
            width=64,
            depth=4,
            heads=4,
            mlp_ratio=4,
            num_classes=10,
            router=Dense(),
            moe_period=2,
            pool_images=1,
        ),
        objective=FlowConfig(time_scale=1000.0),
        data=DigitsData(),
        codec=PixelCodec(),
        training=TrainingConfig(
            global_batch=64,
            learning_rate=3e-3,
            warmup_steps=50,
            decay_steps=1300,
            clip_norm=1.0,
            ema_decay=0.99,
        ),
        loop=LoopConfig(steps=1300, log_every=20, checkpoint_every=500, keep_checkpoints=2),
        sampling=SamplingConfig(sampler="euler", steps=20, guidance=1.5),
        machine=MachineConfig(device="cpu"),
    )


def digits_diffmoe() -> RunConfig:
    """A DiffMoE with 4 experts on digits: the demo. Expect 99 % of samples to be read as asked."""
    return _pooled(digits_dense(), experts=4)


def digits_tc() -> RunConfig:
    """Token choice with 4 experts on digits."""
    return _routed(
        digits_dense(), TokenChoice(num_experts=4, top_k=1, balance_weight=0.01), PAPER_POOL
    )


def digits_ec() -> RunConfig:
    """Expert choice with 4 experts on digits."""
    return _routed(digits_dense(), ExpertChoice(num_experts=4, capacity=1.0))


def _twin(flow: Callable[[], RunConfig]) -> Callable[[], RunConfig]:
    def build() -> RunConfig:
        return _ddpm(flow())

    build.__doc__ = flow.__doc__
    return build


_IMAGENET = (
    dit_s_flow,
    dit_b_flow,
    dit_l_flow,
    dit_xl_flow,
    dit_xxl_flow,
    dit_xxxl_flow,
    diffmoe_s_e16_flow,
    diffmoe_b_e16_flow,
    diffmoe_l_e2_flow,
    diffmoe_l_e4_flow,
    diffmoe_l_e8_flow,
    diffmoe_l_e16_flow,
    diffmoe_xl_e16_flow,
    tc_dit_l_e16_flow,
    ec_dit_l_e16_flow,
)


def _table() -> dict[str, Callable[[], RunConfig]]:
    presets: dict[str, Callable[[], RunConfig]] = {}
    for build in (digits_diffmoe, digits_dense, digits_tc, digits_ec, *_IMAGENET):
        presets[build.__name__.replace("_", "-")] = build
    for build in _IMAGENET:
        presets[build.__name__.replace("_", "-").replace("-flow", "-ddpm")] = _twin(build)
    return presets


PRESETS = _table()


def preset(name: str) -> RunConfig:
    """The config of a preset; raises ConfigError naming the nearest when there is none."""
    if name not in PRESETS:
        near = nearest(name.lower(), list(PRESETS))
        hint = f"did you mean {near}?" if near else "see `diffmoe presets`"
        raise ConfigError(f"unknown preset {name!r}", remedy=hint)
    return PRESETS[name]()
