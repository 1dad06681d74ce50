"""What cannot run is refused in one sentence that names field, value and remedy."""

import math
import pickle
import re
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest

from diffmoe.config import (
    LEGAL_POLICIES,
    SD_VAE,
    BatchPool,
    DDPMConfig,
    FlowConfig,
    RunConfig,
    SamplingConfig,
    TrainingConfig,
    gathered,
)
from diffmoe.errors import ConfigError, ExitCode
from diffmoe.presets import PRESETS, preset
from runs import changed, run_config
from tiny import ROUTERS

DDPM = {"objective": DDPMConfig(timesteps=50), "model.out_channels": 2}
ANCESTRAL = {**DDPM, "sampling.sampler": "ancestral"}
NAN, INF = math.nan, math.inf

REFUSED: list[tuple[dict[str, Any], str, str]] = [
    # geometry of the network
    ({"model.patch_size": 3}, "model.input_size 8 ", "use 6 or 9"),
    ({"model.patch_size": 16}, "model.input_size 8 ", "use 16"),
    ({"model.heads": 3}, "model.width 16 ", "use 2 heads"),
    ({"model.width": 18, "model.heads": 9}, "model.width 18 is not a multiple of 4", "table"),
    ({"model.out_channels": 3}, "model.out_channels 3 ", "use 1, or 2"),
    *[
        ({f"model.{name}": value}, f"model.{name} {value} is not positive", "1 or more")
        for name in ("input_size", "patch_size", "channels", "width", "depth", "heads")
        for value in (0, -1)
    ],
    ({"model.moe_period": 5}, "model.moe_period 5 is more than model.depth 2", "at most 2"),
    ({"model.num_classes": 0}, "model.num_classes 0", "1 or more"),
    ({"model.moe_period": 0}, "model.moe_period 0", "1 or more"),
    ({"model.pool_images": 0}, "model.pool_images 0", "1 or more"),
    # routers
    (
        {"model.router.num_experts": 256},
        "model.pool_images 8 makes a pool of 128 tokens for 256 experts: K would be 0",
        "a pool of at least 16 images",
    ),
    (
        {"model.router.capacity": 0.01, "model.router.num_experts": 4},
        "K would be 0",
        "a pool of at least 25 images",
    ),
    ({"model.router.num_experts": 0}, "model.router.num_experts 0", "dense router"),
    ({"model.router.capacity": 0.0}, "model.router.capacity 0.0", "one dense FFN"),
    ({"model.router.capacity": 4.5}, "model.router.capacity 4.5", "one dense FFN"),
    ({"model.router.capacity": NAN}, "model.router.capacity nan", "one dense FFN"),
    ({"model.router.threshold_decay": 1.0}, "model.router.threshold_decay 1.0", "0.95"),
    ({"model.router.predictor_weight": -1.0}, "model.router.predictor_weight -1.0", "0 or more"),
    (
        {"model.router": ROUTERS["expert_choice"], "model.router.num_experts": 17},
        "model.router.num_experts 17 leaves an expert no token",
        "at most 16 experts",
    ),
    ({"model.router": ROUTERS["token_choice"], "model.router.top_k": 5}, "top_k 5 ", "at most"),
    ({"model.router": ROUTERS["token_choice"], "model.router.top_k": 0}, "top_k 0 ", "at least"),
    (
        {"model.router": ROUTERS["token_choice"], "model.router.balance_weight": INF},
        "model.router.balance_weight inf",
        "0 or more",
    ),
    # pools and batches
    ({"training.global_batch": 20}, "training.global_batch 20 ", "use 16 or 24"),
    ({"training.global_batch": 4}, "training.global_batch 4 ", "use 8"),
    ({"machine.micro_batch": 3}, "machine.micro_batch 3 ", "use one of 8, 16"),
    ({"machine.micro_batch": 0}, "machine.micro_batch 0 ", "use one of 8, 16"),
    ({"machine.micro_batch": 32}, "machine.micro_batch 32 ", "use one of 8, 16"),
    (
        {"training.global_batch": 48, "machine.micro_batch": 32},
        "machine.micro_batch 32 ",
        "use one of 8, 16, 24, 48",
    ),
    # optimizer
    *[
        ({f"training.{name}": value}, f"training.{name} {value}", "")
        for name, values in {
            "learning_rate": (0.0, -1.0, NAN, INF),
            "clip_norm": (0.0, -1.0, NAN),
            "ema_decay": (-0.1, 1.1, NAN),
            "label_dropout": (-0.1, 1.1, NAN),
            "weight_decay": (-0.1, NAN, INF),
            "warmup_steps": (-1,),
            "seed": (-1, 2**63),
            "global_batch": (0, 10**12),
        }.items()
        for value in values
    ],
    ({"training.betas": (0.9, 1.0)}, "training.betas (0.9, 1.0)", "0.9 and 0.999"),
    ({"training.decay_steps": 2}, "training.decay_steps 2 ", "counted from the first"),
    # loop and machine
    *[
        ({f"loop.{name}": value}, f"loop.{name} {value}", "[1, 1000000000]")
        for name in ("steps", "log_every", "checkpoint_every", "keep_checkpoints")
        for value in (0, 10**12)
    ],
    ({"loop.keep_every": 3}, "loop.keep_every 3 is not a multiple of", "use 2 or 4: only"),
    ({"loop.keep_every": 1}, "loop.keep_every 1 is not a multiple of", "use 2: only"),
    ({"loop.spike_sigma": 0.0}, "loop.spike_sigma 0.0 is not positive", "a number above 0"),
    ({"machine.workers": -1}, "machine.workers -1", "[0, 1024]"),
    ({"machine.workers": 10**9}, "machine.workers 1000000000", "[0, 1024]"),
    # codec
    *[
        ({"codec": SD_VAE, "codec.shift": value}, f"codec.shift {value}", "[-1000, 1000]")
        for value in (NAN, INF)
    ],
    # objectives
    ({"objective.logit_std": 0.0}, "objective.logit_std 0.0", ""),
    ({"objective.time_scale": -1.0}, "objective.time_scale -1.0", ""),
    ({"objective.logit_mean": NAN}, "objective.logit_mean nan", ""),
    ({**ANCESTRAL, "objective.timesteps": 1}, "objective.timesteps 1", "[2, 1000000]"),
    ({**ANCESTRAL, "objective.timesteps": 10**12}, "objective.timesteps 1000000000000", ""),
    ({**ANCESTRAL, "objective.beta_start": 0.0}, "objective.beta_start 0.0", "beta_start"),
    ({**ANCESTRAL, "objective.beta_end": 1.0}, "objective.beta_end 1.0", "< 1"),
    ({**ANCESTRAL, "model.out_channels": 1}, "model.out_channels 1 ", "use 2"),
    ({**ANCESTRAL, "sampling.steps": 51}, "sampling.steps 51 ", "a step of training"),
    (DDPM, "sampling.sampler euler does not solve objective ddpm", "ancestral, ddim"),
    *[
        ({"sampling.sampler": name}, f"sampling.sampler {name} ", "euler, heun, dopri5")
        for name in ("ancestral", "ddim")
    ],
    *[
        ({**DDPM, "sampling.sampler": name}, f"sampling.sampler {name} ", "ancestral, ddim")
        for name in ("euler", "heun", "dopri5")
    ],
    # sampling
    *[
        ({f"sampling.{name}": value}, f"sampling.{name} {value}", "[1, 1000000]")
        for name in ("steps", "batch")
        for value in (0, 10**12)
    ],
    ({"sampling.guided_channels": 0}, "sampling.guided_channels 0", "1 or more"),
    (
        {"sampling.guided_channels": 2},
        "sampling.guided_channels 2 is more than model.channels 1",
        "out",
    ),
    ({"sampling.guidance": NAN}, "sampling.guidance nan", "1.5"),
    ({"sampling.guidance": INF}, "sampling.guidance inf", "1.5"),
    ({"sampling.guidance": -1.0}, "sampling.guidance -1.0", "1.5"),
    (
        {"sampling.guidance_start": 0.2, "sampling.guidance_end": 0.8},
        "sampling.guidance_end 0.8 and sampling.guidance_start 0.2",
        "0 <= end <= start <= 1",
    ),
    ({"sampling.guidance_start": 1.1}, "sampling.guidance_start 1.1", "<= 1"),
    ({"sampling.guidance_end": -0.1}, "sampling.guidance_end -0.1", "0 <="),
    ({"sampling.guidance_end": NAN}, "sampling.guidance_end nan", "0 <="),
    ({"sampling.rtol": 0.0}, "sampling.rtol 0.0", ""),
    ({"sampling.atol": NAN}, "sampling.atol nan", ""),
    ({"sampling.eta": 1.5}, "sampling.eta 1.5", ""),
    ({"sampling.policy": "constant"}, "sampling.gamma None", "needs a gamma in [0, 1)"),
    (
        {"sampling.selection": "pool", "sampling.policy": "static", "sampling.gamma": 0.5},
        "sampling.gamma 0.5",
        "the others take none",
    ),
    ({"sampling.policy": "target", "sampling.capacity": -1.0}, "sampling.capacity -1.0", ""),
    (
        {"sampling.policy": "target", "sampling.capacity": 4.5},
        "sampling.capacity 4.5 is not in (0, 4]",
        "every expert",
    ),
    ({"sampling.policy": "target"}, "sampling.capacity None", "needs a capacity"),
    ({"sampling.policy": "constant", "sampling.gamma": 1.0}, "sampling.gamma 1.0", ""),
    ({"sampling.policy": "constant", "sampling.gamma": NAN}, "sampling.gamma nan", ""),
    ({"sampling.pool_images": 2}, "sampling.pool_images 2 has no meaning", "`pool`"),
    (
        {"sampling.selection": "pool", "sampling.pool_images": 3},
        "sampling.batch 4 is not a multiple of sampling.pool_images 3",
        "within one batch: set --batch to 6",
    ),
    ({"sampling.selection": "pool", "sampling.pool_images": 0}, "sampling.pool_images 0", ""),
    (
        {"sampling.selection": "pool", "sampling.sampler": "dopri5"},
        "sampling.sampler dopri5 ",
        "sampling.shared_step",
    ),
]


