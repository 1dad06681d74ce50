"""The authors' released layout: its tensors renamed and stacked to ours, and back, bit for bit."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from diffmoe.config import FlowConfig, ModelConfig, RunConfig, TokenChoice, nearest
from diffmoe.errors import ConfigError
from diffmoe.model import DiT

__all__ = ["to_ours", "to_released", "unsaid"]

# Our names without `blocks.i.` and `.weight` or `.bias`, and theirs. `{}` is the number of an
# expert: one released tensor for each, transposed to (in, out), makes one stacked tensor of ours.
_RELEASED = {
    "positions": "pos_embed",
    "patches": "x_embedder.proj",
    "times.fc1": "t_embedder.mlp.0",
    "times.fc2": "t_embedder.mlp.2",
    "labels.table": "y_embedder.embedding_table",
    "final_modulate.proj": "final_layer.adaLN_modulation.1",
    "final": "final_layer.linear",
    "modulate.proj": "adaLN_modulation.1",
    "attention.qkv": "attn.qkv",
    "attention.proj": "attn.proj",
    "feed_forward.fc1": "mlp.fc1",
    "feed_forward.fc2": "mlp.fc2",
    "feed_forward.experts.weight1": "mlp.experts.{}.fc1.weight",
    "feed_forward.experts.bias1": "mlp.experts.{}.fc1.bias",
    "feed_forward.experts.weight2": "mlp.experts.{}.fc2.weight",
    "feed_forward.experts.bias2": "mlp.experts.{}.fc2.bias",
    "feed_forward.router.weight": "mlp.gate_weight",
    "feed_forward.router.predictor.hidden": "mlp.capacity_predictor.0",
    "feed_forward.router.predictor.output": "mlp.capacity_predictor.2",
    "feed_forward.router.threshold": "mlp.expert_threshold",
    "feed_forward.router.threshold_decay": "mlp.ema_decay",
}
_TOKEN_CHOICE = {"feed_forward.router.weight": "mlp.gate.weight"}

# Tensors the released layout lacks, and their value on import. One update means that the
# thresholds beside it count as calibrated.
_OURS_ALONE = {"feed_forward.router.gate_threshold": 0, "feed_forward.router.threshold_updates": 1}


@dataclass(frozen=True)
class _Entry:
    """One tensor of ours and the released ones it is made of."""

    name: str
    like: Tensor  # ours, on the meta device: shape and dtype
    parts: tuple[str, ...]  # released names; none for a tensor the released layout lacks
    stacked: bool  # one part for each expert, transposed
    fill: int = 0  # value of a tensor without parts

    @property
    def part_shape(self) -> tuple[int, ...]:
        """Shape of each part."""
        return tuple(reversed(self.like.shape[1:])) if self.stacked else tuple(self.like.shape)

    def join(self, released: Mapping[str, Tensor]) -> Tensor:
        """Our tensor from the released ones."""
        if self.stacked:
            return torch.stack([released[part].t() for part in self.parts])
        if not self.parts:
            return torch.full_like(self.like, self.fill, device="cpu")
        return released[self.parts[0]]

    def split(self, tensor: Tensor) -> dict[str, Tensor]:
        """The released tensors from ours."""
        if not self.stacked:
            return dict.fromkeys(self.parts, tensor)
        return dict(zip(self.parts, (piece.t() for piece in tensor), strict=True))


def to_ours(tensors: Mapping[str, Tensor], config: RunConfig) -> dict[str, Tensor]:
    """The state dict of `DiT(config.model)` that holds a released model's tensors.

    Thresholds count as calibrated. Raises ConfigError, naming them, for tensors that are missing,
    unexpected or of another shape. Tensors that need no stacking are shared, not copied.
    """
    entries = _layout(config.model)
    _check(tensors, {part: entry.part_shape for entry in entries for part in entry.parts})
    return {entry.name: entry.join(tensors) for entry in entries}


def to_released(tensors: Mapping[str, Tensor], config: RunConfig) -> dict[str, Tensor]:
    """The released layout's tensors of a state dict of `DiT(config.model)`; undoes `to_ours`.

    They are views of `tensors`, not copies; `write_released` gives each a storage of its own.
    Raises ConfigError for names and shapes as `to_ours` does, and for a flow whose time or sign
    the released code would misread: tensors are never negated.
    """
    _check_expressible(config)
    entries = _layout(config.model)
    _check(tensors, {entry.name: tuple(entry.like.shape) for entry in entries})
    parts = (entry.split(tensors[entry.name]) for entry in entries)
    return {name: part for split in parts for name, part in split.items()}


def unsaid(tensors: Mapping[str, Tensor], config: RunConfig) -> list[str]:
    """Names of the tensors that the released layout lacks and `to_ours` would not restore."""
    apart = (entry for entry in _layout(config.model) if not entry.parts)
    return [entry.name for entry in apart if not bool((tensors[entry.name] == entry.fill).all())]


def _layout(config: ModelConfig) -> list[_Entry]:
    with torch.device("meta"):
        state = DiT(config).state_dict()
    table = _RELEASED | (_TOKEN_CHOICE if isinstance(config.router, TokenChoice) else {})
    return [_entry(name, like, table) for name, like in state.items()]


def _entry(name: str, like: Tensor, table: dict[str, str]) -> _Entry:
    block = "".join(re.findall(r"^blocks\.\d+\.", name))
    inner = name.removeprefix(block)
    if inner in _OURS_ALONE:
        return _Entry(name, like, (), stacked=False, fill=_OURS_ALONE[inner])
    stem, dot, kind = (inner, "", "") if inner in table else inner.rpartition(".")
    if stem not in table:
        raise ConfigError(
            f"tensor {name} has no place in the released layout",
            remedy="only dense, token-choice, expert-choice and batch-pool models have one",
        )
    released = block + table[stem] + dot + kind
    if "{}" not in released:
        return _Entry(name, like, (released,), stacked=False)
    parts = tuple(released.format(expert) for expert in range(like.shape[0]))
    return _Entry(name, like, parts, stacked=True)


def _check(tensors: Mapping[str, Tensor], wanted: dict[str, tuple[int, ...]]) -> None:
    missing = [name for name in wanted if name not in tensors]
    unexpected = [name for name in tensors if name not in wanted]
    if missing or unexpected:
        faults = [f"lacks {_some(missing)}"] if missing else []
        faults += [f"holds the unexpected {_some(unexpected)}"] if unexpected else []
        near = nearest(unexpected[0], missing or list(wanted)) if unexpected else None
        raise ConfigError(
            f"the checkpoint {' and '.join(faults)}",
            remedy=f"is {unexpected[0]} meant to be {near}?" if near else "use a whole checkpoint",
        )
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            raise ConfigError(
                f"tensor {name} has shape {tuple(tensors[name].shape)}, the model's is {shape}",
                remedy="use a checkpoint and a config of the same model",
            )


def _some(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _check_expressible(config: RunConfig) -> None:
    if config.model.reads_text:
        raise ConfigError(
            "the released layout has no model that reads captions",
            remedy="keep the run folder: it is the model",
        )
    flow = config.objective
    if isinstance(flow, FlowConfig) and (flow.convention, flow.time_scale) != ("released", 1.0):
        raise ConfigError(
            f"objective.convention {flow.convention} with objective.time_scale {flow.time_scale:g}"
            " cannot be told to the released layout, whose flow runs from noise at t = 0",
            remedy="train with objective.convention released and objective.time_scale 1",
        )
