"""Models of scanned digits, small enough for a laptop."""

from diffmoe.config import (
    Dense,
    DigitsData,
    ExpertChoice,
    FlowConfig,
    LoopConfig,
    MachineConfig,
    ModelConfig,
    PixelCodec,
    RunConfig,
    SamplingConfig,
    TokenChoice,
    TrainingConfig,
)
from diffmoe.presets.build import PAPER_POOL, pooled, routed

__all__ = ["DIGITS", "digits_dense"]


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
    return pooled(digits_dense(), experts=4)


def digits_tc() -> RunConfig:
    """Token choice with 4 experts on digits."""
    return routed(
        digits_dense(), TokenChoice(num_experts=4, top_k=1, balance_weight=0.01), PAPER_POOL
    )


def digits_ec() -> RunConfig:
    """Expert choice with 4 experts on digits."""
    return routed(digits_dense(), ExpertChoice(num_experts=4, capacity=1.0))


DIGITS = (digits_diffmoe, digits_dense, digits_tc, digits_ec)