@pytest.mark.parametrize(
    ("changes", "what", "remedy"), REFUSED, ids=[f"{what}" for _, what, _ in REFUSED]
)
def test_a_config_that_cannot_run_is_refused(
    changes: dict[str, Any], what: str, remedy: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        changed(run_config(), changes)
    sentence = str(caught.value)
    assert what in sentence and remedy in sentence
    assert len(sentence.splitlines()) == 1
    assert caught.value.exit_code is ExitCode.BAD_INPUT


MEANINGLESS: list[tuple[dict[str, Any], str, str]] = [
    *[
        (
            {"sampling.selection": name},
            f"sampling.selection {name} would change nothing",
            "at token",
        )
        for name in ("pool", "gate", "image")
    ],
    (
        {"sampling.policy": "constant", "sampling.gamma": 0.4},
        "sampling.gamma 0.4 would change nothing",
        "out",
    ),
    (
        {"sampling.selection": "pool", "sampling.pool_images": 2},
        "sampling.selection pool would change nothing",
        "at token",
    ),
    (
        {"sampling.guidance_pool": "joint"},
        "sampling.guidance_pool joint would change nothing",
        "at separate",
    ),
]


@pytest.mark.parametrize("router", ["dense", "token_choice", "expert_choice"])
@pytest.mark.parametrize(("changes", "what", "default"), MEANINGLESS, ids=str)
def test_a_setting_that_the_router_would_ignore_is_refused(
    router: str, changes: dict[str, Any], what: str, default: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        changed(run_config(router), changes)
    said = str(caught.value)
    assert what in said and f": the router is {router} — leave it {default}" in said
    assert isinstance(changed(run_config("batch_pool"), changes), RunConfig)


UNGUIDED = {"sampling.guidance": 1.0}
IDLE: list[tuple[dict[str, Any], str]] = [
    *[
        ({"sampling.sampler": sampler, f"sampling.{name}": value}, f"the sampler is {sampler}")
        for sampler in ("euler", "heun")
        for name, value in (("eta", 0.5), ("shared_step", True), ("rtol", 0.1), ("atol", 0.1))
    ],
    ({"sampling.sampler": "dopri5", "sampling.eta": 0.5}, "the sampler is dopri5"),
    ({**ANCESTRAL, "sampling.eta": 0.5}, "the sampler is ancestral"),
    ({**DDPM, "sampling.sampler": "ddim", "sampling.rtol": 0.1}, "the sampler is ddim"),
    *[
        ({**UNGUIDED, f"sampling.{name}": value}, "sampling.guidance is 1, off")
        for name, value in (("guidance_start", 0.5), ("guidance_end", 0.5), ("guided_channels", 1))
    ],
]


@pytest.mark.parametrize(("changes", "because"), IDLE, ids=str)
def test_a_setting_that_nothing_would_read_is_refused(
    changes: dict[str, Any], because: str
) -> None:
    name, value = list(changes.items())[-1]
    default = getattr(SamplingConfig, name.partition(".")[2])
    with pytest.raises(ConfigError) as caught:
        changed(run_config(), changes)
    left = "out" if default is None else f"at {default}"
    sentence = f"{name} {value} would change nothing: {because} — leave it {left}, or "
    assert str(caught.value).startswith(sentence)


@dataclass(frozen=True, kw_only=True)
class Picky(BatchPool):
    """A router that knows one selection."""

    kind: ClassVar[str] = "picky"
    selections: ClassVar[tuple[str, ...]] = ("image",)


def test_a_selection_that_the_router_does_not_know_is_refused() -> None:
    picky = Picky(num_experts=4, capacity=1.0, predictor_weight=1.0, threshold_decay=0.95)
    with pytest.raises(ConfigError, match=r"selection token is unknown .* picky .* use .*image"):
        changed(run_config(), {"model.router": picky})
    changed(run_config(), {"model.router": picky, "sampling.selection": "image"})


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_goes_with_its_own_settings(name: str) -> None:
    assert preset(name).sampling.selection == "token"


@pytest.mark.parametrize("selection", [name for name in LEGAL_POLICIES if name != "train"])
@pytest.mark.parametrize("policy", ["ema", "constant", "static"])
def test_policies_go_with_the_selections_of_the_table(selection: str, policy: str) -> None:
    gamma = 0.5 if policy == "constant" else None
    if policy in LEGAL_POLICIES[selection] or (selection, policy) == ("image", "ema"):
        assert SamplingConfig(selection=selection, policy=policy, gamma=gamma).gamma == gamma
    else:
        with pytest.raises(ConfigError, match=r"does not go with|would change nothing"):
            SamplingConfig(selection=selection, policy=policy, gamma=gamma)


@pytest.mark.parametrize(
    "changes",
    [
        {"machine.micro_batch": 8},
        {"machine.micro_batch": 16},
        {"sampling.guidance_start": 0.5, "sampling.guidance_end": 0.5},
        {"sampling.guidance": 0.0},
        {"sampling.guided_channels": 1},
        {"sampling.guidance": 0.0, "sampling.guided_channels": 1},
        {"sampling.sampler": "dopri5", "sampling.rtol": 0.1, "sampling.atol": 0.1},
        {**DDPM, "sampling.sampler": "ddim", "sampling.eta": 0.5},
        {"sampling.steps": 10**6, "sampling.batch": 10**6},
        {"sampling.selection": "pool", "sampling.pool_images": 2},
        {
            "sampling.selection": "pool",
            "sampling.sampler": "dopri5",
            "sampling.shared_step": True,
        },
        {"sampling.policy": "constant", "sampling.gamma": 0.0},
        {"model.router": ROUTERS["expert_choice"], "model.router.num_experts": 16},
        {"model.router.num_experts": 128},
        {"model.router.capacity": 4.0},
        {**ANCESTRAL, "sampling.steps": 50},
        {"objective": FlowConfig(convention="released"), "model.out_channels": 2},
        {"training.clip_norm": None, "training.decay_steps": None, "training.ema_decay": 1.0},
    ],
    ids=str,
)
def test_the_edge_of_what_can_run_is_accepted(changes: dict[str, Any]) -> None:
    assert isinstance(changed(run_config(), changes), RunConfig)


# ---- remedies of geometry are legal themselves

GEOMETRY: list[tuple[dict[str, Any], str, str, int]] = [
    # changes, the field to mend, what its legal values stand behind, how many are named
    *[
        ({"model.patch_size": patch, "model.input_size": size}, "model.input_size", "use ", named)
        for patch, size, named in (
            (3, 8, 2), (2, 31, 2), (2, 33, 2), (4, 30, 2), (5, 4, 1), (7, 8, 2), (16, 250, 2)
        )
    ],
    *[
        ({"model.width": width, "model.heads": heads}, "model.heads", "use ", 1)
        for width, heads in ((16, 3), (16, 32), (64, 7), (384, 9))
    ],
    *[
        ({"training.global_batch": batch, "model.pool_images": pool}, "training.global_batch",
         "use ", named)
        for batch, pool, named in ((20, 8, 2), (4, 8, 1), (100, 64, 2), (63, 64, 1))
    ],
    *[
        ({"training.global_batch": 48, "machine.micro_batch": micro}, "machine.micro_batch",
         "use one of ", 4)
        for micro in (0, 5, 7, 32, 96)
    ],
    ({"model.out_channels": 3}, "model.out_channels", "use ", 2),
    ({"model.moe_period": 5}, "model.moe_period", "use at most ", 1),
    ({"model.router": ROUTERS["expert_choice"], "model.router.num_experts": 17},
     "model.router.num_experts", "use at most ", 1),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "name", "behind", "count"), GEOMETRY, ids=str)
def test_a_size_that_does_not_fit_names_sizes_that_do(
    changes: dict[str, Any], name: str, behind: str, count: int
) -> None:
    with pytest.raises(ConfigError) as caught:
        changed(run_config(), changes)
    assert not caught.value.mistakes
    said = str(caught.value).partition(f" — {behind}")[2]
    legal = [int(number) for number in re.findall(r"\d+", said)]
    assert len(legal) == count
    for value in legal:
        assert isinstance(changed(run_config(), {**changes, name: value}), RunConfig)


@pytest.mark.parametrize(
    ("experts", "capacity", "size", "pool"),
    [(256, 1.0, 8, 8), (4, 0.01, 8, 8), (129, 1.0, 8, 8), (16, 0.5, 2, 8), (4096, 1.0, 4, 1)],
)
def test_a_pool_without_a_token_for_each_expert_names_the_smallest_that_has(
    experts: int, capacity: float, size: int, pool: int
) -> None:
    """K = 0 is refused, and so is every pool below the one named, which is legal."""
    router = replace(ROUTERS["batch_pool"], num_experts=experts, capacity=capacity)
    sizes = {"model.input_size": size, "model.router": router}

    def refusal(images: int) -> str:
        batch = {"model.pool_images": images, "training.global_batch": images}
        try:
            changed(run_config(), sizes | batch)
        except ConfigError as error:
            return str(error)
        return ""

    found = re.search(r"K would be 0 — use a pool of at least (\d+) images, and", refusal(pool))
    assert found
    smallest = int(found[1])
    assert refusal(smallest) == "" and "K would be 0" in refusal(smallest - 1)


# ---- several at once


def test_a_record_tells_all_of_its_mistakes() -> None:
    with pytest.raises(ConfigError) as caught:
        TrainingConfig(global_batch=0, learning_rate=-1.0, ema_decay=2.0, betas=(0.9, 1.0))
    assert [told.split()[0] for told in caught.value.mistakes] == [
        "training.ema_decay",
        "training.global_batch",
        "training.learning_rate",
        "training.betas",
    ]
    assert caught.value.head == "4 mistakes"
    assert str(caught.value) == "; ".join(caught.value.mistakes)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_what_does_not_go_together_is_told_once_each_field_is_in_range() -> None:
    with pytest.raises(ConfigError) as caught:
        changed(run_config(), {"model.heads": 3, "model.out_channels": 5, "model.moe_period": 4})
    assert len(caught.value.mistakes) == 3
    with pytest.raises(ConfigError) as caught:
        changed(run_config(), {"model.heads": 0, "model.out_channels": 5, "model.depth": -1})
    assert [told.split()[0] for told in caught.value.mistakes] == ["model.depth", "model.heads"]


def test_a_config_tells_all_that_its_records_contradict() -> None:
    with pytest.raises(ConfigError) as caught:
        changed(
            run_config(),
            {
                "training.global_batch": 20,
                "sampling.sampler": "ddim",
                "sampling.guided_channels": 2,
            },
        )
    assert len(caught.value.mistakes) == 3


def test_records_are_gathered_from_within_a_block_only() -> None:
    with gathered() as found:
        TrainingConfig(global_batch=0)
        SamplingConfig(steps=0, eta=0.5)
    assert [told.split()[0] for told in found.mistakes] == [
        "training.global_batch",
        "sampling.steps",
    ]
    with pytest.raises(ConfigError, match=r"^training\.global_batch 0"):
        TrainingConfig(global_batch=0)


def test_a_record_cannot_be_changed_behind_its_checks() -> None:
    config = run_config()
    with pytest.raises(AttributeError):
        config.model.width = 17  # type: ignore[misc]


def test_a_preset_that_is_not_there_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"did you mean digits-diffmoe\?"):
        preset("digits-difmoe")
    with pytest.raises(ConfigError, match="see `diffmoe presets`"):
        preset("zzz")
