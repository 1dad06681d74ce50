"""The routers: token choice, expert choice and the batch pool of DiffMoE."""

from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from diffmoe.config import BatchPool, ExpertChoice, ModelConfig, TokenChoice
from diffmoe.errors import ConfigError
from diffmoe.model.layers import CapacityPredictor, in_whole_vectors
from diffmoe.model.router import Router, Statistics, number, register_router
from diffmoe.model.routing import Routing, RoutingPlan, poisoned_rows
from diffmoe.model.selection import (
    kth_largest,
    padded_pairs,
    pairs_of_mask,
    pool_of_rows,
    smallest_gate,
    top_mask,
    top_pairs,
)
from diffmoe.model.wide_pool import Scores, wide_routing

__all__ = ["BatchPoolRouter", "ExpertChoiceRouter", "TokenChoiceRouter"]


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
        pools = plan.pools(rows.shape[0])
        return Routing(
            token=order // self.options.top_k,
            gate=gates.flatten()[order],
            count=chosen.sum(dim=0),
            affinity=affinity.flatten(0, 1),
            demand=None,
            pool=pool_of_rows(pools, rows.shape[1], rows.device),
            quantile=None,
            peers=plan.peers,
            pools=len(pools),
        )

    @property
    def loss_weights(self) -> dict[str, float]:
        return {"balance": self.options.balance_weight}

    def losses(self, routing: Routing) -> dict[str, Tensor]:
        """E sum_e f_e P_e of each pool, f the share of pairs and P the mean affinity (Switch).

        Where peers hold other parts of the pools, f is that of the whole pools, and P of the own
        rows: the mean over the processes has the value and the gradient of the whole pools' loss.
        """
        affinity, experts = routing.affinity, routing.affinity.shape[1]
        zeros = torch.zeros_like(affinity)  # a row for each pool there could be: no read-back
        taken = zeros.index_add(0, routing.pool, routing.chosen.to(affinity.dtype))
        if routing.peers is not None:
            own = taken[: routing.pools]
            own.copy_(routing.peers.gather(own).sum(dim=0))
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
            poisoned = poisoned_rows(affinity, demand)
            chances = demand.detach().sigmoid().masked_fill(poisoned[..., None], torch.nan)
            if plan.peers is not None and pools:
                scores = Scores(affinity, demand, chances, poisoned)
                return wide_routing(scores, pools, self.options.capacity, plan.peers)
            quantile = kth_largest(chances, pools, self.options.capacity)
            return _static(affinity, pools, self.options.capacity, poisoned, demand, quantile)
        if plan.selection == "image" or plan.policy == "static":
            return _static(affinity, pools, self.options.capacity)
        demand = None if plan.selection == "gate" else self.predictor(rows)
        wanted = self._wanted(affinity, demand, plan)
        rest = {
            "affinity": affinity.flatten(0, 1),
            "demand": None if demand is None else demand.flatten(0, 1),
            "pool": pool_of_rows(pools, rows.shape[1], rows.device),
            "quantile": None,
            "wanted": wanted.flatten(0, 1),
        }
        if plan.max_capacity is not None:
            score = affinity if demand is None else demand
            padded = padded_pairs(wanted, score, affinity, plan.max_capacity)
            token, gate, count, dropped = padded
            return Routing(token=token, gate=gate, count=count, dropped=dropped, **rest)
        mask = rest["wanted"]
        if plan.selection == "pool":
            poisoned = poisoned_rows(affinity, demand)[..., None]
            mask = top_mask(affinity.masked_fill(poisoned, torch.nan), wanted, pools)
        token, gate, count, sizes = pairs_of_mask(mask, affinity.flatten(0, 1))
        return Routing(token=token, gate=gate, count=count, sizes=sizes, **rest)

    def check(self, plan: RoutingPlan) -> None:
        """Raise ConfigError if the plan wants tracked thresholds that were never measured."""
        if plan.policy != "ema" or plan.thresholds is not None:
            return
        tracked = self.tracked(plan.selection)
        lowest = 1e-12 if plan.selection == "gate" else 0.0
        sound = ((tracked >= lowest) & (tracked < 1)).all()
        if not (sound and self.threshold_updates > 0):
            raise ConfigError(
                f"the tracked thresholds of MoE layer {self.layer} for selection {plan.selection}"
                " were never measured or are not in [0, 1)",
                remedy="train the model first, or use policy constant, or selection image",
            )

    def tracked(self, selection: str) -> Float[Tensor, "E"]:
        """The thresholds tracked for `selection`: on the affinity in `gate`, else on the demand."""
        return self.gate_threshold if selection == "gate" else self.threshold

    def scores(self, routing: Routing) -> Float[Tensor, "S E"]:
        """The demand, or in `gate` selection the affinity as a logit."""
        return routing.affinity.logit() if routing.demand is None else routing.demand

    def _wanted(
        self, affinity: Tensor, demand: Tensor | None, plan: RoutingPlan
    ) -> Bool[Tensor, "B T E"]:
        """Which rows are above each expert's threshold; none whose scores are no numbers."""
        tracked = self.tracked(plan.selection)
        threshold = tracked if plan.thresholds is None else plan.thresholds[self.layer]
        if demand is None:
            return affinity > threshold  # NaN is not
        # float32 knows no probability between 1 - 6e-8 and 1; many demands of a sure predictor are.
        sound = ~poisoned_rows(affinity, demand)[..., None]
        wide = torch.promote_types(demand.dtype, threshold.dtype)
        return (in_whole_vectors(torch.sigmoid, demand.to(wide)) > threshold) & sound

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
        """Also the sums of the quantiles of all pools, and how the tracked thresholds would do.

        A pool without any row whose scores are numbers has no quantile and does not count. Before
        the first update there are no thresholds: no row is `judged` then.

        Each of w processes that hold a part of a pool tells the quantiles of the whole of it. Sums
        over processes count it w times in `pools`, `quantile` and `gate_quantile`, so their
        quotients are right; everything else is counted once.
        """
        assert routing.demand is not None and routing.quantile is not None
        known = self.threshold_updates > 0
        above = routing.demand.sigmoid() > self.threshold
        right = (above == routing.chosen).sum()
        lowest = smallest_gate(routing, routing.quantile.shape[0])
        told = (routing.quantile + lowest).amax(dim=1) < torch.inf
        return super().statistics(routing) | {
            "judged": number(routing.rows, routing.count) * known,
            "above": above.sum(dim=0) * known,
            "right": right * known,
            "quantile": torch.where(told[:, None], routing.quantile, 0).sum(dim=0),
            "gate_quantile": torch.where(told[:, None], lowest, 0).sum(dim=0),
            "pools": told.sum(),
        }

    @torch.no_grad()
    def update(self, statistics: Statistics) -> None:
        """tau <- decay * tau + (1 - decay) * quantile (Eq. 17), from the first quantile."""
        first, known = self.threshold_updates == 0, statistics["pools"] > 0
        for tracked, total in (
            (self.threshold, statistics["quantile"]),
            (self.gate_threshold, statistics["gate_quantile"]),
        ):
            now = (total / statistics["pools"]).to(tracked.dtype)
            moved = torch.where(first, now, torch.lerp(now, tracked, self.threshold_decay))
            tracked.copy_(torch.where(known, moved, tracked))
        self.threshold_updates += known

    def summary(self, statistics: Statistics) -> dict[str, Tensor]:
        """Capacity and dead experts at the tracked thresholds, and the predictor's accuracy."""
        decisions = statistics["judged"] * self.options.num_experts
        return super().summary(statistics) | {"predictor_accuracy": statistics["right"] / decisions}


