"""Everything an analysis wants to know of one sampling run, as sums."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffmoe.analysis.findings import (
    ClassCapacity,
    ExpertUse,
    StepCapacity,
    TokenMaps,
    WordCapacity,
)
from diffmoe.analysis.tallies.archive import Described, write_trace
from diffmoe.analysis.tallies.classes import ClassTally
from diffmoe.analysis.tallies.experts import ExpertTally
from diffmoe.analysis.tallies.maps import MapTally
from diffmoe.analysis.tallies.observed import BatchSums, Observed
from diffmoe.analysis.tallies.steps import StepTally
from diffmoe.analysis.tallies.tokens import TokenTally
from diffmoe.analysis.trace import CapacityTrace
from diffmoe.analysis.words import word_capacity
from diffmoe.config import RunConfig
from diffmoe.objective import build_objective
from diffmoe.sampling import Moment

__all__ = ["RoutingTrace"]


@dataclass
class RoutingTrace:
    """A callback of `generate` that hands each evaluation to tallies; they answer with findings.

    `capacity` counts what was executed, all branches; all findings are of the conditional branch.
    Ask for findings between calls of `generate`: a batch counts when it is done.
    """

    config: RunConfig
    level_of: Callable[[float], float]  # noise level of the objective's own time
    capacity: CapacityTrace
    steps: StepTally
    classes: ClassTally
    experts: ExpertTally
    maps: MapTally
    tokens: TokenTally
    prompted: bool = False  # classes are prompts
    batch: BatchSums | None = None  # whose images are being drawn

    @classmethod
    def empty(
        cls,
        config: RunConfig,
        *,
        shown: Sequence[int] = (),
        frames: int = 12,
        classes: int | None = None,
        counted: int = 0,
    ) -> "RoutingTrace":
        """A trace of a run by `config.sampling`; `shown` are numbers of images to map.

        Where prompts are drawn, there are so many `classes`. Of the first `counted` images experts
        are counted patch by patch, as far as they fit 64 MiB.
        """
        layers, experts = len(config.model.moe_blocks), config.model.router.num_experts
        steps, prompted = config.sampling.steps, classes is not None
        classes = classes or config.model.num_classes
        return cls(
            config=config,
            level_of=build_objective(config.objective).noise_level,
            capacity=CapacityTrace.empty(config, steps, classes=classes),
            steps=StepTally.empty(steps, layers, experts),
            classes=ClassTally.empty(classes),
            experts=ExpertTally.empty(classes, layers, experts),
            maps=MapTally.empty(config, shown, frames),
            tokens=TokenTally.empty(config, counted),
            prompted=prompted,
        )

    def __call__(self, moment: Moment) -> None:
        """Take in one evaluation of a call that draws all images of the run."""
        self._see(moment, 0)

    def from_image(self, first: int) -> Callable[[Moment], None]:
        """A callback for a call whose images count from `first`: a run may be drawn in parts."""
        return lambda moment: self._see(moment, first)

    def _see(self, moment: Moment, first: int) -> None:
        self.capacity(moment)
        if not moment.evaluation.output.routing:
            return
        level = self.level_of(moment.evaluation.time)
        seen = Observed.of(moment, self.config.model.tokens, first, level)
        for tally in (self.steps, self.experts, self.maps, self.tokens):
            tally.see(seen)
        if self.batch is not None and self.batch.goes_on(seen):
            self.batch.add(seen)
            return
        self._close()
        self.batch = BatchSums.of(seen)

    def _close(self) -> None:
        """Count the batch at hand."""
        done, self.batch = self.batch, None
        if done is not None:
            self.classes.add(done)
            self.experts.add(done)

    def step_capacity(self) -> StepCapacity | None:
        """Capacity along sampling; None for a model without experts."""
        return self.steps.capacity()

    def class_capacity(self, names: list[str]) -> ClassCapacity | None:
        """Capacity by class; None for a model without experts."""
        self._close()
        return self.classes.capacity(names, self._noun)

    def word_capacity(
        self, prompts: Sequence[str], kind_of: Callable[[str], str] | None = None
    ) -> WordCapacity | None:
        """Capacity by the words of prompts, see there; None for a model without experts."""
        self._close()
        return word_capacity(self.classes, prompts, kind_of)

    def expert_use(self) -> ExpertUse | None:
        """What experts do; None for a model without experts."""
        self._close()
        return self.experts.use(self.steps.information(), self._noun)

    def token_maps(
        self, names: list[str], images: np.ndarray | Tensor, decode: Callable[[Tensor], Tensor]
    ) -> TokenMaps | None:
        """Maps of the images shown; None if none is, or for a model without experts.

        `images` are they as drawn, uint8 (I, C, H, W), and `decode` turns latents (N, C, H, W)
        into such images.
        """
        return self.maps.maps(names, np.asarray(images), decode) if self.maps.counts.size else None

    def write(self, folder: Path) -> None:
        """Write `trace.safetensors` and `trace.json`, which says what each array means."""
        self._close()
        self.steps.close()
        write_trace(folder, self._arrays(), self._facts())

    def _arrays(self) -> dict[str, Described]:
        found = {name: one for tally in self._tallies for name, one in tally.arrays().items()}
        whole, branches = self.capacity, "all branches of guidance"
        return found | {
            "executed_pairs": Described(
                _integers(whole.pairs), "L E", "pairs", f"rows that each expert took, {branches}"
            ),
            "executed_rows": Described(_integers(whole.rows), "L", "rows", f"of them, {branches}"),
            "dropped": Described(
                np.array([whole.dropped], np.int64), "1", "pairs", "that max_capacity left out"
            ),
        }

    @property
    def _noun(self) -> str:
        return "prompt" if self.prompted else "class"

    @property
    def _tallies(self) -> tuple[StepTally | ClassTally | ExpertTally | MapTally | TokenTally, ...]:
        return self.steps, self.classes, self.experts, self.maps, self.tokens

    def _facts(self) -> dict[str, Any]:
        model = self.config.model
        return {
            "about": "conditional branch, unless it says otherwise; images are numbered from 0",
            "classes": len(self.capacity.class_sum),
            "tokens": model.tokens,
            "patches_a_side": model.input_size // model.patch_size,
            "blocks": list(model.moe_blocks),
            "experts": model.router.num_experts,
            "router": model.router.kind,
            "objective": self.config.objective.kind,
            "sampling": asdict(self.config.sampling),
        }

    @property
    def nbytes(self) -> int:
        """Bytes held, which do not grow with the number of images."""
        whole = [value for value in vars(self.capacity).values() if isinstance(value, Tensor)]
        waiting = 0 if self.batch is None else self.batch.nbytes
        return (
            sum(value.nbytes for value in whole)
            + sum(tally.nbytes for tally in self._tallies)
            + waiting
        )


def _integers(values: Tensor) -> np.ndarray:
    return values.to(torch.int64).numpy()
