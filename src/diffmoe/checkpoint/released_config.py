"""The run a released checkpoint belongs to: what its tensors tell, and what must be said."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from diffmoe.config import (
    SD_VAE,
    BatchPool,
    CodecConfig,
    DDPMConfig,
    Dense,
    ExpertChoice,
    FlowConfig,
    FolderData,
    ModelConfig,
    ObjectiveConfig,
    PixelCodec,
    RouterOptions,
    RunConfig,
    SamplingConfig,
    TokenChoice,
    nearest,
)
from diffmoe.errors import ConfigError

__all__ = ["contradictions", "infer_config"]

# What tensors do not tell and no preset says: the paper's setting.
_POOL = 64  # global batch 256 on four processes
_PERIOD = 2  # of a dense model, where it has no effect


@dataclass(frozen=True)
class _Found:
    """What the tensors tell."""

    sizes: dict[str, Any]  # fields of ModelConfig
    kind: str  # of the router
    experts: int
    period: int | None  # moe_period; None for a dense model
    decay: float | None  # of the thresholds; None where there are none


def infer_config(
    tensors: Mapping[str, Tensor],
    *,
    base: RunConfig | None,
    heads: int | None,
    objective: Literal["flow", "ddpm"] | None,
) -> RunConfig:
    """The run a released model's tensors belong to.

    `heads` and `objective` cannot be read from tensors: None takes them from `base`, a preset.
    Without `base` both are needed, and the rest is the paper's. Raises ConfigError when one is
    missing or when `base` is of another model.
    """
    found = _read(tensors)
    if base is not None:
        _check_base(_contradictions(found, base.model))
    heads = _said("heads", heads, base and base.model.heads)
    goal = _objective(_said("objective", objective, base and base.objective.kind), base)
    model = ModelConfig(
        **found.sizes,
        heads=heads,
        router=_router(found, base),
        moe_period=found.period or (base.model.moe_period if base else _PERIOD),
        pool_images=base.model.pool_images if base else _POOL,
    )
    if base is None:
        sampling = SamplingConfig(sampler=_sampler(goal, None))
        codec = _codec(model.channels)
        return RunConfig(
            model=model, objective=goal, data=FolderData(), codec=codec, sampling=sampling
        )
    sampling = replace(base.sampling, sampler=_sampler(goal, base.sampling.sampler))
    return replace(base, model=model, objective=goal, sampling=sampling)


def contradictions(
    tensors: Mapping[str, Tensor], base: RunConfig
) -> dict[str, tuple[int | str | None, int | str | None]]:
    """Fields of `base.model` that the tensors contradict, with the tensors' and `base`'s value.

    Channels predicted are no contradiction: a flow may leave the second half unused.
    """
    return _contradictions(_read(tensors), base.model)


def _contradictions(
    found: _Found, model: ModelConfig
) -> dict[str, tuple[int | str | None, int | str | None]]:
    router = model.router
    pairs: dict[str, tuple[int | str | None, int | str | None]] = {
        name: (size, getattr(model, name))
        for name, size in found.sizes.items()
        if name != "out_channels"
    }
    pairs["router"] = (found.kind, router.kind)
    if found.kind == router.kind != Dense.kind:
        pairs["router.num_experts"] = (found.experts, router.num_experts)
        pairs["moe_period"] = (found.period, model.moe_period)
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _check_base(different: dict[str, tuple[int | str | None, int | str | None]]) -> None:
    if different:
        shown = [f"model.{n} is {ours}, not {base}" for n, (ours, base) in different.items()]
        more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
        raise ConfigError(
            f"the checkpoint is of another model than the config: {', '.join(shown[:3])}{more}",
            remedy="choose the preset it was trained with, or give heads and objective alone",
        )


def _said(name: str, value: Any, base: Any) -> Any:
    said = base if value is None else value
    if said is None:
        raise ConfigError(
            f"{name} cannot be read from the checkpoint's tensors",
            remedy=f"give {name}, or the preset the checkpoint was trained with",
        )
    return said


def _objective(kind: str, base: RunConfig | None) -> ObjectiveConfig:
    if kind == FlowConfig.kind:
        return FlowConfig(convention="released", time_scale=1.0)
    if kind != DDPMConfig.kind:
        raise ConfigError(f"objective {kind!r} is not known", remedy="use flow or ddpm")
    return base.objective if base and base.objective.kind == kind else DDPMConfig()


def _sampler(goal: ObjectiveConfig, wanted: str | None) -> Any:
    return wanted if wanted in goal.samplers else goal.samplers[0]


def _codec(channels: int) -> CodecConfig:
    if channels in (1, 3):
        return PixelCodec()
    return SD_VAE


def _router(found: _Found, base: RunConfig | None) -> RouterOptions:
    router = base.model.router if base else _paper_router(found)
    if isinstance(router, BatchPool) and found.decay is not None:
        return replace(router, threshold_decay=found.decay)
    return router


def _paper_router(found: _Found) -> RouterOptions:
    experts = found.experts
    if found.kind == TokenChoice.kind:
        return TokenChoice(num_experts=experts, top_k=1, balance_weight=0.01)
    if found.kind == ExpertChoice.kind:
        return ExpertChoice(num_experts=experts, capacity=1.0)
    if found.kind == BatchPool.kind:
        return BatchPool(
            num_experts=experts, capacity=1.0, predictor_weight=1.0, threshold_decay=0.95
        )
    return Dense()


def _read(tensors: Mapping[str, Tensor]) -> _Found:
    blocks = _blocks(tensors)
    kinds = [_kind(index, names) for index, names in enumerate(blocks)]
    period = _period(kinds)
    kind = Dense.kind if period is None else kinds[period - 1]
    moe = f"blocks.{(period or 1) - 1}.mlp."
    gate = "gate.weight" if kind == TokenChoice.kind else "gate_weight"
    return _Found(
        sizes=_sizes(tensors, len(blocks), experts=period == 1),
        kind=kind,
        experts=0 if period is None else _shape(tensors, moe + gate, 2)[0],
        period=period,
        decay=_decay(tensors, moe + "ema_decay") if kind == BatchPool.kind else None,
    )


def _sizes(tensors: Mapping[str, Tensor], depth: int, experts: bool) -> dict[str, int]:
    """The numbers of ModelConfig; `experts`: the first block is MoE."""
    width, channels, patch, _ = _shape(tensors, "x_embedder.proj.weight", 4)
    tokens = _shape(tensors, "pos_embed", 3)[1]
    if math.isqrt(tokens) ** 2 != tokens:
        raise ConfigError(
            f"tensor pos_embed has {tokens} positions, which fill no square",
            remedy="only square images are known",
        )
    rows = _shape(tensors, "final_layer.linear.weight", 2)[0]
    hidden = _shape(tensors, f"blocks.0.mlp.{'experts.0.' * experts}fc1.weight", 2)[0]
    return {
        "input_size": math.isqrt(tokens) * patch,
        "patch_size": patch,
        "channels": channels,
        "out_channels": _whole(rows, patch * patch, "final_layer.linear.weight"),
        "width": width,
        "depth": depth,
        "mlp_ratio": _whole(hidden, width, "fc1.weight of the first block"),
        "num_classes": _shape(tensors, "y_embedder.embedding_table.weight", 2)[0] - 1,
    }


def _shape(tensors: Mapping[str, Tensor], name: str, axes: int) -> tuple[int, ...]:
    if name not in tensors:
        near = nearest(name, [other for other in tensors if not other.startswith("blocks.")])
        hint = f"is it meant by {near}?" if near else "is it a checkpoint of the released layout?"
        raise ConfigError(f"the checkpoint lacks {name}", remedy=hint)
    shape = tuple(tensors[name].shape)
    if len(shape) != axes or 0 in shape:
        raise ConfigError(f"tensor {name} has shape {shape}, expected {axes} axes, none empty")
    return shape


def _whole(size: int, unit: int, name: str) -> int:
    if size % unit:
        raise ConfigError(f"{name} has {size} rows, which is not a multiple of {unit}")
    return size // unit


def _decay(tensors: Mapping[str, Tensor], name: str) -> float | None:
    """The decay of the thresholds, 0.95 for float32(0.95).

    None when it is no decay: the tensor itself is kept, the config only sets that of new models.
    """
    _shape(tensors, name, 1)
    value = float(f"{tensors[name][0].item():.7g}")
    return value if 0 <= value < 1 else None


def _blocks(tensors: Mapping[str, Tensor]) -> list[set[str]]:
    """The tensor names of each block."""
    blocks: dict[int, set[str]] = {}
    for name in tensors:
        parts = re.fullmatch(r"blocks\.(\d{1,9})\.(.+)", name)
        if parts:
            blocks.setdefault(int(parts[1]), set()).add(parts[2])
    missing = [index for index in range(len(blocks)) if index not in blocks]
    if missing or not blocks:
        raise ConfigError(
            f"the checkpoint lacks blocks.{missing[0] if missing else 0}",
            remedy="use a whole checkpoint of the released layout",
        )
    return [blocks[index] for index in range(len(blocks))]


def _kind(index: int, names: set[str]) -> str:
    """The router kind that the names of a block's tensors tell."""
    pooled = ("mlp.capacity_predictor.", "mlp.expert_threshold", "mlp.ema_decay")
    if "mlp.gate.weight" in names:
        return TokenChoice.kind
    if "mlp.gate_weight" in names:
        has_demand = any(name.startswith(pooled) for name in names)
        return BatchPool.kind if has_demand else ExpertChoice.kind
    if "mlp.fc1.weight" in names:
        return Dense.kind
    mlp = f"blocks.{index}.mlp."
    raise ConfigError(
        f"the checkpoint lacks {mlp}gate_weight, or {mlp}gate.weight, or {mlp}fc1.weight",
        remedy="use a whole checkpoint of the released layout",
    )


def _period(kinds: list[str]) -> int | None:
    """The distance of MoE blocks, None when there are none."""
    moe = [index for index, kind in enumerate(kinds) if kind != Dense.kind]
    if not moe:
        return None
    period = moe[0] + 1
    if moe != list(range(period - 1, len(kinds), period)):
        raise ConfigError(
            f"MoE blocks {', '.join(map(str, moe))} of {len(kinds)} are not evenly spaced",
            remedy=f"expected blocks {period - 1}, {2 * period - 1} and so on",
        )
    other = next((index for index in moe if kinds[index] != kinds[period - 1]), None)
    if other is not None:
        raise ConfigError(
            f"block {other} is {kinds[other]}, block {period - 1} is {kinds[period - 1]}",
            remedy="all MoE blocks of a model are of one kind",
        )
    return period
