"""How far rows lie above the tracked thresholds, counted in bins of a logit."""

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffmoe.config import Level
from diffmoe.errors import ConfigError
from diffmoe.model import DiT, Routing

__all__ = ["Demand"]

_REACH, _BINS = 64.0, 16384  # logits counted to either side of a threshold, and their bins
_LEAST = 1e-7  # of a tracked threshold, whose logit is to be a number


class Demand:
    """Histograms of every layer and expert, and what experts took; they do not grow with images.

    From them the offset of the thresholds, in logits, that would take a given capacity of the same
    rows can be read. Raises ConfigError for a router that selects by no thresholds.
    """

    def __init__(self, model: DiT, selection: str) -> None:
        self._routers = [layer.router for layer in model.moe_layers]
        tracked = [router.tracked(selection) for router in self._routers]
        if not tracked or any(threshold is None for threshold in tracked):
            raise ConfigError(
                f"router {model.config.router.kind} selects by no thresholds",
                remedy="only a router with thresholds has a capacity to choose",
            )
        self.tracked: Float[Tensor, "L E"] = torch.stack(tracked).double().cpu()
        layers, experts = self.tracked.shape
        self.counts: Int[Tensor, "L E bins"] = torch.zeros(layers, experts, _BINS).long()
        self.wanted: Float[Tensor, "L E"] = torch.zeros(layers, experts, dtype=torch.float64)
        self.taken = torch.zeros_like(self.wanted)
        self.rows = 0

    def knows(self, routing: tuple[Routing, ...]) -> bool:
        """Whether the routers tell what there is to count; one of a user's own need not."""
        pairs = zip(self._routers, routing, strict=True)
        return all(r.wanted is not None and own.scores(r) is not None for own, r in pairs)

    def add(self, routing: tuple[Routing, ...]) -> None:
        """Count the rows of one evaluation, all branches."""
        for layer, (router, record) in enumerate(zip(self._routers, routing, strict=True)):
            scores = router.scores(record)
            if scores is None or record.wanted is None:
                raise ConfigError(
                    f"{type(router).__name__} does not tell which rows are above its thresholds",
                    remedy="let its `scores` return logits and its records hold `wanted`",
                )
            self.counts[layer] += _histogram(scores, self.tracked[layer])
            self.wanted[layer] += record.wanted.sum(dim=0).double().cpu()
            self.taken[layer] += record.count.double().cpu()
        self.rows += routing[0].rows

    def capacity(self, level: Level) -> Float[Tensor, "..."]:
        """What was taken: C_avg of the model, of each layer (L,) or of each expert (L, E)."""
        share = self.taken / self.rows
        if level == "expert":
            return share * share.shape[1]
        return share.sum(dim=1) if level == "layer" else share.sum(dim=1).mean()

    def offset(self, level: Level, capacity: float) -> Float[Tensor, "L E"]:
        """Logits to add to the tracked thresholds for `capacity` of the rows counted.

        Where less is taken than is wanted, as under a cap, as much more is wanted. -inf is every
        row.
        """
        layers, experts, _ = self.counts.shape
        members = {"global": layers * experts, "layer": experts, "expert": 1}[level]
        counts = self.counts.view(-1, members, _BINS).sum(dim=1).double()
        wanted, taken = (sums.view(-1, members).sum(dim=1) for sums in (self.wanted, self.taken))
        asked = capacity * self.rows * members / experts * (wanted / taken).nan_to_num(1.0)
        found = torch.tensor(
            [_crossing(*pair) for pair in zip(counts, asked.tolist(), strict=True)]
        )
        return found.repeat_interleave(members).view(layers, experts)

    def thresholds(self, offset: Float[Tensor, "L E"]) -> Float[Tensor, "L E"]:
        """The tracked thresholds moved by `offset`; below all scores where that is -inf."""
        moved = (self.tracked.logit(_LEAST) + offset).sigmoid()
        moved = torch.where(offset == 0, self.tracked, moved)  # not through rounding and back
        return moved.masked_fill(offset == -torch.inf, -1.0)


def _histogram(scores: Float[Tensor, "S E"], tracked: Float[Tensor, "E"]) -> Int[Tensor, "E bins"]:
    """Rows in each bin of their score above the threshold's logit."""
    above = scores.float() - tracked.logit(_LEAST).to(scores.device, torch.float32)
    inside = above.nan_to_num(-_REACH).clamp(-_REACH, _REACH)  # no integer stands for infinity
    place = ((inside + _REACH) * (_BINS / (2 * _REACH))).long().clamp_(0, _BINS - 1)
    place += torch.arange(tracked.shape[0], device=scores.device) * _BINS
    return torch.bincount(place.flatten(), minlength=len(tracked) * _BINS).view(-1, _BINS).cpu()


def _crossing(counts: Float[Tensor, "bins"], asked: float) -> float:
    """The offset with `asked` rows above it, on a straight line within a bin."""
    above = counts.flip(0).cumsum(0)  # rows from each lower edge upwards, the highest first
    if asked >= float(above[-1]) * (1 - 1e-9):
        return -math.inf
    edges = np.linspace(_REACH, -_REACH, _BINS + 1)
    return float(np.interp(asked, np.concatenate([[0.0], above.numpy()]), edges))
