"""Models of ImageNet classes, as published (Table 1)."""

from diffmoe.config import ExpertChoice, RunConfig, TokenChoice
from diffmoe.presets.build import PAPER_POOL, imagenet, pooled, routed

__all__ = ["IMAGENET"]


def dit_s_flow() -> RunConfig:
    """Dense DiT-S/2, 33.0 M parameters."""
    return imagenet(width=384, depth=12, heads=6)


def dit_b_flow() -> RunConfig:
    """Dense DiT-B/2, 130.5 M parameters."""
    return imagenet(width=768, depth=12, heads=12)


def dit_l_flow() -> RunConfig:
    """Dense DiT-L/2, 458.1 M parameters; 17.01 flow, 17.87 DDPM at 700K, no guidance (Table 3)."""
    return imagenet(width=1024, depth=24, heads=16)


def dit_xl_flow() -> RunConfig:
    """Dense DiT-XL/2, 675.1 M; 14.77 / 15.28 (Table 3), 2.19 / 2.32 at 7000K, cfg 1.5 (Table 2)."""
    return imagenet(width=1152, depth=28, heads=16)


def dit_xxl_flow() -> RunConfig:
    """Dense DiT-XXL/2, 951.2 M, shape inferred; 2.41 at 3000K, cfg 1.5 (Table 5)."""
    return imagenet(width=1280, depth=32, heads=20)


def dit_xxxl_flow() -> RunConfig:
    """Dense DiT-XXXL/2, 1353 M, shape inferred; 2.37 at 3000K, cfg 1.5 (Table 5)."""
    return imagenet(width=1440, depth=36, heads=24)


def diffmoe_s_e16_flow() -> RunConfig:
    """DiffMoE-S/2 with 16 experts, 140 M parameters, 33 M activated."""
    return pooled(dit_s_flow(), experts=16)


def diffmoe_b_e16_flow() -> RunConfig:
    """DiffMoE-B/2 with 16 experts, 559 M parameters, 131 M activated."""
    return pooled(dit_b_flow(), experts=16)


def diffmoe_l_e2_flow() -> RunConfig:
    """DiffMoE-L/2 with 2 experts, 571 M parameters, 467 M activated (Fig. 9)."""
    return pooled(dit_l_flow(), experts=2)


def diffmoe_l_e4_flow() -> RunConfig:
    """DiffMoE-L/2 with 4 experts, 773 M parameters, 463 M activated (Fig. 9)."""
    return pooled(dit_l_flow(), experts=4)


def diffmoe_l_e8_flow() -> RunConfig:
    """DiffMoE-L/2 with 8 experts, 1176 M; 2.13 flow, 2.30 DDPM at 7000K, cfg 1.5 (Table 2).

    The 7000K runs of Table 2 used eight processes: `--model.pool-images 32`.
    """
    return pooled(dit_l_flow(), experts=8)


def diffmoe_l_e16_flow() -> RunConfig:
    """DiffMoE-L/2 with 16 experts, 1982 M parameters; 14.41 flow, 14.60 DDPM at 700K (Table 3)."""
    return pooled(dit_l_flow(), experts=16)


def diffmoe_xl_e16_flow() -> RunConfig:
    """DiffMoE-XL/2 with 16 experts, 2925 M parameters; 2.30 at 3000K, cfg 1.5 (Table 5)."""
    return pooled(dit_xl_flow(), experts=16)


def tc_dit_l_e16_flow() -> RunConfig:
    """Token choice, top-1 of 16 experts; 19.06 flow, 20.81 DDPM at 700K (Table 3)."""
    return routed(
        dit_l_flow(), TokenChoice(num_experts=16, top_k=1, balance_weight=0.01), PAPER_POOL
    )


def ec_dit_l_e16_flow() -> RunConfig:
    """Expert choice in each image, 16 experts; 16.12 flow, 17.65 DDPM at 700K (Table 3)."""
    return routed(dit_l_flow(), ExpertChoice(num_experts=16, capacity=1.0))


IMAGENET = (
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
