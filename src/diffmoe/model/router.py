"""What every router has in common, and the register of those there are.

A router owns its losses and its state. A new one is a class anywhere and one call of
`register_router`.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffmoe.config import ModelConfig, RouterOptions, register_options
from diffmoe.model.layers import linear_high
from diffmoe.model.routing import Routing, RoutingPlan

__all__ = ["ROUTERS", "Router", "Statistics", "number", "register_router"]

Statistics = dict[str, Tensor]


class Router(nn.Module):
    """Affinities of rows and experts, and what every router has in common.

    `initialize` sets the parameters and buffers; linear maps inside of the router are its own to
    set. Buffers are saved, and their sums over steps belong into `update`.
    """

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

    def tracked(self, selection: str) -> Float[Tensor, "E"] | None:
        """The tracked thresholds of a selection; None for a router that selects by none."""
        return None

    def scores(self, routing: Routing) -> Float[Tensor, "S E"] | None:
        """What is compared with thresholds, in logits; None for a router that selects by none."""
        return None

    @property
    def loss_weights(self) -> dict[str, float]:
        """The weight of each term of `losses` in the training loss."""
        return {}

    def losses(self, routing: Routing) -> dict[str, Tensor]:
        """Auxiliary losses, unweighted scalars, a mean over pools."""
        return {}

    def statistics(self, routing: Routing) -> Statistics:
        """Sums over this forward pass; they add up over micro-batches and ranks."""
        return {
            "pairs": routing.count,
            "rows": number(routing.rows, routing.count),
            "poisoned": routing.poisoned.sum(),
        }

    def update(self, statistics: Statistics) -> None:
        """Advance the running state; called once per optimizer step."""

    def summary(self, statistics: Statistics) -> dict[str, Tensor]:
        """What to report of a sum of statistics: `capacity`, `dead_experts` and `poisoned_rows`.

        An expert is dead when it gets at most 1 % of an even share: the share of them, NaN when no
        row counted. Rows are poisoned whose scores are no numbers: how many in all of the sum.
        """
        used = statistics.get("above", statistics["pairs"]).to(torch.float32)
        capacity = used.sum() / statistics.get("judged", statistics["rows"])
        dead = (used <= 0.01 * used.mean()).to(torch.float32).mean()
        return {
            "capacity": capacity,
            "dead_experts": torch.where(capacity.isnan(), capacity, dead),
            "poisoned_rows": statistics["poisoned"].to(torch.float32),
        }


def number(value: int, like: Tensor) -> Tensor:
    """A scalar made on the device itself: a copy from the host would wait."""
    return torch.full((), value, dtype=like.dtype, device=like.device)


ROUTERS: dict[type[RouterOptions], type[Router]] = {}


def register_router(options: type[RouterOptions], router: type[Router]) -> None:
    """Make models whose config holds `options` use `router`, and let configs be saved with them.

    Raises ConfigError if the kind of the options belongs to another router.
    """
    register_options(options)
    ROUTERS[options] = router
