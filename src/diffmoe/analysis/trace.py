"""What routing did during a sampling run, as sums that do not grow with the number of images."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffmoe.config import RunConfig
from diffmoe.model import Routing, capacity_of_images
from diffmoe.sampling import Moment

__all__ = ["CapacityTrace"]

_SUMS = ("step_sum", "step_images", "class_sum", "class_images", "pairs", "rows")
_EVEN = 1e-6  # capacities that differ by less differ by rounding


@dataclass
class CapacityTrace:
    """A callback of `generate` that adds up capacities by step, class, layer and expert.

    `rows` and `pairs` count everything executed, both guidance branches; maps by class and step
    use the conditional branch (Eq. 15).
    """

    step_sum: Float[Tensor, "steps"]
    step_images: Float[Tensor, "steps"]
    class_sum: Float[Tensor, "classes"]
    class_images: Float[Tensor, "classes"]
    pairs: Float[Tensor, "L E"]
    rows: Float[Tensor, "L"]
    times: dict[int, float]  # where each step begins, in the objective's own time
    tokens: int
    dropped: float = 0.0  # pairs that `max_capacity` left out

    @classmethod
    def empty(cls, config: RunConfig, steps: int, *, classes: int | None = None) -> "CapacityTrace":
        """A trace of `steps` steps; of `classes` prompts, or of the classes of the model."""
        layers, experts = len(config.model.moe_blocks), config.model.router.num_experts
        classes = classes or config.model.num_classes
        return cls(
            step_sum=torch.zeros(steps, dtype=torch.float64),
            step_images=torch.zeros(steps, dtype=torch.float64),
            class_sum=torch.zeros(classes, dtype=torch.float64),
            class_images=torch.zeros(classes, dtype=torch.float64),
            pairs=torch.zeros(layers, experts, dtype=torch.float64),
            rows=torch.zeros(layers, dtype=torch.float64),
            times={},
            tokens=config.model.tokens,
        )

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All of it as tensors, for a file; `of_tensors` makes the same trace of them."""
        return {name: getattr(self, name) for name in _SUMS} | {
            "time_steps": torch.tensor(list(self.times), dtype=torch.int64),
            "time_values": torch.tensor(list(self.times.values()), dtype=torch.float64),
            "tokens": torch.tensor(self.tokens, dtype=torch.int64),
            "dropped": torch.tensor(self.dropped, dtype=torch.float64),
        }

    @classmethod
    def of_tensors(cls, found: dict[str, Tensor]) -> "CapacityTrace":
        """The trace that tensors were taken from."""
        return cls(
            **{name: found[name] for name in _SUMS},
            times=dict(
                zip(found["time_steps"].tolist(), found["time_values"].tolist(), strict=True)
            ),
            tokens=int(found["tokens"]),
            dropped=float(found["dropped"]),
        )

    def add(self, other: "CapacityTrace") -> None:
        """Take in the sums of other images of the same model and settings."""
        self._reserve(len(other.step_sum) - 1)
        steps = len(other.step_sum)
        self.step_sum[:steps] += other.step_sum
        self.step_images[:steps] += other.step_images
        for name in ("class_sum", "class_images", "pairs", "rows"):
            getattr(self, name).add_(getattr(other, name))
        self.times = other.times | self.times
        self.dropped += other.dropped

    def __call__(self, moment: Moment) -> None:
        """Take in one evaluation."""
        routing = moment.evaluation.output.routing
        if not routing:
            return
        self._count(routing)
        images = len(moment.images)
        per_layer = [capacity_of_images(record, self.tokens)[:images] for record in routing]
        capacity = torch.stack(per_layer).double().mean(dim=0).cpu()
        step = moment.evaluation.step
        self._reserve(step)
        self.times.setdefault(step, moment.evaluation.time)
        self.step_sum[step] += capacity.sum()
        self.step_images[step] += images
        labels = moment.labels.cpu()
        self.class_sum.index_add_(0, labels, capacity)
        self.class_images.index_add_(0, labels, torch.ones_like(capacity))

    def _count(self, routing: tuple[Routing, ...]) -> None:
        self.pairs += torch.stack([record.count for record in routing]).double().cpu()
        self.rows += torch.tensor([record.rows for record in routing], dtype=torch.float64)
        dropped = [record.dropped.sum() for record in routing if record.dropped is not None]
        if dropped:
            self.dropped += float(torch.stack(dropped).sum())

    def _reserve(self, step: int) -> None:
        """An adaptive solver may take more steps than were asked for (or fewer)."""
        missing = step + 1 - len(self.step_sum)
        if missing > 0:
            more = torch.zeros(missing, dtype=torch.float64)
            self.step_sum = torch.cat([self.step_sum, more])
            self.step_images = torch.cat([self.step_images, more])

    @property
    def per_step(self) -> Float[Tensor, "steps"]:
        """Average capacity of each sampling step (Fig. 1c), as far as the solver went."""
        visited = self.step_images > 0
        return self.step_sum[visited] / self.step_images[visited]

    @property
    def per_class(self) -> Float[Tensor, "classes"]:
        """Average capacity of each class (Fig. 1d); NaN for a class without samples."""
        return self.class_sum / self.class_images

    @property
    def conditional(self) -> float:
        """C_avg of the conditional branch alone, of which `per_step` is the course."""
        images = float(self.step_images.sum())
        return float(self.step_sum.sum()) / images if images else 1.0

    @property
    def is_even(self) -> bool:
        """Whether each step and class got the same, as where the router fixes the capacity."""
        seen = torch.cat([self.per_step, self.per_class[self.class_images > 0]])
        return not len(seen) or float(seen.max() - seen.min()) < _EVEN

    @property
    def per_expert(self) -> Float[Tensor, "L E"]:
        """Share of the rows that each expert took."""
        return self.pairs / self.rows[:, None].clamp_min(1)

    @property
    def dropped_share(self) -> float:
        """Share of the pairs asked for that `max_capacity` left out."""
        asked = float(self.pairs.sum()) + self.dropped
        return self.dropped / asked if asked else 0.0

    @property
    def average(self) -> float:
        """C_avg over everything executed (Eq. 15); 1 costs what dense costs."""
        if not len(self.rows) or not self.rows.sum():
            return 1.0
        return float((self.pairs.sum(dim=1) / self.rows).mean())
