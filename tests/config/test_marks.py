"""What may change when a run goes on: every field bears a mark, and the marks are kept."""

from pathlib import Path
from typing import Any

import pytest

from diffmoe.config import (
    SD_VAE,
    DDPMConfig,
    FolderData,
    RunConfig,
    differences,
    field_names,
    identity_differences,
)
from runs import changed, run_config
from tiny import ROUTERS


def named(group: str, fields: str) -> set[str]:
    return {f"{group}.{name}" for name in fields.split()}


MARKS = {
    "identity": named(
        "model",
        """input_size patch_size channels out_channels width depth heads mlp_ratio num_classes
        moe_period pool_images router.kind router.num_experts router.top_k router.balance_weight
        router.capacity router.predictor_weight router.threshold_decay text.kind text.tokens
        text.words text.width text.layers text.heads""",
    )
    | named(
        "objective",
        """kind time_sampling logit_mean logit_std time_scale convention timesteps beta_start
        beta_end variational_weight""",
    )
    | named("data", "kind flip caption_field count seed")
    | named("text", "kind")
    | named("codec", "kind factor scale shift")
    | named(
        "training",
        """seed global_batch learning_rate betas weight_decay warmup_steps decay_steps clip_norm
        ema_decay label_dropout precision""",
    ),
    "extend": named(
        "loop",
        """steps log_every checkpoint_every keep_checkpoints keep_every max_bad_in_a_row rewinds
        spike_sigma""",
    )
    | named("data", "on_bad_sample max_bad_share")
    | named("text", "too_long")
    | named(
        "sampling",
        """sampler steps guidance guidance_start guidance_end guidance_pool negative guided_channels
        selection policy gamma capacity capacity_level batch pool_images max_capacity shared_step
        rtol atol eta weights precision""",
    ),
    "machine": named(
        "machine",
        """device micro_batch workers activation_checkpointing compile background_saves shard_degree
        expert_degree timeout""",
    )
    | {"data.path", "codec.path", "text.path", "text.cache"},
}


def test_every_field_bears_the_mark_of_the_table() -> None:
    wanted = {name: mark for mark, names in MARKS.items() for name in names}
    assert field_names(RunConfig) == wanted


LATENTS: dict[str, Any] = {"codec": SD_VAE, "data": FolderData(path=Path("here"))}
CHANGES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"model.depth": 3}, "model.depth"),
    ({}, {"model.pool_images": 16}, "model.pool_images"),
    ({}, {"model.router.num_experts": 2}, "model.router.num_experts"),
    ({}, {"model.router": ROUTERS["dense"]}, "model.router.kind"),
    ({}, {"objective.time_scale": 1.0}, "objective.time_scale"),
    ({}, {"training.seed": 1}, "training.seed"),
    ({}, {"training.global_batch": 32}, "training.global_batch"),
    ({}, {"training.betas": (0.9, 0.99)}, "training.betas"),
    ({}, {"training.clip_norm": None}, "training.clip_norm"),
    ({}, {"training.precision": "bfloat16"}, "training.precision"),
    (LATENTS, {"data.flip": False}, "data.flip"),
    (LATENTS, {"codec.scale": 1.0}, "codec.scale"),
    ({}, {"data": FolderData()}, "data.kind"),
    ({}, {"loop.steps": 400}, ""),
    ({}, {"loop.log_every": 3, "sampling.guidance": 4.0, "sampling.sampler": "heun"}, ""),
    ({}, {"machine.micro_batch": 8, "machine.compile": True, "machine.device": "auto"}, ""),
    (LATENTS, {"data.path": Path("there"), "codec.path": "copy of the autoencoder"}, ""),
]


@pytest.mark.parametrize(
    ("base", "changes", "refused"), CHANGES, ids=[str(change) for _, change, _ in CHANGES]
)
def test_a_change_makes_another_run_only_if_its_field_is_identity(
    base: dict[str, Any], changes: dict[str, Any], refused: str
) -> None:
    old = changed(run_config(), base)
    new = changed(old, changes)
    assert differences(old, new)
    found = identity_differences(old, new)
    assert bool(found) == bool(refused)
    assert not refused or refused in found


def test_differences_tell_old_and_new() -> None:
    old = run_config()
    ddpm = changed(
        old,
        {
            "objective": DDPMConfig(),
            "model.out_channels": 2,
            "sampling.sampler": "ddim",
        },
    )
    found = differences(old, ddpm)
    assert found["objective.kind"] == ("flow", "ddpm")
    assert found["objective.timesteps"] == (None, 1000)
    assert found["objective.time_scale"] == (1000.0, None)
    assert found["sampling.sampler"] == ("euler", "ddim")
    assert not differences(old, run_config())
