"""The routers: token choice, expert choice and the batch pool of DiffMoE.

A router owns its losses and its state. A new one is a class below, or anywhere else, and one
line in `ROUTERS`.
"""

from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from diffmoe.config import BatchPool, ExpertChoice, ModelConfig, TokenChoice
from diffmoe.errors import ConfigError
from diffmoe.model.layers import CapacityPredictor, linear_high
from diffmoe.model.routing import (
    Routing,
    RoutingPlan,
    Selected,
    kth_largest,
    pairs_of_mask,
    pool_of_rows,
    smallest_gate,
    top_mask,
    top_pairs,
)

__all__ = ["ROUTERS", "BatchPoolRouter", "ExpertChoiceRouter", "Router", "TokenChoiceRouter"]

Statistics = dict[str, Tensor]


class Router(nn.Module):
    """Affinities of rows and experts, and what every router has in common."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.weight = nn.Parameter(torch.empty(config.router.num_experts, config.width))

    def initialize(self, generator: torch.Generator) -> None:
        """N(0, 0.006) weights."""
        nn.init.normal_(self.weight, std=0.006, generator=generator)

    def affinity(self, rows: Float[Tensor, "B T D"]) -> Float[Tensor, "B T E"]:
        """Softmax over the experts, without bias, in at least float32 (Eq. 4)."""
        return linear_high(rows, self.weight).softmax(dim=-1)

    def route(self, rows: Float[Tensor, "B T D"], plan: RoutingPlan) -> Routing:
        """Which expert takes which rows."""
        raise TypeError(f"{type(self).__name__} does not define route()")

    def check(self, plan: RoutingPlan) -> None:
        """Raise ConfigError if `plan` needs a state this router does not have."""

    @property
    def loss_weights(self) -> dict[str, float]:
        """The weight of each term of `losses` in the training loss."""
        return {}

    def losses(self, routing: Routing) -> dict[str, Tensor]:
        """Auxiliary losses, unweighted scalars, a mean over pools."""
        return {}

    def statistics(self, routing: Routing) -> Statistics:
        """Sums over this forward pass; they add up over micro-batches and ranks."""
        return {"pairs": routing.count, "rows": routing.count.new_tensor(routing.rows)}

    def update(self, statistics: Statistics) -> None:
        """Advance the running state; called once per optimizer step."""

    def summary(self, statistics: Statistics) -> dict[str, Tensor]:
        """What to report of a sum of statistics: `capacity` and the share of `dead_experts`.

        An expert is dead when it gets at most 1 % of an even share.
        """
        used = statistics.get("above", statistics["pairs"]).to(torch.float32)
        return {
            "capacity": used.sum() / statistics["rows"],
            "dead_experts": (used <= 0.01 * used.mean()).to(torch.float32).mean(),
        }


class TokenChoiceRouter(Router):
    """Each row takes its `top_k` experts; the Switch loss keeps them evenly used (TC-DiT)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.options = cast(TokenChoice, config.router)

    def route(self, rows: Float[Tensor, "B T D"], plan: RoutingPlan) -> Routing:
        """The best experts of each row, whatever the plan: a row's fate is its own."""
        affinity = self.affinity(rows)
        gates, experts = _best(affinity.flatten(0, 1), self.options.top_k)
        order = experts.flatten().argsort(stable=True)
        chosen = F.one_hot(experts.flatten(), self.options.num_experts)
        return Routing(
            token=order // self.options.top_k,
            gate=gates.flatten()[order],
            count=chosen.sum(dim=0),
            affinity=affinity.flatten(0, 1),
            demand=None,
            pool=pool_of_rows(plan.pools(rows.shape[0]), rows.shape[1], rows.device),
            quantile=None,
            rows_per_expert=None,
        )

    @property
    def loss_weights(self) -> dict[str, float]:
        return {"balance": self.options.balance_weight}

    def losses(self, routing: Routing) -> dict[str, Tensor]:
        """E sum_e f_e P_e of each pool, f the share of pairs and P the mean affinity (Switch)."""
        affinity, experts = routing.affinity, routing.affinity.shape[1]
        zeros = torch.zeros_like(affinity)  # a row for each pool there could be: no read-back
        taken = zeros.index_add(0, routing.pool, routing.chosen.to(affinity.dtype))
        wanted = zeros.index_add(0, routing.pool, affinity)
        share = taken / taken.sum(dim=1, keepdim=True).clamp_min(0.5)
        mean = wanted / wanted.sum(dim=1, keepdim=True).clamp_min(0.5)
        pools = (wanted.detach().sum(dim=1) > 0).sum()
        return {"balance": experts * (share * mean).sum() / pools}


