"""How images are drawn from a trained model; every field may change between two samplings."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal

from diffmoe.config.checks import Checked, at_least, positive, within
from diffmoe.errors import ConfigError

__all__ = ["LEGAL_POLICIES", "SELECTING", "Level", "SamplingConfig", "idle"]

Sampler = Literal["euler", "heun", "dopri5", "ancestral", "ddim"]
Selection = Literal["token", "pool", "gate", "image"]
Policy = Literal["ema", "constant", "static", "target"]
Level = Literal["global", "layer", "expert"]

# Which threshold policies a selection can work with (None: the selection needs none).
LEGAL_POLICIES: dict[str, tuple[str | None, ...]] = {
    "train": (None,),
    "token": ("ema", "constant", "target"),
    "pool": ("ema", "constant", "target", "static"),
    "gate": ("ema", "constant", "target"),
    "image": (None,),
}


# Fields that mean something only to a router that has several selections, only where a guided
# branch is evaluated, only to the adaptive solver, only to ddim.
SELECTING = (
    "capacity",
    "gamma",
    "capacity_level",
    "selection",
    "policy",
    "pool_images",
    "guidance_pool",
    "max_capacity",
)
_GUIDING = ("negative", "guidance_start", "guidance_end", "guided_channels")
_ADAPTING = ("shared_step", "rtol", "atol")
_SCATTERING = ("eta",)

_POLICY_REMEDY = {"static": "only selection `pool` has a fixed top-K: use sampling.selection pool"}

_MOST = 10**6  # steps, and images of a batch: more is a slip of the keyboard


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(Checked):
    """Solver, guidance and the capacity policy of a sampling run."""

    group: ClassVar[str] = "sampling"
    sampler: Sampler = "euler"  # euler, heun, dopri5 for flow; ancestral, ddim for DDPM
    steps: int = 250  # solver steps (heun evaluates twice a step; dopri5 chooses its own)
    guidance: float = 1.0  # classifier-free guidance scale; 1 = off
    guidance_start: float = 1.0  # noisiest time guided, as a fraction of the whole (1 = noise)
    guidance_end: float = 0.0  # cleanest time guided, as a fraction of the whole (0 = data)
    guidance_pool: Literal["separate", "joint"] = "separate"  # do the two branches share a pool
    negative: str = ""  # prompt to steer away from where guidance is more than 1; "" = none
    guided_channels: int | None = None  # guide only the first channels; None = all
    selection: Selection = "token"  # which rows an expert takes; only `pool` sees batch mates
    policy: Policy | None = None  # how many an expert takes; None = what the next two say, else ema
    gamma: float | None = None  # one threshold for all: policy `constant`; None otherwise
    capacity: float | None = None  # average wanted, 1 = dense: policy `target`; None otherwise
    capacity_level: Level = "global"  # what has that average: the model, each layer, each expert
    batch: int = 125  # images a call; changes nothing but memory in `token` selection
    pool_images: int | None = None  # images that compete in `pool` selection; None = all of a batch
    max_capacity: float | None = None  # room of an image in `token` and `gate`; None = no limit
    shared_step: bool = False  # dopri5: one step size for the batch instead of one an image
    rtol: float = 1e-3  # dopri5: relative tolerance
    atol: float = 1e-6  # dopri5: absolute tolerance
    eta: float = 0.0  # ddim: 0 = deterministic, 1 = ancestral noise
    weights: Literal["ema", "raw"] = "ema"  # averaged or last weights
    precision: Literal["float32", "bfloat16"] = "float32"  # dtype of matrix products

    def __post_init__(self) -> None:
        """A threshold or a capacity says by itself which policy is meant."""
        if self.policy is None:
            meant = "ema" if self.gamma is None else "constant"
            object.__setattr__(self, "policy", meant if self.capacity is None else "target")
        super().__post_init__()

    def ranges(self) -> Iterator[ConfigError]:
        """Images can be drawn."""
        yield from within(1, _MOST, self, "steps", "batch")
        yield from at_least(1, self, "pool_images", "guided_channels")
        yield from positive(self, "rtol", "atol", "max_capacity")
        yield from within(0, 1, self, "eta")
        if not (math.isfinite(self.guidance) and self.guidance >= 0):
            yield ConfigError(
                f"sampling.guidance {self.guidance} is not a finite number >= 0",
                remedy="1 is off; 1.5 for numbers, 4 for pictures",
            )
        if self.gamma is not None and not 0 <= self.gamma < 1:
            yield ConfigError(
                f"sampling.gamma {self.gamma} is not in [0, 1)",
                remedy="0 lets every expert take every row, 0.4 was near capacity 1 in the paper",
            )
        if self.capacity is not None and not 0 < self.capacity < math.inf:
            yield ConfigError(
                f"sampling.capacity {self.capacity} is not in (0, number of experts]",
                remedy="1 is the work of a dense model, the number of experts all there is",
            )

    def relations(self) -> Iterator[ConfigError]:
        """Nothing contradicts another setting, and nothing is said in vain."""
        if not 0 <= self.guidance_end <= self.guidance_start <= 1:
            yield ConfigError(
                f"sampling.guidance_end {self.guidance_end} and sampling.guidance_start"
                f" {self.guidance_start} are no interval",
                remedy="times run from 1 (noise) to 0 (data): 0 <= end <= start <= 1",
            )
        if self.gamma is not None and self.capacity is not None:
            yield ConfigError(
                f"sampling.gamma {self.gamma} and sampling.capacity {self.capacity} are two ways to"
                " say how much",
                remedy="leave one of them out",
            )
        else:
            yield from self._check_policy()
        yield from self._check_pool()
        yield from self._check_idle()

    def _check_idle(self) -> Iterator[ConfigError]:
        if self.guidance == 1:
            yield from idle(self, _GUIDING, "sampling.guidance is 1, off", "set sampling.guidance")
        for sampler, names in (("dopri5", _ADAPTING), ("ddim", _SCATTERING)):
            if self.sampler != sampler:
                other = f"the sampler is {self.sampler}"
                yield from idle(self, names, other, f"use sampling.sampler {sampler}")

    def at(
        self,
        *,
        policy: Policy | None = None,
        gamma: float | None = None,
        capacity: float | None = None,
        capacity_level: Level = "global",
    ) -> "SamplingConfig":
        """The same settings elsewhere on the dial, whatever these say of it."""
        return replace(
            self, policy=policy, gamma=gamma, capacity=capacity, capacity_level=capacity_level
        )

    def undecided(self) -> "SamplingConfig":
        """These settings as defaults for words that decide about the dial themselves."""
        free = self.at()
        object.__setattr__(free, "policy", None)
        return free

    def _check_policy(self) -> Iterator[ConfigError]:
        legal = LEGAL_POLICIES[self.selection]
        if None in legal:
            because = f"selection {self.selection} has a fixed capacity"
            yield from idle(self, ("gamma", "capacity", "capacity_level", "policy"), because)
            return
        if self.policy not in legal:
            yield ConfigError(
                f"sampling.policy {self.policy} does not go with selection {self.selection}",
                remedy=_POLICY_REMEDY.get(
                    self.policy or "", f"use one of {', '.join(map(str, legal))}"
                ),
            )
        for name, policy, use in (
            ("gamma", "constant", "a gamma in [0, 1)"),
            ("capacity", "target", "a capacity, 1 is the work of a dense model"),
        ):
            value = getattr(self, name)
            if (self.policy == policy) != (value is not None):
                yield ConfigError(
                    f"sampling.{name} {value} does not go with sampling.policy {self.policy}",
                    remedy=f"policy `{policy}` needs {use}, the others take none",
                )
        yield from self._check_capacity()

    def _check_capacity(self) -> Iterator[ConfigError]:
        if self.capacity is None and self.policy != "target":
            because = f"the policy is {self.policy}"
            yield from idle(self, ("capacity_level",), because, "set sampling.capacity")
        most = math.inf if self.max_capacity is None else self.max_capacity
        if self.capacity is not None and self.capacity > most:
            yield ConfigError(
                f"sampling.capacity {self.capacity} is more than sampling.max_capacity"
                f" {self.max_capacity} allows",
                remedy="raise sampling.max_capacity, or ask for less",
            )

    def _check_pool(self) -> Iterator[ConfigError]:
        if self.pool_images is not None and self.selection != "pool":
            yield ConfigError(
                f"sampling.pool_images {self.pool_images} has no meaning in selection"
                f" {self.selection}",
                remedy="only selection `pool` lets images compete",
            )
        elif self.pool_images is not None and self.batch % self.pool_images:
            yield ConfigError(
                f"sampling.batch {self.batch} is not a multiple of sampling.pool_images"
                f" {self.pool_images}",
                remedy="a pool lies within one batch: set --batch to"
                f" {-(-self.batch // self.pool_images) * self.pool_images}",
            )
        if self.max_capacity is not None and self.selection not in ("token", "gate"):
            yield ConfigError(
                f"sampling.max_capacity {self.max_capacity} has no meaning in selection"
                f" {self.selection}",
                remedy="only `token` and `gate` let an image take as many rows as it likes",
            )
        alone = self.sampler == "dopri5" and not self.shared_step
        if alone and self.selection == "pool":
            yield ConfigError(
                "sampling.sampler dopri5 integrates each image by itself, selection `pool` needs"
                " them together",
                remedy="set sampling.shared_step, or use selection `token`",
            )


def idle(
    settings: SamplingConfig, names: tuple[str, ...], because: str, instead: str = ""
) -> Iterator[ConfigError]:
    """The fields that nothing would read and that have not their defaults.

    Results are stamped with the settings: a stamp may not name what had no effect.
    """
    for name in names:
        value, default = getattr(settings, name), _DEFAULTS[name]
        if value not in (default, None):
            yield ConfigError(
                f"sampling.{name} {value} would change nothing: {because}",
                remedy="leave it "
                + ("out" if default in (None, "") else f"at {default}")
                + (f", or {instead}" if instead else ""),
            )


_DEFAULTS = {entry.name: entry.default for entry in fields(SamplingConfig)} | {"policy": "ema"}