def _best(affinity: Float[Tensor, "S E"], top_k: int) -> tuple[Tensor, Tensor]:
    """Affinities and indices (S, top_k) of each row's experts; ties to the lower expert.

    A row whose affinities are no numbers has the first experts, with gate 0.
    """
    known = affinity.masked_fill(poisoned_rows(affinity)[:, None], 0)
    best = known.sort(dim=1, descending=True, stable=True)
    return best.values[:, :top_k], best.indices[:, :top_k]


def _static(
    affinity: Float[Tensor, "B T E"],
    pools: tuple[tuple[int, ...], ...],
    capacity: float,
    poisoned: Tensor | None = None,
    demand: Tensor | None = None,
    quantile: Tensor | None = None,
) -> Routing:
    token, gate = top_pairs(affinity, pools, capacity, poisoned)
    experts, each = token.shape
    return Routing(
        token=token.flatten(),
        gate=gate.flatten(),
        count=torch.full((experts,), each, device=affinity.device),
        affinity=affinity.flatten(0, 1),
        demand=None if demand is None else demand.flatten(0, 1),
        pool=pool_of_rows(pools, affinity.shape[1], affinity.device),
        quantile=quantile,
        rows_per_expert=each,
    )


register_router(TokenChoice, TokenChoiceRouter)
register_router(ExpertChoice, ExpertChoiceRouter)
register_router(BatchPool, BatchPoolRouter)