class ExpertChoiceRouter(Router):
    """Each expert takes its top T/E rows of every image (EC-DiT)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.options = cast(ExpertChoice, config.router)

    def route(self, rows: Float[Tensor, "B T D"], plan: RoutingPlan) -> Routing:
        """The top rows of each image, whatever the plan."""
        affinity = self.affinity(rows)
        images = RoutingPlan(selection="image").pools(rows.shape[0])
        return _static(affinity, images, self.options.capacity)


class BatchPoolRouter(Router):
    """Experts choose from a pool of images in training; a predictor says how many later."""

    threshold: Tensor
    gate_threshold: Tensor
    threshold_decay: Tensor
    threshold_updates: Tensor

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.options = cast(BatchPool, config.router)
        experts = self.options.num_experts
        self.predictor = CapacityPredictor(config.width, experts)
        self.register_buffer("threshold", torch.zeros(experts, dtype=torch.float32))
        self.register_buffer("gate_threshold", torch.zeros(experts, dtype=torch.float32))
        self.register_buffer("threshold_decay", torch.zeros(1, dtype=torch.float32))
        self.register_buffer("threshold_updates", torch.zeros((), dtype=torch.int64))

    def initialize(self, generator: torch.Generator) -> None:
        """Router, predictor, and thresholds that have seen nothing."""
        super().initialize(generator)
        self.predictor.initialize(generator)
        for buffer in (self.threshold, self.gate_threshold, self.threshold_updates):
            buffer.zero_()
        self.threshold_decay.fill_(self.options.threshold_decay)

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        # Thresholds meet float32 values: `.to(bfloat16)` moves them and does not round them.
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = getattr(self, name)
            if new.dtype != old.dtype:
                kept = new.to(old.dtype) if old.is_meta else old.to(new.device)
                setattr(self, name, kept)
        return self

    def route(self, rows: Float[Tensor, "B T D"], plan: RoutingPlan) -> Routing:
        """Training: top K of each pool. Otherwise as the plan says (Alg. 3, 4)."""
        affinity, pools = self.affinity(rows), plan.pools(rows.shape[0])
        if plan.selection == "train":
            demand = self.predictor(rows)
            quantile = kth_largest(demand.detach().sigmoid(), pools, self.options.capacity)
            return _static(affinity, pools, self.options.capacity, demand, quantile)
        if plan.selection == "image" or plan.policy == "static":
            return _static(affinity, pools, self.options.capacity)
        demand = None if plan.selection == "gate" else self.predictor(rows)
        mask = self._mask(affinity, demand, plan)
        token, gate, count = pairs_of_mask(mask, affinity.flatten(0, 1))
        return Routing(
            token=token,
            gate=gate,
            count=count,
            affinity=affinity.flatten(0, 1),
            demand=None if demand is None else demand.flatten(0, 1),
            pool=pool_of_rows(pools, rows.shape[1], rows.device),
            quantile=None,
            rows_per_expert=None,
        )

    def check(self, plan: RoutingPlan) -> None:
        """Raise ConfigError if the plan wants tracked thresholds that were never measured."""
        if plan.policy != "ema" or plan.thresholds is not None:
            return
        tracked = self.gate_threshold if plan.selection == "gate" else self.threshold
        lowest = 1e-12 if plan.selection == "gate" else 0.0
        sound = ((tracked >= lowest) & (tracked < 1)).all()
        if not (sound and self.threshold_updates > 0):
            raise ConfigError(
                f"the tracked thresholds of MoE layer {self.layer} for selection {plan.selection}"
                " were never measured or are not in [0, 1)",
                remedy="train the model first, or use policy constant, or selection image",
            )

    def _mask(
        self, affinity: Tensor, demand: Tensor | None, plan: RoutingPlan
    ) -> Bool[Tensor, "S E"]:
        tracked = self.gate_threshold if plan.selection == "gate" else self.threshold
        threshold = tracked if plan.thresholds is None else plan.thresholds[self.layer]
        if demand is None:
            return (affinity > threshold).flatten(0, 1)
        wanted = demand.sigmoid() > threshold
        if plan.selection == "token":
            return wanted.flatten(0, 1)
        return top_mask(affinity, wanted, plan.pools(affinity.shape[0]))

    @property
    def loss_weights(self) -> dict[str, float]:
        return {"predictor": self.options.predictor_weight}

    def losses(self, routing: Routing) -> dict[str, Tensor]:
        """Cross-entropy of the predictor against what the experts took, over S and E (Eq. 13)."""
        assert routing.demand is not None, "the predictor learns from training selections only"
        labels = routing.chosen.to(routing.demand.dtype)
        return {"predictor": F.binary_cross_entropy_with_logits(routing.demand, labels)}

    @torch.no_grad()
    def statistics(self, routing: Routing) -> Statistics:
        """Also the sums of the quantiles of all pools, and how the tracked thresholds would do."""
        assert routing.demand is not None and routing.quantile is not None
        above = routing.demand.sigmoid() > self.threshold
        return super().statistics(routing) | {
            "above": above.sum(dim=0),
            "right": (above == routing.chosen).sum(),
            "quantile": routing.quantile.sum(dim=0),
            "gate_quantile": smallest_gate(routing, routing.quantile.shape[0]).sum(dim=0),
            "pools": routing.count.new_tensor(routing.quantile.shape[0]),
        }

    @torch.no_grad()
    def update(self, statistics: Statistics) -> None:
        """tau <- decay * tau + (1 - decay) * quantile (Eq. 17), from the first quantile."""
        first = self.threshold_updates == 0
        for tracked, total in (
            (self.threshold, statistics["quantile"]),
            (self.gate_threshold, statistics["gate_quantile"]),
        ):
            now = (total / statistics["pools"]).to(tracked.dtype)
            tracked.copy_(torch.where(first, now, torch.lerp(now, tracked, self.threshold_decay)))
        self.threshold_updates += 1

    def summary(self, statistics: Statistics) -> dict[str, Tensor]:
        """Capacity and dead experts at the tracked thresholds, and the predictor's accuracy."""
        decisions = statistics["rows"] * self.options.num_experts
        return super().summary(statistics) | {"predictor_accuracy": statistics["right"] / decisions}


def _best(affinity: Float[Tensor, "S E"], top_k: int) -> tuple[Tensor, Tensor]:
    """Affinities and indices (S, top_k) of each row's experts; ties to the lower expert."""
    best = affinity.sort(dim=1, descending=True, stable=True)
    return best.values[:, :top_k], best.indices[:, :top_k]


def _static(
    affinity: Float[Tensor, "B T E"],
    pools: tuple[tuple[int, ...], ...],
    capacity: float,
    demand: Tensor | None = None,
    quantile: Tensor | None = None,
) -> Routing:
    chosen: Selected = top_pairs(affinity, pools, capacity)
    experts, each = chosen.token.shape
    return Routing(
        token=chosen.token.flatten(),
        gate=chosen.gate.flatten(),
        count=torch.full((experts,), each, device=affinity.device),
        affinity=affinity.flatten(0, 1),
        demand=None if demand is None else demand.flatten(0, 1),
        pool=pool_of_rows(pools, affinity.shape[1], affinity.device),
        quantile=quantile,
        rows_per_expert=each,
    )


ROUTERS: dict[type, type[Router]] = {
    TokenChoice: TokenChoiceRouter,
    ExpertChoice: ExpertChoiceRouter,
    BatchPool: BatchPoolRouter,
}
